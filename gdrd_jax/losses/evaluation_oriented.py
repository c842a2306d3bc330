"""Evaluation-oriented knowledge distillation: pairs of a batch pass the thresholds of low false accept rates in the
student's space as they do in T_d's."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.embeddings import NEEDS
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs, State
from gdrd_jax.losses.pairwise import products, whole_batch
from gdrd_jax.registry import losses

RATES = 10 ** np.arange(1, 7)  # one false accept in so many pairs
TEMPERATURE = 0.01  # of a soft rank, in units of cosines
UPDATE = 0.01  # weight of a batch in the averages of the thresholds
NEAR = 0.05  # how far from a threshold a soft rank still has a gradient


def soft_rank(cosines: jax.Array, thresholds: jax.Array) -> jax.Array:
    """How many thresholds `[K]` each cosine `[n]` passes, between 0 and K, as a sum of sigmoids."""
    exponent = (cosines[:, None] - thresholds) / TEMPERATURE
    return jnp.sum(jax.nn.sigmoid(jnp.clip(exponent, -50, 50)), axis=1)


def thresholds_of(negatives: jax.Array, count: jax.Array) -> jax.Array:
    """The cosines that one in 10, 100, ..., 10^6 negative pairs passes; the largest one where there are fewer pairs.

    Args:
      negatives: float `[n]`, of which the `count` largest are cosines of negative pairs.
      count: int.

    Returns:
      float `[6]`.
    """
    return jnp.sort(negatives, descending=True)[count // RATES]


@losses.register("ekd_evaluation")
class EvaluationOriented(Loss):
    """Squared difference between the number of thresholds, of false accept rates 10^-1 to 10^-6, that a pair of images
    passes in the student's space and in T_d's; mean over positive pairs, and over hard negative pairs
    (evaluation-oriented knowledge distillation, EKD, Huang et al., arXiv 2206.02325).

    After the authors' code (TFace), with its weights beside an ArcFace loss. Ours: the moving averages of the
    thresholds are corrected for their start at 0; the hard negatives are a share of the pairs, which makes 2,000 in
    batches of 512; pairs with an unlabeled image do not count. Rates below one in the number of negative pairs of a
    batch share a threshold, so larger batches say more. Logged: `ekd_active`, the share of the compared pairs within
    0.05 of a threshold of the student, beyond which they have no gradient; `ekd_positives`, the number of positive
    pairs.
    """

    needs = NEEDS | {"label", "balanced"}  # a uniform batch of many identities has almost no positive pairs

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          positive: weight of positive pairs, at least 0.
          negative: weight of negative pairs, at least 0.
          hardest: share of all pairs that are taken as negatives, above 0 and at most 1.
        """

        positive: float = 0.02
        negative: float = 0.01
        hardest: float = 0.015

        def __post_init__(self) -> None:
            if not (self.positive >= 0 and self.negative >= 0):
                raise ValueError("positive and negative must be at least 0")
            if not 0 < self.hardest <= 1:
                raise ValueError(f"hardest is {self.hardest}; it must be above 0 and at most 1")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.averages, self.updates = State(jnp.zeros((2, len(RATES)))), State(jnp.array(0))

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        embeddings, label = whole_batch(outputs), sharding.gathered(batch["label"])
        first, second = np.triu_indices(len(label), 1)
        cosines = [products(x)[first, second] for x in embeddings]
        known, same = (label[first] >= 0) & (label[second] >= 0), label[first] == label[second]
        positive, negative = known & same, known & ~same
        order = jnp.argsort(jnp.where(negative, cosines[0], -2), descending=True)
        hardest = order[: math.ceil(self.config.hardest * len(order))]
        hard = negative[hardest]  # all, unless there are fewer

        found = [thresholds_of(jnp.where(negative, x, -2), jnp.sum(negative)) for x in cosines]
        thresholds = self._averaged(jnp.stack(found), jnp.sum(negative))
        ranks = [soft_rank(x, limits) for x, limits in zip(cosines, thresholds)]
        squared = (ranks[0] - ranks[1]) ** 2
        of_positives = _mean_where(squared, positive)
        value = self.config.positive * of_positives + self.config.negative * _mean_where(squared[hardest], hard)

        near = jnp.any(jnp.abs(cosines[0][:, None] - thresholds[0]) < NEAR, axis=1)
        active = _mean_where(jnp.concatenate([near, near[hardest]]), jnp.concatenate([positive, hard]))
        return sharding.mean(value), {"ekd_active": active, "ekd_positives": jnp.sum(positive).astype(jnp.float32)}

    def _averaged(self, found: jax.Array, count: jax.Array) -> jax.Array:
        """Adds the thresholds `[2, K]` of a batch with so many negative pairs to the averages; returns these."""
        # The same on all devices, which `mean` and `maximum` let JAX know.
        found, there = sharding.mean(jax.lax.stop_gradient(found)), sharding.maximum(count) > 0
        moved = (1 - UPDATE) * self.averages[...] + UPDATE * found
        self.averages[...] = jnp.where(there, moved, self.averages[...])
        self.updates[...] = self.updates[...] + there
        return self.averages[...] / (1 - (1 - UPDATE) ** jnp.maximum(self.updates[...], 1))


def _mean_where(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean of those values that count; 0 where none does."""
    return jnp.sum(values * counted) / jnp.maximum(jnp.sum(counted), 1)
