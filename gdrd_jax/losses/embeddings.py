"""Losses between the student's embeddings and T_d's; none of them is in GDRD's paper."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Fixed, Loss, Metrics, Outputs
from gdrd_jax.losses.margin import unit
from gdrd_jax.models.relation import normalize
from gdrd_jax.registry import losses

NEEDS = frozenset({"embedding", "discriminative"})


def embedding_cosine(embedding: jax.Array, teacher: jax.Array) -> jax.Array:
    """`1 - cos(S(lr_i), T_d(x_i))`, mean over the batch.

    Args:
      embedding, teacher: `[B, D]`; the teacher's are of unit length and receive no gradient.
    """
    cosine = jnp.sum(normalize(embedding) * jax.lax.stop_gradient(teacher), axis=-1)
    return sharding.mean(jnp.mean(1 - cosine))


def similarity_preserving(embedding: jax.Array, teacher: jax.Array, normalize_rows: bool = False) -> jax.Array:
    """Squared difference between the student's and the teacher's cosines of two faces, mean over all pairs of different
    faces in the batch (similarity preservation, Tung and Mori, arXiv 1907.09682, with cosines).

    Args:
      embedding, teacher: `[B, D]`; the teacher's are of unit length and receive no gradient.
      normalize_rows: whether a face's cosines with all faces of the batch, its own included, are first divided by their
        Euclidean length, as the authors do.
    """
    embedding, teacher = normalize(embedding), jax.lax.stop_gradient(teacher)
    ours, theirs = (own @ sharding.gathered(own).T for own in (embedding, teacher))
    if normalize_rows:
        ours, theirs = normalize(ours), normalize(theirs)
    # On the diagonal, a face with itself, both cosines are 1.
    return sharding.total(jnp.sum((ours - theirs) ** 2)) / (ours.shape[1] * (ours.shape[1] - 1))


def contrastive_loss(embedding: jax.Array, teacher: jax.Array, scale: float) -> jax.Array:
    """InfoNCE between student and teacher (van den Oord et al., arXiv 1807.03748): the cross-entropy of identifying a
    face's own teacher embedding among those of the whole batch, mean over the batch.

    Args:
      embedding, teacher: `[B, D]`; the teacher's are of unit length and receive no gradient.
      scale: factor on the cosines, the inverse of the temperature.
    """
    everyone = sharding.gathered(jax.lax.stop_gradient(teacher))
    own = sharding.device_index() * len(embedding) + jnp.arange(len(embedding))
    logits = scale * normalize(embedding) @ everyone.T
    return sharding.mean(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, own)))


@losses.register("embedding_cosine")
class EmbeddingCosine(Loss):
    """One minus the cosine between the student's embedding and T_d's."""

    needs = NEEDS

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return embedding_cosine(outputs.embedding, outputs.teacher), {}


class TowardsAssistant(Loss):
    """A mixin before a loss that compares with T_d's embeddings: the assistant's embeddings take their place."""

    needs = frozenset({"embedding", "assistant"})

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        assistant = normalize(batch["assistant"].astype(jnp.float32))
        value, metrics = super().__call__(dataclasses.replace(outputs, teacher=assistant), batch, key)
        return value, {f"assistant_{name}": figure for name, figure in metrics.items()}


@losses.register("assistant_cosine")
class AssistantCosine(TowardsAssistant, EmbeddingCosine):
    """One minus the cosine between the student's embedding and an assistant's (HORKD, Ge et al., arXiv 2409.05384; our
    reading)."""


@losses.register("similarity_preserving")
class SimilarityPreserving(Loss):
    """Squared difference of the cosines between all faces of a batch, the student's and T_d's (arXiv 1907.09682)."""

    needs = NEEDS

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          normalize_rows: whether a face's cosines with the batch are compared at unit length, as the authors do; the
            loss is then much smaller (RepDistiller's weight of 3,000 for batches of 64 is 47 times the batch less 1).
        """

        normalize_rows: bool = False

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return similarity_preserving(outputs.embedding, outputs.teacher, self.config.normalize_rows), {}


@losses.register("selected_distance")
class SelectedDistance(Loss):
    """Squared distance between the student's and T_d's unit-length embeddings, weighted by the stage's selection
    (selective knowledge distillation, arXiv 1811.09998; our reading)."""

    needs = NEEDS | {"selected"}

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        distance = jnp.sum((normalize(outputs.embedding) - jax.lax.stop_gradient(outputs.teacher)) ** 2, axis=-1)
        return sharding.mean(jnp.mean(batch["selected"] * distance)), {"selected": jnp.mean(batch["selected"])}


@losses.register("center_distance")
class CenterDistance(Loss):
    """Squared distance between the student's embedding and T_d's mean embedding of the same identity, both of unit
    length (HR-anchor loss of DirectCapsNet, arXiv 1908.10027; our reading of the abstract).

    Faces without identity do not count. The anchors could also be learned from high-resolution faces with the network.

    Logged: `anchored`, the share of the faces that count.
    """

    needs = NEEDS | {"label"}

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.centers = Fixed(jnp.asarray(info.centers))
        class_parallel.divide(self.centers, axis=0)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        embedding, label = unit(outputs.embedding), batch["label"]
        anchors = class_parallel.rows_of_labels(self.centers[...], sharding.gathered(label))
        distance = jnp.sum((embedding - sharding.local_shard(anchors, len(label))) ** 2, axis=-1)
        return sharding.mean_where(distance, label >= 0), {"anchored": jnp.mean(label >= 0)}


@losses.register("nce")
class InfoNCE(Loss):
    """Cross-entropy of finding a face's own T_d embedding among those of the batch (InfoNCE, arXiv 1807.03748)."""

    needs = NEEDS

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          scale: factor on the cosines, the inverse of the temperature, above 0.
        """

        scale: float = 16.0

        def __post_init__(self) -> None:
            if not self.scale > 0:
                raise ValueError("scale must be above 0")

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return contrastive_loss(outputs.embedding, outputs.teacher, self.config.scale), {}
