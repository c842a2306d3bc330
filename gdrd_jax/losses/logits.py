"""The terms of Eq. 3 on logits: cross-entropy with identities, and logit distillation."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Fixed, Loss, Metrics, Outputs
from gdrd_jax.registry import losses


def classification_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """`L_cls` of Eq. 3: softmax cross-entropy, mean over the faces whose identity is known.

    Args:
      logits: `[B, K]`, for the whole batch and the classes of this device (see `class_parallel`).
      labels: int `[B]`, -1 for a face without identity.
      weights: weights of the faces, `[B]`; the sum is divided by the number of faces, not by the sum of the weights.
    """
    entropy = -class_parallel.of_labels(class_parallel.log_softmax(logits), labels)
    return mean_of_known(weights * entropy, labels)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the faces with a known identity whose own class has the largest logit, possibly tied; arguments as in
    `classification_loss`."""
    largest = sharding.maximum(jax.lax.stop_gradient(logits.max(axis=-1)))
    return mean_of_known(class_parallel.of_labels(logits, labels) >= largest, labels)


def mean_of_known(values: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean of values `[B]` of the whole batch over the faces whose identity is known; 0 where none is."""
    known = labels >= 0
    return sharding.mean(jnp.sum(values * known) / jnp.maximum(known.sum(), 1))


def distillation_loss(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """`L_kd` of Eq. 3: `T^2 KL(softmax(teacher / T) || softmax(student / T))`, mean over the batch (Hinton et al.,
    arXiv 1503.02531).

    Args:
      logits: the student's, `[B, K]`, for the whole batch and the classes of this device (see `class_parallel`).
      teacher_logits: `[B, K]`, see `center_logits`; receives no gradient.
      temperature: `T > 0`.
    """
    teacher = class_parallel.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    student = class_parallel.log_softmax(logits / temperature)
    divergence = sharding.total(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))
    return temperature**2 * jnp.mean(divergence)


def center_logits(embeddings: jax.Array, centers: jax.Array, scale: float) -> jax.Array:
    """Teacher logits `scale * cos(T_d(x), center_c)`, since a public ArcFace has no classifier for other identities.

    Args:
      embeddings: `T_d(x)`, `[B, D]`, unit length.
      centers: `[K, D]`, unit length: the normalized mean teacher embedding of each identity.
      scale: the `s` of ArcFace.
    """
    return scale * embeddings @ centers.T


@losses.register("cls")
class CrossEntropy(Loss):
    """`L_cls` of Eq. 3: softmax cross-entropy of a linear classifier; unlabeled faces do not count."""

    needs = frozenset({"label", "logits"})

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return classification_loss(outputs.logits, sharding.gathered(batch["label"])), {}


@losses.register("kd")
class LogitDistillation(Loss):
    """`L_kd` of Eq. 3: the linear classifier's logits follow T_d's, which are scaled cosines with class centers.

    Logged: `kd_own`, the probability of T_d's softmax at this temperature that a face's own identity has, mean over the
    faces of known identity. Near 0 the targets are almost the same for all faces, near 1 they are the labels;
    `teacher_scale` sets it.
    """

    needs = frozenset({"label", "logits", "discriminative"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          temperature: of both softmaxes, above 0.
          teacher_scale: factor on T_d's cosines, as the `s` of ArcFace, above 0.
        """

        temperature: float = 4.0
        teacher_scale: float = 32.0

        def __post_init__(self) -> None:
            if not (self.temperature > 0 and self.teacher_scale > 0):
                raise ValueError("temperature and teacher_scale must be above 0")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config, self.identities = config, info.identities
        self.centers = Fixed(jnp.asarray(info.centers))
        class_parallel.divide(self.centers, axis=0)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        teacher = center_logits(sharding.gathered(outputs.teacher), self.centers[...], self.config.teacher_scale)
        teacher, labels = class_parallel.own_logits(teacher, self.identities), sharding.gathered(batch["label"])
        softened = class_parallel.log_softmax(teacher / self.config.temperature)
        own = mean_of_known(jnp.exp(class_parallel.of_labels(softened, labels)), labels)
        return distillation_loss(outputs.logits, teacher, self.config.temperature), {"kd_own": own}
