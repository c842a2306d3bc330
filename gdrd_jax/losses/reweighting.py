"""Losses in which faces are weighted by T_d's confidence in their identity (ADSRAM, PRML 2023, no arXiv).

Only the title of the paper could be read: "attention distillation with sample re-weighting and adaptive margin". Our
reading is the sum of `reweighted_adaface` and `reweighted_attention`; the former alone is called SRW in tables.

The confidence is the cosine of T_d's embedding with the mean T_d embedding of the other faces of the identity. If the
mean included the face itself, identities with few faces would have the largest cosines. The student's cosine with T_d's
embedding would be noise, because no term of the method brings the student into T_d's space.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.adaface import AdaFace
from gdrd_jax.losses.feature_maps import attention_distance, teacher_maps
from gdrd_jax.losses.interface import Batch, DataInfo, Fixed, Loss, Metrics, Outputs
from gdrd_jax.models.relation import normalize
from gdrd_jax.registry import losses

LEAST, MOST = 0.2, 5.0  # weights
ONE_FACE = 1.001  # length of the sum of an identity's embeddings up to which it has one face
SIGNS = {"easy": 1.0, "hard": -1.0}


def cosine_with_others(embeddings: jax.Array, sums: jax.Array) -> jax.Array:
    """Cosine of embeddings of unit length, `[B, D]`, with the sums of the others of their identities: `[B]`, 0 where
    there are no others; `sums`, `[B, D]`, include the embeddings themselves."""
    return jnp.sum(embeddings * normalize(sums - embeddings), axis=-1)


def confidence_weights(cosine: jax.Array, temperature: float, favor: str) -> jax.Array:
    """`B softmax(+-cosine / temperature)`, clipped to 0.2 to 5: the mean is 1 before that. Without gradient.

    Args:
      cosine: T_d's confidence in the faces of the whole batch, `[B]`.
      temperature: above 0.
      favor: "easy", the larger the cosine, the larger the weight; "hard", the smaller.
    """
    shares = jax.nn.softmax(SIGNS[favor] * jax.lax.stop_gradient(cosine) / temperature)
    return jnp.clip(len(cosine) * shares, LEAST, MOST)


@dataclass(frozen=True)
class Reweighting:
    """Settings of the weights.

    Attributes:
      temperature: of the softmax over the batch that makes weights of cosines, above 0.
      favor: the faces with larger weights, "easy", of which T_d is confident, or "hard", the others.
    """

    temperature: float = 0.5
    favor: str = "easy"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError("temperature must be above 0")
        if self.favor not in SIGNS:
            raise ValueError(f"favor is {self.favor!r}; it can be {', '.join(SIGNS)}")


class FaceWeights(nnx.Module):
    """Weights of faces by T_d's confidence in them. Faces that are the only ones of their identity, or have none, have
    the mean confidence of the others in the batch.

    Args:
      config: see `Reweighting`.
      info: with the centers and their lengths.
    """

    def __init__(self, config: Reweighting, info: DataInfo) -> None:
        assert info.centers is not None and info.center_lengths is not None  # `needs` has T_d
        self.config, self.sums = config, Fixed(jnp.asarray(info.centers * info.center_lengths[:, None]))
        class_parallel.divide(self.sums, axis=0)

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Weights of the whole batch, `[B]`, and their standard deviation, which is 0 where all are equal."""
        teacher, labels = sharding.gathered(outputs.teacher), sharding.gathered(batch["label"])
        sums = class_parallel.rows_of_labels(self.sums[...], labels)
        cosine, known = cosine_with_others(teacher, sums), jnp.linalg.norm(sums, axis=-1) > ONE_FACE
        cosine = jnp.where(known, cosine, jnp.sum(cosine * known) / jnp.maximum(jnp.sum(known), 1))
        weights = confidence_weights(cosine, self.config.temperature, self.config.favor)
        return weights, {"weight_deviation": jnp.std(weights)}


@losses.register("reweighted_adaface")
class ReweightedAdaFace(AdaFace):
    """AdaFace in which faces are weighted by T_d's confidence (SRW, PRML 2023, no arXiv: our reading of its title).

    Logged: beside the figures of `adaface`, `weight_deviation`, the standard deviation of the weights.
    """

    needs = AdaFace.needs | {"discriminative"}

    @dataclass(frozen=True)
    class Config(Reweighting, AdaFace.Config):
        """Settings: those of `adaface` and `Reweighting`."""

        def __post_init__(self) -> None:
            AdaFace.Config.__post_init__(self)
            Reweighting.__post_init__(self)

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.face_weights = FaceWeights(config, info)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces, targets, figures = self.adapted(outputs, batch)
        weights, deviation = self.face_weights(outputs, batch)
        return self.entropy(faces, targets, weights), {**figures, **deviation}


@losses.register("reweighted_attention")
class ReweightedAttention(Loss):
    """The loss `attention` in which faces are weighted by T_d's confidence (ADSRAM, PRML 2023, no arXiv: our reading of
    its title).

    The method, as we understand it, compares the attention of three stages; here, as with `attention`, one.

    Logged: `attention_of_others`, see `attention`; `weight_deviation`, the standard deviation of the weights.
    """

    needs = frozenset({"label", "discriminative", "hr_features"})

    @dataclass(frozen=True)
    class Config(Reweighting):
        """Settings, see `Reweighting`."""

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.face_weights, self.teacher_maps = FaceWeights(config, info), teacher_maps(info)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        distance, others = attention_distance(outputs.features, self.teacher_maps(batch["hr_features"]))
        weights, deviation = self.face_weights(outputs, batch)
        loss = sharding.mean(jnp.mean(sharding.local_shard(weights, len(distance)) * distance))
        return loss, {"attention_of_others": others, **deviation}
