"""What margin losses share: scaled cosines with the classes, and a modified target logit."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs, State, check_at_least_0
from gdrd_jax.losses.logits import accuracy, classification_loss, mean_of_known
from gdrd_jax.models.relation import normalize

LARGEST_MARGIN = 1.5  # an angle, below pi/2


def unit(embedding: jax.Array | None) -> jax.Array:
    """Embeddings `[B, D]` at unit length, float32."""
    assert embedding is not None  # the `needs` of a loss have it
    return normalize(embedding.astype(jnp.float32))


def class_cosines(embedding: jax.Array, classes: jax.Array) -> jax.Array:
    """Cosines between embeddings, `[B, D]`, and the weights of classes, `[K, D]`: float32 `[B, K]`."""
    return jnp.matmul(unit(embedding), unit(classes).T, precision=jax.lax.Precision.HIGHEST)


def norms(embedding: jax.Array) -> jax.Array:
    """Lengths of embeddings `[B, D]`: float32 `[B]`, with a gradient of 0 at 0."""
    return jnp.sqrt(jnp.sum(embedding.astype(jnp.float32) ** 2, axis=-1) + 1e-12)


def plus_angle(cosine: jax.Array, angle: jax.Array | float) -> jax.Array:
    """`cos(theta + angle)` of `cos(theta)`, both of the same shape; its gradients are finite."""
    square = (1 - cosine) * (1 + cosine)
    inside = square > 0
    # The derivative of the root is infinite at 0, and infinity times 0 is NaN, also in the branch that is not taken.
    sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, square, 1)), 0)
    return cosine * jnp.cos(angle) - sine * jnp.sin(angle)


def angular_margin(
    cosine: jax.Array, margin: jax.Array | float, *, easy: bool = False, straight: bool = False
) -> jax.Array:  # fmt: skip
    """ArcFace's `cos(theta + m)` (Deng et al., arXiv 1801.07698).

    Args:
      cosine: cosine with the own class, `[B]`.
      margin: `m`, an angle from 0 to `LARGEST_MARGIN`, a scalar or `[B]`.
      easy: apply the margin only where the cosine is above 0. Otherwise `cos(theta) - m sin(m)` is used where
        `theta + m` would be above pi, from where the cosine would rise again.
      straight: use the gradient of `cos(theta)`.
    """
    turned, bound, otherwise = plus_angle(cosine, margin), -jnp.cos(margin), cosine - margin * jnp.sin(margin)
    if easy:
        bound, otherwise = 0.0, cosine
    found = jnp.where(cosine > bound, turned, otherwise)
    return cosine + jax.lax.stop_gradient(found - cosine) if straight else found


def margin_loss(
    cosines: jax.Array, labels: jax.Array, targets: jax.Array, *, scale: float, identities: int,
    weights: jax.Array | float = 1.0,
) -> jax.Array:  # fmt: skip
    """Softmax cross-entropy of scaled cosines, with other values in place of the cosine of a face's own class; mean
    over the faces whose identity is known.

    Args:
      cosines: `[B, K]`, for the whole batch and the classes of this device (see `class_parallel`).
      labels: int `[B]`, -1 for a face without identity.
      targets: target logits before scaling, which take the place of the cosines with the own class, `[B]`.
      scale: factor on cosines and targets.
      identities: number of classes on all devices together.
      weights: weights of the faces, `[B]`.
    """
    logits = scale * class_parallel.with_labels(cosines, labels, targets)
    return classification_loss(class_parallel.own_logits(logits, identities), labels, weights)


@dataclass(frozen=True)
class Compared:
    """The whole batch, compared with the classes of this device.

    Attributes:
      cosines: float32 `[B, K]`.
      own: cosines with the own class, `[B]`.
      norms: lengths of the embeddings, `[B]`.
      labels: int `[B]`, -1 without identity.
      figures: to log: mean cosine with the own class, and the share of faces that are most similar to it.
    """

    cosines: jax.Array
    own: jax.Array
    norms: jax.Array
    labels: jax.Array
    figures: Metrics


class MarginLoss(Loss):
    """A classifier of unit-length weights a class, divided among the devices, on unit-length embeddings.

    A subclass alters the cosine with a face's own class. Faces without identity do not count.
    """

    needs = frozenset({"embedding", "label"})

    @dataclass(frozen=True)
    class Config:
        """Settings of all losses with a margin.

        Attributes:
          scale: factor on the cosines, above 0; papers have 64, and 32 for low resolution.
          ramp: number of steps over which the margin rises from 0 to its full size; with 0 it is full from the start,
            as in the papers.
        """

        scale: float = 32.0
        ramp: int = 0

        def __post_init__(self) -> None:
            if not self.scale > 0:
                raise ValueError(f"scale is {self.scale}; it must be above 0")
            check_at_least_0(self, "ramp")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config, self.identities = config, info.identities
        self.classes = self.first_classes(info, rngs)
        class_parallel.divide(self.classes, axis=0)
        self.steps = State(jnp.zeros((), jnp.int32)) if config.ramp else None

    def first_classes(self, info: DataInfo, rngs: nnx.Rngs) -> nnx.Variable:
        """The weights of the classes before the first step, `[K, D]`."""
        return nnx.Param(normalize(jax.random.normal(rngs.params(), (info.identities, info.embedding_dim))))

    def compared(self, outputs: Outputs, batch: Batch) -> Compared:
        """The embeddings of the whole batch, compared with the classes."""
        assert outputs.embedding is not None  # `needs` has it
        embedding, labels = sharding.gathered(outputs.embedding), sharding.gathered(batch["label"])
        cosines = class_cosines(embedding, self.classes[...])
        own = class_parallel.of_labels(cosines, labels)
        known = class_parallel.own_logits(cosines, self.identities)
        figures = {"own_cosine": mean_of_known(own, labels), "cosine_accuracy": accuracy(known, labels)}
        return Compared(cosines, own, norms(embedding), labels, figures)

    def share(self) -> jax.Array | float:
        """The share of its margins that a step has, 0 to 1; to be called once a step, which it counts."""
        if self.steps is None:
            return 1.0
        share = jnp.minimum(self.steps[...] / self.config.ramp, 1.0)
        self.steps[...] = self.steps[...] + 1
        return share

    def entropy(self, faces: Compared, targets: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
        """`margin_loss` with `targets` `[B]` in the place of the cosines with the own class."""
        return margin_loss(
            faces.cosines, faces.labels, targets, scale=self.config.scale, identities=self.identities, weights=weights
        )


def check_gradient(gradient: str) -> None:
    """Raises `ValueError` for an unknown gradient of ArcFace."""
    if gradient not in ("exact", "straight"):
        raise ValueError(f"gradient is {gradient!r}; it can be exact, straight")


def check_margin(name: str, margin: float) -> None:
    """Raises `ValueError` where an angular margin is out of range."""
    if not 0 <= margin <= LARGEST_MARGIN:
        raise ValueError(f"{name} is {margin}; it can be 0 to {LARGEST_MARGIN}")
