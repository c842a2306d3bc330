"""CCFace: ArcFace on T_d's class centers, with a milder margin for faces that are hard, and two views of a face."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Metrics, Outputs, check_at_least_0
from gdrd_jax.losses.logits import mean_of_known
from gdrd_jax.losses.margin import angular_margin, unit
from gdrd_jax.losses.margin_distillation import CenterLoss, center_cosines
from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.registry import losses


def milder_margins(student: jax.Array, teacher: jax.Array, own: jax.Array, margin: float, power: float) -> jax.Array:
    """`m_i = m clip(cos(T_d(x_i), center), 0, 1)^power clip(cos(S(lr_i), T_d(x_i)), 0, 1)`, without gradient: `[B]`.

    Args:
      student, teacher: embeddings `[B, D]`, unit length.
      own: cosine of each row of `teacher` with the center of its class, `[B]`.
      margin: `m`.
      power: exponent of the first factor.
    """
    agreement = jnp.clip(jnp.sum(student * teacher, axis=-1), 0, 1)
    return jax.lax.stop_gradient(margin * jnp.clip(own, 0, 1) ** power * agreement)


class Predictor(nnx.Module):
    """`P`: linear, batch normalization, ReLU, linear; `[b, D]` -> `[b, D]`."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.first, self.second = nnx.Linear(dim, dim, use_bias=False, rngs=rngs), nnx.Linear(dim, dim, rngs=rngs)
        self.norm = BatchNorm(dim, dtype=jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.relu(self.norm(self.first(x))))


@losses.register("ccface")
class CCFace(CenterLoss):
    """CCFace (Saadabadi et al., arXiv 2308.09230; our reading of the abstract): ArcFace on T_d's class centers, which
    are fixed, with a margin that is milder where T_d is unsure or the student cannot follow it, and agreement of two
    views of a face.

    Both views go through the student, that of the second without gradient and that of the first through a predictor
    (SimSiam, Chen and He, arXiv 2011.10566). The method, as we understand it, takes a moving average of the student for
    the second view; a loss has no access to its weights. The sampler `views` gives two degradations of one face; the
    agreement counts for faces without identity, too.
    """

    needs = CenterLoss.needs | {"second"}

    @dataclass(frozen=True)
    class Config(CenterLoss.Config):
        """Settings, beside those of `MarginLoss`.

        Attributes:
          margin: `m`, the largest angle, 0 to 1.5.
          power: how much the margin falls with T_d's cosine with the class center, at least 0, see `milder_margins`.
          view_weight: of the agreement of the views, at least 0.
        """

        margin: float = 0.5
        power: float = 1.0
        view_weight: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            check_at_least_0(self, "power", "view_weight")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, info, rngs=rngs)
        self.predictor = Predictor(info.embedding_dim, rngs=rngs)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        faces = self.compared(outputs, batch)
        student, teacher = map(sharding.gathered, (unit(outputs.embedding), outputs.teacher))
        own = center_cosines(teacher, self.classes[...], faces.labels)
        margins = milder_margins(student, teacher, own, self.config.margin, self.config.power)
        loss = self.entropy(faces, angular_margin(faces.own, self.share() * margins))
        views = self.view_cosine(outputs, batch["has_second"])
        figures = {"milder_margin": mean_of_known(margins, faces.labels), "view_cosine": views}
        return loss + self.config.view_weight * (1 - views), {**faces.figures, **figures}

    def view_cosine(self, outputs: Outputs, known: jax.Array) -> jax.Array:
        """Mean cosine between the predictor's output for a view and the second view, where there is one; else 1."""
        assert outputs.embedding is not None and outputs.second is not None  # `needs` has them
        first = unit(self.predictor(outputs.embedding.astype(jnp.float32)))
        second = jax.lax.stop_gradient(unit(outputs.second.embedding))
        distance = 1 - jnp.sum(first * second, axis=-1)
        return 1 - sharding.mean_where(distance, known)
