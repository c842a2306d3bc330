"""MagFace: a margin that grows with the norm of the embedding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gdrd_jax.losses.interface import Batch, Metrics, Outputs
from gdrd_jax.losses.logits import mean_of_known
from gdrd_jax.losses.margin import Compared, MarginLoss, angular_margin, check_margin
from gdrd_jax.registry import losses


def magnitude_margin(
    norms: jax.Array, *, min_norm: float, max_norm: float, min_margin: float, max_margin: float
) -> jax.Array:  # fmt: skip
    """MagFace's `m(a)`: it rises linearly from `min_margin` at `a = min_norm` to `max_margin` at `max_norm`.

    Args:
      norms: `a`, of embeddings, `[B]`, in this range.
    """
    return min_margin + (max_margin - min_margin) * (norms - min_norm) / (max_norm - min_norm)


def magnitude_penalty(norms: jax.Array, max_norm: float) -> jax.Array:
    """MagFace's `g(a) = a / u_a^2 + 1 / a`, which is smallest at `a = max_norm`: maps `[B]` to `[B]`."""
    return norms / max_norm**2 + 1 / norms


@dataclass(frozen=True)
class Magnitude(MarginLoss.Config):
    """Settings of a margin by norm, beside those of `MarginLoss`.

    Attributes:
      easy_margin: apply the margin only where the cosine is above 0, see `angular_margin`.
      min_norm, max_norm: `l_a` and `u_a`, between which the norm of the embedding counts.
      min_margin, max_margin: `l_m` and `u_m`, angles at these norms.
      norm_weight: `lambda_g` of the term that enlarges norms. The theory needs at least
        `scale k u_a^2 l_a^2 / (u_a^2 - l_a^2)` with `k = (u_m - l_m) / (u_a - l_a)`; 35 for a scale of 64.
    """

    easy_margin: bool = True
    min_norm: float = 10.0
    max_norm: float = 110.0
    min_margin: float = 0.45
    max_margin: float = 0.8
    norm_weight: float = 20.0

    def check_magnitude(self) -> None:
        """Raises `ValueError` for values out of range."""
        check_margin("min_margin", self.min_margin)
        check_margin("max_margin", self.max_margin)
        if self.max_margin < self.min_margin:
            raise ValueError(f"max_margin is {self.max_margin}; it must be at least min_margin, {self.min_margin}")
        low, high = self.min_norm, self.max_norm
        if not 0 < low < high:
            raise ValueError(f"min_norm and max_norm are {low} and {high}; they must be above 0 and rise")
        slope = (self.max_margin - self.min_margin) / (high - low)
        least = self.scale * slope * high**2 * low**2 / (high**2 - low**2)
        if self.norm_weight < least:
            raise ValueError(f"norm_weight is {self.norm_weight}; it must be at least {least:.4g} for these settings")


def magnitude_targets(
    faces: Compared, config: Magnitude, share: jax.Array | float
) -> tuple[jax.Array, jax.Array, Metrics]:  # fmt: skip
    """MagFace's target logits and its term of the norms.

    Args:
      faces: see `Compared`.
      config: see `Magnitude`.
      share: of the margins.

    Returns:
      Target logits before scaling, `[B]`; `lambda_g mean g(a)`; figures to log.
    """
    low, high, labels = config.min_norm, config.max_norm, faces.labels
    length = jnp.clip(faces.norms, low, high)
    margins = share * magnitude_margin(
        length, min_norm=low, max_norm=high, min_margin=config.min_margin, max_margin=config.max_margin
    )
    penalty = config.norm_weight * mean_of_known(magnitude_penalty(length, high), labels)
    figures = {
        "norms_inside": mean_of_known((faces.norms > low) & (faces.norms < high), labels),
        "norm_mean": mean_of_known(faces.norms, labels),
        "margin_min": jnp.min(margins, where=labels >= 0, initial=config.max_margin),
        "margin_mean": mean_of_known(margins, labels),
        "margin_max": jnp.max(margins, where=labels >= 0, initial=0.0),
    }
    return angular_margin(faces.own, margins, easy=config.easy_margin), penalty, figures


@losses.register("magface")
class MagFace(MarginLoss):
    """MagFace (Meng et al., arXiv 2103.06627; after the authors' code): ArcFace with a margin that grows with the
    length of the embedding, and a term that lengthens embeddings.

    Both have gradients with respect to the length, between `min_norm` and `max_norm`; outside there is none, which
    `norms_inside` shows.
    """

    @dataclass(frozen=True)
    class Config(Magnitude):
        """Settings, see `Magnitude`."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_magnitude()

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces = self.compared(outputs, batch)
        targets, penalty, figures = magnitude_targets(faces, self.config, self.share())
        return self.entropy(faces, targets) + penalty, {**faces.figures, **figures}
