"""AdaFace: a margin that follows image quality, measured by the norm of the embedding."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import sharding
from gdrd_jax.losses import margin
from gdrd_jax.losses.interface import Batch, DataInfo, Metrics, Outputs, State, check_at_least_0
from gdrd_jax.losses.logits import mean_of_known
from gdrd_jax.losses.margin import Compared, MarginLoss, check_margin
from gdrd_jax.registry import losses

EPSILON = 1e-3  # of AdaFace, for angles, cosines, lengths and their deviation
MAX_NORM = 100.0  # norm from which on embeddings count as equally long
FIRST_MEAN, FIRST_DEVIATION = 20.0, 100.0


def quality_scaler(norms: jax.Array, mean: jax.Array, deviation: jax.Array, sharpness: float) -> jax.Array:
    """AdaFace's `q`, the normalized norms of embeddings: maps `[B]` to `[B]`, in -1 to 1."""
    return jnp.clip(sharpness * (norms - mean) / (deviation + EPSILON), -1, 1)


def adaptive_margin(cosine: jax.Array, scaler: jax.Array, size: jax.Array | float) -> jax.Array:
    """AdaFace's `cos(theta - m q) - (m + m q)` for the face's own class: ArcFace at q = -1, CosFace at q = 0.

    Args:
      cosine: cosine with the own class, `[B]`, at least `EPSILON` away from -1 and 1.
      scaler: `q`, `[B]`, -1 to 1.
      size: `m`.
    """
    angle = jnp.clip(jnp.arccos(cosine) - size * scaler, EPSILON, jnp.pi - EPSILON)
    return jnp.cos(angle) - (size + size * scaler)


@losses.register("adaface")
class AdaFace(MarginLoss):
    """AdaFace (Kim et al., arXiv 2204.00964; after the authors' code): a margin that emphasizes hard samples among
    images of high quality, whose embeddings have large norms, and easy samples among those of low quality.

    Mean and deviation of the norms are moving averages, updated from the whole batch first. `scaler_mean` and
    `scaler_deviation` are those of the normalized norm `q`, -1 to 1; a deviation of 0 is CosFace.
    """

    @dataclass(frozen=True)
    class Config(MarginLoss.Config):
        """Settings, beside those of `MarginLoss`.

        Attributes:
          margin: `m`, an angle of 0 to 1.5.
          sharpness: `h`, the scaler of a norm of one deviation above the mean, at least 0.
          update: share of a batch in the moving averages, above 0, at most 1.
          standardize: take the norms after a batch normalization of the embeddings, with which the authors' networks
            end. Norms above 100 count as 100, so a network without it, whose norms can all be larger, would have the
            same margin for all faces, that of CosFace.
        """

        scale: float = 64.0
        margin: float = 0.4
        sharpness: float = 0.333
        update: float = 0.01
        standardize: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            check_margin("margin", self.margin)
            check_at_least_0(self, "sharpness")
            if not 0 < self.update <= 1:
                raise ValueError(f"update is {self.update}; it must be above 0 and at most 1")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.mean, self.deviation = State(jnp.asarray(FIRST_MEAN)), State(jnp.asarray(FIRST_DEVIATION))

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces, targets, figures = self.adapted(outputs, batch)
        return self.entropy(faces, targets), figures

    def adapted(self, outputs: Outputs, batch: Batch) -> tuple[Compared, jax.Array, Metrics]:
        """The faces, their target logits before scaling, `[B]`, and figures."""
        faces = self.compared(outputs, batch)
        faces = replace(faces, **{name: _within(getattr(faces, name)) for name in ("cosines", "own")})
        scaler = self.scaler(outputs, batch)
        average = mean_of_known(scaler, faces.labels)
        figures = {
            "scaler_mean": average,
            "scaler_deviation": jnp.sqrt(mean_of_known((scaler - average) ** 2, faces.labels)),
        }
        targets = adaptive_margin(faces.own, scaler, self.share() * self.config.margin)
        return faces, targets, {**faces.figures, **figures}

    def scaler(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """`q` of the whole batch, `[B]`, without gradient, after an update of the averages."""
        embedding = jax.lax.stop_gradient(outputs.embedding).astype(jnp.float32)
        if self.config.standardize:
            embedding = embedding - sharding.mean(embedding.mean(axis=0))
            embedding = embedding / jnp.sqrt(sharding.mean(jnp.mean(embedding**2, axis=0)) + 1e-5)
        norms = sharding.replicated(jnp.clip(margin.norms(embedding), EPSILON, MAX_NORM))
        labels = sharding.replicated(batch["label"])
        known = labels >= 0
        count = known.sum()
        mean = jnp.sum(norms * known) / jnp.maximum(count, 1)
        variance = jnp.sum((norms - mean) ** 2 * known) / jnp.maximum(count - 1, 1)
        for average, value in ((self.mean, mean), (self.deviation, jnp.sqrt(variance))):
            moved = average[...] + self.config.update * (value - average[...])
            average[...] = jnp.where(count > 1, moved, average[...])  # a single face has no deviation
        return quality_scaler(norms, self.mean[...], self.deviation[...], self.config.sharpness)


def _within(cosines: jax.Array) -> jax.Array:
    return jnp.clip(cosines, -1 + EPSILON, 1 - EPSILON)
