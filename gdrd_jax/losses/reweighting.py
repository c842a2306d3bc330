"""Losses in which a face counts by how much the student's embedding resembles T_d's (ADSRAM, PRML 2023, no arXiv).

Only the title of the paper could be read: "attention distillation with sample re-weighting and adaptive margin". Our
reading is the sum of `reweighted_adaface` and, with the weight 5, `reweighted_attention`; the former alone is called
SRW in tables.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.adaface import AdaFace
from gdrd_jax.losses.feature_maps import attention_distance
from gdrd_jax.losses.interface import Batch, Loss, Metrics, Outputs
from gdrd_jax.losses.margin import unit
from gdrd_jax.registry import losses

LEAST, MOST = 0.2, 5.0  # weights
SIGNS = {"easy": 1.0, "hard": -1.0}


def resemblance_weights(cosine: jax.Array, temperature: float, favor: str) -> jax.Array:
    """`B softmax(+-cosine / temperature)`, clipped to 0.2 to 5: the mean is 1 before that. Without gradient.

    Args:
      cosine: between the student's and T_d's embeddings, of the whole batch, `[B]`.
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
      favor: the faces that count more, "easy", which resemble their embedding by T_d, or "hard", which do not.
    """

    temperature: float = 0.5
    favor: str = "easy"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError("temperature must be above 0")
        if self.favor not in SIGNS:
            raise ValueError(f"favor is {self.favor!r}; it can be {', '.join(SIGNS)}")


def _weights(config: Reweighting, outputs: Outputs) -> tuple[jax.Array, Metrics]:
    """Weights of the whole batch, and their standard deviation: with 0 all faces count alike."""
    cosine = jnp.sum(unit(outputs.embedding) * outputs.teacher, axis=-1)
    weights = resemblance_weights(sharding.gathered(cosine), config.temperature, config.favor)
    return weights, {"weight_deviation": jnp.std(weights)}


@losses.register("reweighted_adaface")
class ReweightedAdaFace(AdaFace):
    """AdaFace in which a face counts by how much its embedding resembles T_d's (SRW, PRML 2023, no arXiv: our reading
    of its title).

    Logged: beside the figures of `adaface`, `weight_deviation`, the standard deviation of the weights.
    """

    needs = AdaFace.needs | {"discriminative"}

    @dataclass(frozen=True)
    class Config(Reweighting, AdaFace.Config):
        """Settings: those of `adaface` and `Reweighting`."""

        def __post_init__(self) -> None:
            AdaFace.Config.__post_init__(self)
            Reweighting.__post_init__(self)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces, targets, figures = self.adapted(outputs, batch)
        weights, deviation = _weights(self.config, outputs)
        return self.entropy(faces, targets, weights), {**figures, **deviation}


@losses.register("reweighted_attention")
class ReweightedAttention(Loss):
    """The loss `attention` in which a face counts by how much its embedding resembles T_d's (ADSRAM, PRML 2023, no
    arXiv: our reading of its title).

    Our reading compares the attention of three stages; as with `attention`, it is that of the last one here.

    Logged: `attention_of_others`, see `attention`; `weight_deviation`, the standard deviation of the weights.
    """

    needs = frozenset({"embedding", "discriminative", "hr_features"})

    @dataclass(frozen=True)
    class Config(Reweighting):
        """Settings, see `Reweighting`."""

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        distance, others = attention_distance(outputs.features, batch["hr_features"])
        weights, deviation = _weights(self.config, outputs)
        loss = sharding.mean(jnp.mean(sharding.local_shard(weights, len(distance)) * distance))
        return loss, {"attention_of_others": others, **deviation}
