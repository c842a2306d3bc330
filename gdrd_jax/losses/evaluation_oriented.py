"""Evaluation-oriented knowledge distillation: pairs of a batch pass the thresholds of low false accept rates in the
student's space as they do in T_d's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.embeddings import NEEDS
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs, State, check_at_least_0
from gdrd_jax.losses.pairwise import products, whole_batch
from gdrd_jax.registry import losses

RATES = 10 ** np.arange(1, 7)  # 1 / false accept rate
TEMPERATURE = 0.01  # of a soft rank, in units of cosines
UPDATE = 0.01  # weight of a batch in the averages of the thresholds
NEAR = 0.05  # how far from a threshold a soft rank still has a gradient


def soft_rank(cosines: jax.Array, thresholds: jax.Array) -> jax.Array:
    """How many thresholds `[K]` each cosine passes, between 0 and K, as a sum of sigmoids; shape of `cosines`."""
    exponent = (cosines[..., None] - thresholds) / TEMPERATURE
    return jnp.sum(jax.nn.sigmoid(jnp.clip(exponent, -50, 50)), axis=-1)


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
            check_at_least_0(self, "positive", "negative")
            if not 0 < self.hardest <= 1:
                raise ValueError(f"hardest is {self.hardest}; it must be above 0 and at most 1")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.averages, self.updates = State(jnp.zeros((2, len(RATES)))), State(jnp.array(0))

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        embeddings, label = whole_batch(outputs), sharding.gathered(batch["label"])
        cosines, size = [products(x) for x in embeddings], len(label)
        known = (label[:, None] >= 0) & (label[None, :] >= 0) & jnp.triu(jnp.ones((size, size), bool), 1)
        same = label[:, None] == label[None, :]
        positive, negative = known & same, known & ~same
        ordered = [
            jnp.sort(jnp.where(negative, jax.lax.stop_gradient(x), -2), axis=None, descending=True) for x in cosines
        ]
        thresholds = self._averaged(ordered, jnp.sum(negative))
        hardest = math.ceil(self.config.hardest * size * (size - 1) / 2)
        hard = negative & (cosines[0] >= ordered[0][hardest - 1])  # all negative pairs, if there are fewer

        ranks = [soft_rank(x, limits) for x, limits in zip(cosines, thresholds)]
        squared = (ranks[0] - ranks[1]) ** 2
        of_positives, of_negatives = _mean_where(squared, positive), _mean_where(squared, hard)
        near = jnp.any(jnp.abs(cosines[0][..., None] - thresholds[0]) < NEAR, axis=-1)
        metrics = {"ekd_active": _mean_where(near, positive | hard), "ekd_positives": jnp.sum(1.0 * positive)}
        return sharding.mean(self.config.positive * of_positives + self.config.negative * of_negatives), metrics

    def _averaged(self, ordered: Sequence[jax.Array], count: jax.Array) -> jax.Array:
        """Adds the thresholds of a batch to the averages, and returns these, `[2, K]`.

        Args:
          ordered: cosines in descending order, the student's and T_d's; the first ones are of negative pairs.
          count: number of negative pairs. Where there are fewer than a rate takes, it has the largest cosine.
        """
        found = jnp.stack([x[count // RATES] for x in ordered])
        # The same on all devices, which `mean` and `maximum` let JAX know.
        found, there = sharding.mean(found), sharding.maximum(count) > 0
        moved = (1 - UPDATE) * self.averages[...] + UPDATE * found
        self.averages[...] = jnp.where(there, moved, self.averages[...])
        self.updates[...] = self.updates[...] + there
        return self.averages[...] / (1 - (1 - UPDATE) ** jnp.maximum(self.updates[...], 1))


def _mean_where(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean of those values that count; 0 where none does."""
    return jnp.sum(values * counted) / jnp.maximum(jnp.sum(counted), 1)
