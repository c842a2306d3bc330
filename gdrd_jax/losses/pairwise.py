"""Losses that compare the pairwise relations of the images of a batch in the student's space and in T_d's.

The student's embeddings are taken at unit length, as T_d's are, because images are compared by cosines.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.embeddings import NEEDS, TowardsAssistant
from gdrd_jax.losses.interface import Batch, Loss, Metrics, Outputs, check_at_least_0
from gdrd_jax.losses.margin import unit
from gdrd_jax.registry import losses

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # of the kernels of MK-MMD, in units of the mean squared distance
PKT_SCALE, CCKD_SCALE = 30000 / 64, 400.0  # see `ProbabilisticKnowledgeTransfer` and `CorrelationCongruence`


def whole_batch(outputs: Outputs) -> tuple[jax.Array, jax.Array]:
    """The student's embeddings and T_d's of the whole batch, float32 `[B, D]`, of unit length; T_d's receive no
    gradient."""
    assert outputs.teacher is not None  # `needs` has both
    return sharding.gathered(unit(outputs.embedding)), sharding.gathered(jax.lax.stop_gradient(outputs.teacher))


def products(x: jax.Array) -> jax.Array:
    """Inner products of all rows of `[B, D]`, cosines where these are of unit length: `[B, B]`."""
    return jnp.matmul(x, x.T, precision="highest")


def squared_distances(x: jax.Array) -> jax.Array:
    """Squared Euclidean distances between the rows of float32 `[B, D]`: `[B, B]`, at least 0."""
    norms = jnp.sum(x**2, axis=-1)
    return jnp.maximum(norms[:, None] + norms[None, :] - 2 * products(x), 0)


def relative_distances(x: jax.Array) -> jax.Array:
    """Euclidean distances between the rows of float32 `[B, D]`, divided by their mean: `[B, B]`, 0 on the diagonal."""
    size = len(x)
    # The derivative of a root at 0 is infinite.
    distance = jnp.sqrt(jnp.maximum(squared_distances(x), 1e-12)) * (1 - jnp.eye(size))
    return distance * (size * (size - 1) / jnp.sum(distance))


def angles(x: jax.Array) -> jax.Array:
    """Cosines of the angles between the rows of float32 `[B, D]`.

    Returns:
      `[B, B, B]`: entry `[i, j, k]` at row j, between rows i and k; 0 where i or k is closer to j than 1e-4.
    """
    difference = x[:, None] - x[None, :]
    squared = jnp.sum(difference**2, axis=-1, keepdims=True)
    apart = squared > 1e-8
    direction = jnp.where(apart, difference * jax.lax.rsqrt(jnp.where(apart, squared, 1)), 0)
    return jnp.einsum("ijd,kjd->ijk", direction, direction, precision="highest")


def probabilities(x: jax.Array) -> jax.Array:
    """PKT's probability that image i is near image j: `(cos + 1) / 2` over its sum over j; `[B, D]` of unit length ->
    `[B, B]`."""
    near = (products(x) + 1) / 2
    return near / jnp.sum(near, axis=1, keepdims=True)


def divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """`KL(teacher || student)` of the rows of `[B, B]`, mean over rows."""
    ratio = jnp.log((teacher + 1e-7) / (student + 1e-7))
    return jnp.mean(jnp.sum(teacher * ratio, axis=1))


def gaussian_series(x: jax.Array, gamma: float, degree: int) -> jax.Array:
    """CCKD's kernel: the Taylor series of `exp(-gamma |x_i - x_j|^2)` in the cosine, up to a degree; `[B, D]` of unit
    length -> `[B, B]`."""
    cosine = products(x)
    factors = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(degree + 1)]
    return sum(factor * cosine**p for p, factor in enumerate(factors))


def correlation(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Correlation between the student's cosines of two images and T_d's, over all pairs; both `[B, D]`, of unit length.
    About 0 for a student that knows nothing, or whose embeddings are all the same."""
    pairs = np.triu_indices(len(student), 1)
    ours, theirs = (products(x)[pairs] for x in (student, teacher))
    ours, theirs = ours - jnp.mean(ours), theirs - jnp.mean(theirs)
    return jnp.sum(ours * theirs) / jnp.sqrt(jnp.maximum(jnp.sum(ours**2) * jnp.sum(theirs**2), 1e-12))


def discrepancy(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared maximum mean discrepancy between two sets of vectors, `[B, D]` each: the sum over five Gaussian kernels,
    and the biased estimator, which is 0 for equal sets and never negative."""
    squared, size = squared_distances(jnp.concatenate([a, b])), len(a)
    width = jnp.maximum(jax.lax.stop_gradient(jnp.mean(squared)), 1e-12)
    kernel = sum(jnp.exp(-squared / (2 * factor * width)) for factor in WIDTHS)
    within = jnp.mean(kernel[:size, :size]) + jnp.mean(kernel[size:, size:])
    return jnp.maximum(within - 2 * jnp.mean(kernel[:size, size:]), 0)  # rounding can make it negative


@losses.register("rkd")
class RelationalDistillation(Loss):
    """Smooth L1 between the student's distances of images, divided by their mean, and T_d's, and between the cosines of
    the angles of all triplets (RKD, Park et al., arXiv 1904.05068).

    After others' code (RepDistiller), where the weights beside a cross-entropy of weight 1 are 25 and 50; in the paper
    they are 1 and 2. Logged: `rkd_distance` and `rkd_angle`, without their weights, and `rkd_spread`, the mean squared
    distance of the student's embeddings, which the loss does not see; 0 means that all have become one point.
    """

    needs = NEEDS

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          distance: weight of the distances, at least 0.
          angle: weight of the angles, at least 0.
          images: images of the batch, drawn at random, whose angles are compared, at least 3; a batch may have fewer.
        """

        distance: float = 25.0
        angle: float = 50.0
        images: int = 64

        def __post_init__(self) -> None:
            check_at_least_0(self, "distance", "angle")
            if self.images < 3:
                raise ValueError(f"images is {self.images}; it must be at least 3")

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        student, teacher = whole_batch(outputs)
        distance = jnp.mean(optax.huber_loss(relative_distances(student), relative_distances(teacher)))
        chosen = jax.random.permutation(key, len(student))[: self.config.images]
        # Rows known to be unique: the gradient then needs no sum over rows, whose order would matter.
        ours, theirs = (angles(x.at[chosen].get(unique_indices=True)) for x in (student, teacher))
        angle = jnp.mean(optax.huber_loss(ours, theirs))
        spread = jnp.mean(squared_distances(student))
        value = sharding.mean(self.config.distance * distance + self.config.angle * angle)
        return value, {"rkd_distance": distance, "rkd_angle": angle, "rkd_spread": spread}


@losses.register("assistant_rkd")
class AssistantRelationalDistillation(TowardsAssistant, RelationalDistillation):
    """As `rkd`, towards an assistant's embeddings (HORKD, Ge et al., arXiv 2409.05384; our reading).

    HORKD's three orders towards both teachers are `embedding_cosine`, `rkd`, `assistant_cosine` and this; with equal
    weights their first gradients are of about one size.
    """


@losses.register("pkt")
class ProbabilisticKnowledgeTransfer(Loss):
    """Divergence of the student's probabilities that images are near each other from T_d's, mean over images, times 469
    (PKT, Passalis and Tefas, arXiv 1803.10837).

    After others' code (RepDistiller), where the weight beside a cross-entropy of weight 1 is 30,000 for the mean over
    pairs in batches of 64, which is 469 for the mean over images. The probabilities are almost uniform, and the
    divergence without this factor is small. Logged: `pkt_correlation`, see `correlation`.
    """

    needs = NEEDS

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        student, teacher = whole_batch(outputs)
        found = divergence(probabilities(teacher), probabilities(student))
        return sharding.mean(PKT_SCALE * found), {"pkt_correlation": correlation(student, teacher)}


@losses.register("cckd")
class CorrelationCongruence(Loss):
    """Squared difference between the student's matrix of a Gaussian kernel's series and T_d's, mean over pairs, times
    400 (CCKD in its kernel form, Peng et al., arXiv 1904.01802).

    After others' code (FaceX-Zoo; TFace's has the same gamma, and stops at degree 1), without the factor, which is
    ours: the loss begins near 1. Published implementations differ; that of RepDistiller, by one of the authors,
    compares neighbors in a batch. Logged: `cckd_correlation`, see `correlation`.
    """

    needs = NEEDS

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          gamma: of the kernel `exp(-gamma d^2)`, above 0.
          degree: of its Taylor series, at least 1.
        """

        gamma: float = 0.4
        degree: int = 2

        def __post_init__(self) -> None:
            if not self.gamma > 0:
                raise ValueError(f"gamma is {self.gamma}; it must be above 0")
            if self.degree < 1:
                raise ValueError(f"degree is {self.degree}; it must be at least 1")

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        student, teacher = whole_batch(outputs)
        ours, theirs = (gaussian_series(x, self.config.gamma, self.config.degree) for x in (student, teacher))
        found = jnp.mean((ours - theirs) ** 2)
        return sharding.mean(CCKD_SCALE * found), {"cckd_correlation": correlation(student, teacher)}


@losses.register("mk_mmd")
class MultiKernelDiscrepancy(Loss):
    """Maximum mean discrepancy of several kernels between the set of the student's embeddings of a batch and that of
    T_d's (MK-MMD, Long et al., arXiv 1502.02791).

    After others' code (Transfer-Learning-Library), with its kernels and weight 1 but another estimator: that one is not
    0 for equal sets. Which image an embedding belongs to does not count, so the loss is weak alone. Logged:
    `mk_mmd_spread`, the mean squared distance of the student's embeddings; 0 means that all have become one point.
    """

    needs = NEEDS

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        student, teacher = whole_batch(outputs)
        spread = jnp.mean(squared_distances(student))
        return sharding.mean(discrepancy(student, teacher)), {"mk_mmd_spread": spread}
