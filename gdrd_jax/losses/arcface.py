"""Classifiers with a margin: CosFace and ArcFace."""

from dataclasses import dataclass
from typing import Any

import jax

from gdrd_jax.losses.interface import Batch, Metrics, Outputs
from gdrd_jax.losses.margin import MarginLoss, angular_margin, check_gradient, check_margin
from gdrd_jax.registry import losses


@losses.register("cosface")
class CosFace(MarginLoss):
    """CosFace (Wang et al., arXiv 1801.09414; after public code): `cos(theta) - m` for the own class."""

    @dataclass(frozen=True)
    class Config(MarginLoss.Config):
        """Settings, beside those of `MarginLoss`.

        Attributes:
          margin: `m`, at least 0; 0.35 to 0.4 is usual, 0.2 for low resolution.
        """

        margin: float = 0.2

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.margin < 1:
                raise ValueError(f"margin is {self.margin}; it must be at least 0 and below 1")

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces = self.compared(outputs, batch)
        return self.entropy(faces, faces.own - self.share() * self.config.margin), faces.figures


def arcface_targets(own: jax.Array, config: Any, share: jax.Array | float) -> jax.Array:
    """Target logits before scaling, of the cosines with the own class, `[B]` -> `[B]`.

    Args:
      own: cosines with the own class.
      config: has the `margin`, `easy_margin` and `gradient` of `arcface`.
      share: of the margin, 0 to 1.
    """
    straight = config.gradient == "straight"
    return angular_margin(own, share * config.margin, easy=config.easy_margin, straight=straight)


@losses.register("arcface")
class ArcFace(MarginLoss):
    """ArcFace (Deng et al., arXiv 1801.07698; after public code): `cos(theta + m)` for the own class."""

    @dataclass(frozen=True)
    class Config(MarginLoss.Config):
        """Settings, beside those of `MarginLoss`.

        Attributes:
          margin: `m`, an angle of 0 to 1.5.
          easy_margin: apply the margin only where the cosine is above 0, see `angular_margin`.
          gradient: "exact", or "straight" (straight-through): that of `cos(theta)`, as in InsightFace's arcface_torch.
        """

        margin: float = 0.5
        easy_margin: bool = False
        gradient: str = "exact"

        def __post_init__(self) -> None:
            super().__post_init__()
            check_margin("margin", self.margin)
            check_gradient(self.gradient)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces = self.compared(outputs, batch)
        return self.entropy(faces, arcface_targets(faces.own, self.config, self.share())), faces.figures
