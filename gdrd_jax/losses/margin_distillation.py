"""ArcFace on class centers in T_d's space: ArcDistill, whose centers are fixed, and AdaDistill, whose centers move."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Fixed, Metrics, Outputs, State
from gdrd_jax.losses.logits import mean_of_known
from gdrd_jax.losses.margin import MarginLoss, angular_margin, check_margin, unit
from gdrd_jax.registry import losses

SMALLEST_ALPHA = 1e-6


def center_cosines(embedding: jax.Array, centers: jax.Array, labels: jax.Array) -> jax.Array:
    """Cosines with the center of the own class, without gradient.

    Args:
      embedding: embeddings of the whole batch, `[B, D]`, unit length.
      centers: centers of the classes of this device, `[K, D]` (see `class_parallel`).
      labels: int `[B]`, -1 for a face without identity, which gets 0.
    """
    own = unit(class_parallel.rows_of_labels(centers, labels))
    return jax.lax.stop_gradient(jnp.sum(embedding * own, axis=-1))


def center_alpha(student: jax.Array, teacher: jax.Array, own: jax.Array) -> jax.Array:
    """AdaDistill's `alpha`, the share of a center that is kept: `[B]`, 1e-6 to 1, without gradient.

    Args:
      student, teacher: embeddings `[B, D]`, unit length.
      own: `center_cosines` of the teacher.
    """
    agreement = jnp.clip(jnp.sum(student * teacher, axis=-1), -1, 1)
    alpha = jnp.clip(agreement * jnp.clip(own, SMALLEST_ALPHA, 1), SMALLEST_ALPHA, 1)
    return jax.lax.stop_gradient(alpha)


def moved_centers(centers: jax.Array, labels: jax.Array, teacher: jax.Array, alpha: jax.Array) -> jax.Array:
    """AdaDistill's update of centers, `alpha w + (1 - alpha) T_d(x)`; faces of one identity in a batch are averaged.

    Args:
      centers: `w`, centers of the classes of this device, `[K, D]` (see `class_parallel`).
      labels: int `[B]`, -1 for a face without identity.
      teacher: `T_d(x)`, `[B, D]`, unit length.
      alpha: `[B]`.
    """
    faces, kept, added = (
        class_parallel.sums_of_labels(values, labels, len(centers))
        for values in (jnp.ones_like(alpha), alpha, (1 - alpha)[:, None] * teacher)
    )
    mean = (kept[:, None] * centers + added) / jnp.maximum(faces, 1)[:, None]
    return jax.lax.stop_gradient(jnp.where(faces[:, None] > 0, mean, centers))


class CenterLoss(MarginLoss):
    """ArcFace on class centers, which have no gradient."""

    needs = frozenset({"embedding", "label", "discriminative"})

    @dataclass(frozen=True)
    class Config(MarginLoss.Config):
        """Settings, beside those of `MarginLoss`.

        Attributes:
          margin: `m`, an angle of 0 to 1.5.
        """

        scale: float = 64.0
        margin: float = 0.45

        def __post_init__(self) -> None:
            super().__post_init__()
            check_margin("margin", self.margin)

    def first_classes(self, info: DataInfo, rngs: nnx.Rngs) -> nnx.Variable:
        assert info.centers is not None  # `needs` has T_d
        return Fixed(jnp.asarray(info.centers))


@losses.register("arc_distill")
class ArcDistill(CenterLoss):
    """ArcDistill (Boutros et al., arXiv 2407.01332; after the authors' code): ArcFace on class
    centers in T_d's space, which are fixed.

    The authors fix the classifier that T_d was trained with. It is not public for most T_d, and not of the identities
    at hand, so that here the mean T_d embedding of each identity stands for it, which is our reading.
    """

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces = self.compared(outputs, batch)
        return self.entropy(faces, angular_margin(faces.own, self.share() * self.config.margin)), faces.figures


@losses.register("ada_distill")
class AdaDistill(CenterLoss):
    """AdaDistill (Boutros et al., arXiv 2407.01332; after the authors' code): ArcFace whose class centers move to
    T_d's embeddings of the batch, the further the less student and T_d agree.

    A center is updated before its cosines are computed, and is not normalized again. Where an identity occurs twice in
    a batch the mean of the updates counts, of which the authors' code keeps an arbitrary one. `alpha` is the mean share
    of a center that is kept: near 0 at first, near 1 at the end of a long training.
    """

    def first_classes(self, info: DataInfo, rngs: nnx.Rngs) -> nnx.Variable:
        return State(0.01 * jax.random.normal(rngs.params(), (info.identities, info.embedding_dim)))

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        student, teacher, labels = map(sharding.gathered, (unit(outputs.embedding), outputs.teacher, batch["label"]))
        centers = self.classes[...]
        alpha = center_alpha(student, teacher, center_cosines(teacher, centers, labels))
        self.classes[...] = moved_centers(centers, labels, teacher, alpha)
        faces = self.compared(outputs, batch)
        loss = self.entropy(faces, angular_margin(faces.own, self.share() * self.config.margin))
        return loss, {**faces.figures, "alpha": mean_of_known(alpha, labels)}
