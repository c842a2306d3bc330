"""Losses in which a face counts by how sure T_d is of its identity (ADSRAM, PRML 2023, no arXiv).

Only the title of the paper could be read: "attention distillation with sample re-weighting and adaptive margin". Our
reading is the sum of `reweighted_adaface` and `reweighted_attention`; the former alone is called SRW in tables.

The weights are by T_d's cosine with the mean T_d embedding of the identity. The student's cosine with T_d's embedding
would be noise, because no term of the method brings the student into T_d's space.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.adaface import AdaFace
from gdrd_jax.losses.feature_maps import TeacherMaps, attention_distance
from gdrd_jax.losses.interface import Batch, DataInfo, Fixed, Loss, Metrics, Outputs
from gdrd_jax.registry import losses

LEAST, MOST = 0.2, 5.0  # weights
SIGNS = {"easy": 1.0, "hard": -1.0}


def confidence_weights(cosine: jax.Array, temperature: float, favor: str) -> jax.Array:
    """`B softmax(+-cosine / temperature)`, clipped to 0.2 to 5: the mean is 1 before that. Without gradient.

    Args:
      cosine: between T_d's embeddings and the centers of their identities, of the whole batch, `[B]`.
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
      favor: the faces that count more, "easy", whose T_d embedding is near that of their identity, or "hard", the
        others.
    """

    temperature: float = 0.5
    favor: str = "easy"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError("temperature must be above 0")
        if self.favor not in SIGNS:
            raise ValueError(f"favor is {self.favor!r}; it can be {', '.join(SIGNS)}")


class FaceWeights(nnx.Module):
    """Weights of faces by T_d's cosine with the center of their identity, its mean T_d embedding.

    Args:
      config: see `Reweighting`.
      info: with the centers.
    """

    def __init__(self, config: Reweighting, info: DataInfo) -> None:
        self.config, self.centers = config, Fixed(jnp.asarray(info.centers))
        class_parallel.divide(self.centers, axis=0)

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Weights of the whole batch, `[B]`, and their standard deviation: with 0 all faces count alike. The cosine of
        a face without identity is 0."""
        teacher, labels = sharding.gathered(outputs.teacher), sharding.gathered(batch["label"])
        cosine = jnp.sum(teacher * class_parallel.rows_of_labels(self.centers[...], labels), axis=-1)
        weights = confidence_weights(cosine, self.config.temperature, self.config.favor)
        return weights, {"weight_deviation": jnp.std(weights)}


@losses.register("reweighted_adaface")
class ReweightedAdaFace(AdaFace):
    """AdaFace in which a face counts by how sure T_d is of its identity (SRW, PRML 2023, no arXiv: our reading of its
    title).

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
    """The loss `attention` in which a face counts by how sure T_d is of its identity (ADSRAM, PRML 2023, no arXiv: our
    reading of its title).

    Our reading compares the attention of three stages; as with `attention`, it is that of the last one here.

    Logged: `attention_of_others`, see `attention`; `weight_deviation`, the standard deviation of the weights.
    """

    needs = frozenset({"label", "discriminative", "hr_features"})

    @dataclass(frozen=True)
    class Config(Reweighting):
        """Settings, see `Reweighting`."""

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.face_weights, self.teacher_maps = FaceWeights(config, info), TeacherMaps(info)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        distance, others = attention_distance(outputs.features, self.teacher_maps(batch["hr_features"]))
        weights, deviation = self.face_weights(outputs, batch)
        loss = sharding.mean(jnp.mean(sharding.local_shard(weights, len(distance)) * distance))
        return loss, {"attention_of_others": others, **deviation}
