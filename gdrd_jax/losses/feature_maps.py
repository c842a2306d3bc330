"""Losses between the student's last feature maps and a feature map of T_d on the full-size images.

T_d's map has 4x4 positions, and is that of one tensor (`discriminative.tap`); methods that compare several stages
compare one map here. FitNet's hint is in `feature_regression`.

All compare T_d's map standardized, with the mean over faces subtracted at each position and unit variance per channel.
A single channel can hold nearly all of a map's energy and be the same in all faces: of EdgeFace-XS's third stage it is
one of 100, with 97 % of the energy, and the cosine of the maps of two people is 0.995; standardized it is 0.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.feature_regression import TeacherFeatures, resized
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs, check_at_least_0
from gdrd_jax.models.haar import low_frequencies
from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.models.relation import normalize
from gdrd_jax.registry import losses

SAME_FACE = 0.99  # cosine of T_d's embeddings above which two faces of an identity are duplicates


def map_cosine(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Cosine of feature maps as vectors: `[b, ...]` of equal shapes -> float32 `[b]`, 0 for maps of zeros.

    The teacher's receive no gradient.
    """
    first, second = (normalize(x.astype(jnp.float32).reshape(len(x), -1)) for x in (student, teacher))
    return jnp.sum(first * jax.lax.stop_gradient(second), axis=-1)


def teacher_maps(info: DataInfo) -> TeacherFeatures:
    """A module that standardizes T_d's feature maps, with their statistics over the training set."""
    assert info.hr_statistics is not None  # `needs` has T_d's feature maps
    return TeacherFeatures(*info.hr_statistics())


def projection(info: DataInfo, rngs: nnx.Rngs) -> nnx.Sequential:
    """From the student's channels to those of T_d's maps: a 1x1 convolution without bias, and batch normalization."""
    assert info.hr_shape is not None  # `needs` has T_d's feature maps
    inputs, outputs = info.feature_shape[2], info.hr_shape[0]
    convolution = nnx.Conv(inputs, outputs, (1, 1), use_bias=False, rngs=rngs)
    return nnx.Sequential(convolution, BatchNorm(outputs, dtype=jnp.float32))


def _of_others(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """`map_cosine` with T_d's map of another face: what does not depend on the face."""
    others = jnp.roll(sharding.gathered(teacher), 1, axis=0)
    return jnp.mean(map_cosine(student, sharding.local_shard(others, len(teacher))))


def attention(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Spatial attention, the mean of the squares over the channels: `[b, h, w, C]` -> float32 `[b, *size]`."""
    return resized(jnp.mean(maps.astype(jnp.float32) ** 2, axis=-1, keepdims=True), size)[..., 0]


def attention_distance(features: jax.Array, maps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One minus the cosine of the spatial attention of the student and of T_d.

    Args:
      features: the student's, `[b, h, w, C]`.
      maps: T_d's, standardized, `[b, h', w', C']`.

    Returns:
      float32 `[b]`, and the mean cosine with T_d's attention of another face.
    """
    found, wanted = (attention(x, maps.shape[1:3]) for x in (features, maps))
    return 1 - map_cosine(found, wanted), _of_others(found, wanted)


@losses.register("attention")
class Attention(Loss):
    """One minus the cosine of the student's and T_d's spatial attention, the mean squares over channels (after A-SKD,
    arXiv 2209.14498; our reading).

    In the authors' code (gist-ailab/teaching-where-to-look) every block of both networks has a CBAM module, whose
    attention over channels and positions is compared, with the weight 5. A public T_d has none; the mean squares over
    the channels of its one stored map take their place, against those of the student's last stage.

    Logged: `attention_of_others`, the same cosine with T_d's attention of another face. The loss says something of a
    face only while the cosine with its own attention is larger.
    """

    needs = frozenset({"hr_features"})

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.teacher_maps = teacher_maps(info)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        distance, others = attention_distance(outputs.features, self.teacher_maps(batch["hr_features"]))
        return sharding.mean(jnp.mean(distance)), {"attention_of_others": others}


@losses.register("wavelet")
class WaveletSimilarity(Loss):
    """One minus the cosine of the student's and T_d's feature maps after a Haar wavelet transform, low frequencies
    alone (WaveResNet, arXiv 2303.08665; our reading of the abstract's "wavelet similarity loss").

    One level of the transform, of 4x4 positions; the student's map first goes through a 1x1 convolution and batch
    normalization. The paper's other terms are the losses `arcface` and `embedding_cosine`.

    Logged: `wavelet_of_others`, the same cosine with T_d's map of another face.
    """

    needs = frozenset({"hr_features"})

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.projection, self.teacher_maps = projection(info, rngs), teacher_maps(info)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        teacher = self.teacher_maps(batch["hr_features"])
        student = resized(self.projection(outputs.features), teacher.shape[1:3])
        student, teacher = low_frequencies(student), low_frequencies(teacher)
        loss = sharding.mean(jnp.mean(1 - map_cosine(student, teacher)))
        return loss, {"wavelet_of_others": _of_others(student, teacher)}


@losses.register("feature_similarity")
class FeatureSimilarity(Loss):
    """F-SKD: cosine of feature maps, and of their affinities with those of another face of the same identity
    (arXiv 2303.04681; after the authors' code).

    `L = cosine * mean(1 - cos(R f, F)) + relation * L_x`. With the maps H of T_d and L = R f of the student, H' and L'
    of the second image, and the affinity `A(u, v)` of all positions of u with all of v,
    `L_x = (d(A(H, H'), A(H, L')) + d(A(H, H'), A(L, H'))) / 2 + d(A(H, H'), A(L, L'))`, d being one minus the cosine.
    `R` is a 1x1 convolution without bias and batch normalization. The authors' code (gist-ailab/feature-similarity-KD)
    compares four stages; here it is the last alone (our reading). Its other terms are the loss `cosface` and, in its
    script for CASIA-WebFace but not in that for WebFace4M, distillation of CosFace's logits.

    Logged: `related_pairs`, the share of the rows in `L_x`: those with a second image of the same identity, and T_d's
    cosine between both above 0 and below 0.99.
    """

    needs = frozenset({"hr_features", "discriminative", "second"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          cosine: weight of the cosine of feature maps, at least 0.
          relation: weight of the affinities, at least 0.
        """

        cosine: float = 20.0
        relation: float = 4.0

        def __post_init__(self) -> None:
            check_at_least_0(self, "cosine", "relation")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.projection, self.teacher_maps = projection(info, rngs), teacher_maps(info)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        second = outputs.second
        assert second is not None and second.teacher is not None and outputs.teacher is not None  # `needs` has them
        # One pass, so that batch normalization sees both images as one batch.
        teacher = self.teacher_maps(jnp.concatenate([batch["hr_features"], batch["second_hr_features"]]))
        student = self.projection(jnp.concatenate([outputs.features, second.features]))
        student = resized(student, teacher.shape[1:3])
        cosine = jnp.mean(1 - map_cosine(student, teacher))
        alike = jnp.sum(outputs.teacher * second.teacher, axis=-1)
        counted = batch["has_second"] & (alike > 0) & (alike < SAME_FACE)
        relation = affinity_distance(*jnp.split(student, 2), *jnp.split(teacher, 2))
        relation = self.config.relation * sharding.mean_where(relation, counted)
        return self.config.cosine * sharding.mean(cosine) + relation, {"related_pairs": jnp.mean(counted)}


def affinity_distance(low: jax.Array, low2: jax.Array, high: jax.Array, high2: jax.Array) -> jax.Array:
    """`L_x` of `FeatureSimilarity` of each row.

    Args:
      low, low2: the student's maps of both images, float `[b, h, w, C]`.
      high, high2: T_d's, likewise; without gradient.

    Returns:
      float32 `[b]`.
    """

    def affinity(u: jax.Array, v: jax.Array) -> jax.Array:
        u, v = (x.reshape(len(x), -1, x.shape[-1]) for x in (u, v))
        return jnp.einsum("bpc,bqc->bpq", u, v)

    def distance(u: jax.Array, v: jax.Array) -> jax.Array:
        return 1 - map_cosine(affinity(u, v), wanted)

    low, low2, high, high2 = (normalize_maps(x) for x in (low, low2, high, high2))
    wanted = affinity(high, high2)
    return (distance(high, low2) + distance(low, high2)) / 2 + distance(low, low2)


def normalize_maps(maps: jax.Array) -> jax.Array:
    """Divides each map by its Frobenius norm: `[b, ...]` -> float32 of the same shape."""
    return normalize(maps.astype(jnp.float32).reshape(len(maps), -1)).reshape(maps.shape)
