"""RPCL: the most similar other class of a face is pushed away harder."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.arcface import arcface_targets
from gdrd_jax.losses.interface import Batch, Metrics, Outputs
from gdrd_jax.losses.logits import mean_of_known
from gdrd_jax.losses.magface import Magnitude, magnitude_targets
from gdrd_jax.losses.margin import MarginLoss, check_gradient, check_margin, margin_loss, plus_angle
from gdrd_jax.registry import losses

REPOSITORY_FACTOR = 0.2


def rivals(cosines: jax.Array, labels: jax.Array, identities: int) -> jax.Array:
    """The class, other than its own, that is most similar to each face; the first one among equals.

    Args:
      cosines: `[B, K]`, for the whole batch and the classes of this device (see `class_parallel`).
      labels: int `[B]`, -1 for a face without identity.
      identities: number of classes on all devices together.

    Returns:
      Class numbers, int `[B]`.
    """
    known = class_parallel.own_logits(jax.lax.stop_gradient(cosines), identities)
    others = class_parallel.with_labels(known, labels, jnp.full(len(labels), class_parallel.NO_CLASS))
    most = others.max(axis=1)
    number = sharding.device_index() * others.shape[1] + jnp.argmax(others, axis=1)
    return -sharding.maximum(-jnp.where(most == sharding.maximum(most), number, identities))


@losses.register("rpcl")
class RivalPenalized(MarginLoss):
    """RPCL (Li et al., arXiv 2108.01286; after the authors' code where that follows the paper): CosFace, ArcFace
    or MagFace, in which the cosine with the most similar other class, the rival, is raised by a margin if it exceeds a
    threshold.

    The authors' code of CosFace and ArcFace differs from the paper, which `rival` offers as "repo_scale": the cosine of
    the rival, enlarged by the margin of the own class, is multiplied by 0.2, which lowers it. Other bugs of that code
    are not reproduced: ArcFace's writes the cosine of the own class into that of a rival below the threshold, and
    rivals within 1e-4 of the largest softmax of unscaled cosines are passed over.

    `active_rivals`, the share of faces with a rival above the threshold, is often 0 at 16x16; then the loss equals its
    base.
    """

    @dataclass(frozen=True)
    class Config(Magnitude):
        """Settings, beside those of `MarginLoss`, and those of `Magnitude` for the base "mag".

        Attributes:
          base: "cos", "arc" or "mag": CosFace, ArcFace or MagFace.
          margin: of CosFace or ArcFace; 0.2 for "cos", 0.5 for "arc". MagFace has `min_margin` to `max_margin`.
          rival_margin: how much more similar the rival counts, a cosine for "cos" and an angle otherwise; 0.1, our
            reading, and for "mag" 0.225.
          threshold: of the rival's cosine; 1 and more turn this loss into its base. In the authors' code it is 0.8 for
            "arc" and 0.7 otherwise.
          rival: "raise" or "repo_scale", see above.
          gradient: of the base "arc", "exact" or "straight", as of `arcface`.
        """

        base: str = "cos"
        margin: float = 0.2
        rival_margin: float = 0.1
        threshold: float = 0.7
        rival: str = "raise"
        gradient: str = "exact"

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.base not in ("cos", "arc", "mag"):
                raise ValueError(f"base is {self.base!r}; it can be cos, arc, mag")
            if self.rival not in ("raise", "repo_scale"):
                raise ValueError(f"rival is {self.rival!r}; it can be raise, repo_scale")
            if self.base == "mag":
                self.check_magnitude()
                if self.rival == "repo_scale":
                    raise ValueError("rival is 'repo_scale', which is of the bases cos and arc; mag raises the rival")
            check_gradient(self.gradient)
            check_margin("margin", self.margin)
            check_margin("rival_margin", self.rival_margin)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces, config, share = self.compared(outputs, batch), self.config, self.share()
        penalty: jax.Array | float = 0.0
        figures: Metrics = {}
        if config.base == "cos":
            targets = faces.own - share * config.margin
        elif config.base == "arc":
            targets = arcface_targets(faces.own, config, share)
        else:
            targets, penalty, figures = magnitude_targets(faces, config, share)
        rival = rivals(faces.cosines, faces.labels, self.identities)
        cosine = class_parallel.of_labels(faces.cosines, rival)
        active = cosine > config.threshold
        cosines = class_parallel.with_labels(faces.cosines, rival, jnp.where(active, self.altered(cosine), cosine))
        loss = margin_loss(cosines, faces.labels, targets, scale=config.scale, identities=self.identities)
        figures = {"active_rivals": mean_of_known(active, faces.labels), **figures}
        return loss + penalty, {**faces.figures, **figures}

    def altered(self, cosine: jax.Array) -> jax.Array:
        """What stands for the cosine with an active rival, `[B]` -> `[B]`."""
        config = self.config
        as_in_code = config.rival == "repo_scale"
        nearer, factor = (config.margin, REPOSITORY_FACTOR) if as_in_code else (config.rival_margin, 1.0)
        if config.base == "cos":
            return factor * (cosine + nearer)
        return factor * jnp.where(cosine < jnp.cos(nearer), plus_angle(cosine, -nearer), 1.0)
