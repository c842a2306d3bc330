"""Evolutionary knowledge distillation: a second network at a higher resolution learns together with the student."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs, check_at_least_0
from gdrd_jax.losses.logits import accuracy, classification_loss, distillation_loss
from gdrd_jax.models.arguments import check_shared
from gdrd_jax.models.layers import scaled
from gdrd_jax.models.relation import normalize
from gdrd_jax.models.student import Shape
from gdrd_jax.models.students.gdrd import CHANNELS, GDRDStudent
from gdrd_jax.registry import losses

HIDDEN = 128  # of a guided module


class Guided(nnx.Module):
    """A guided module: mean over positions, linear - ReLU - linear; float `[b, h, w, C]` -> float32 `[b, D]`."""

    def __init__(self, channels: int, embedding_dim: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(channels, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, embedding_dim, rngs=rngs)

    def __call__(self, maps: jax.Array) -> jax.Array:
        return self.second(nnx.relu(self.first(maps.astype(jnp.float32).mean(axis=(1, 2)))))


@losses.register("ekd_evolutionary")
class EvolutionaryDistillation(Loss):
    """Evolutionary knowledge distillation: an online teacher at twice the resolution learns with the student and
    teaches it from the start, by logits and by guided modules after each stage (arXiv 2103.13811; our reading of the
    abstract).

    The online teacher is GDRD's network on faces of twice the resolution, with a linear classifier V of its own. With
    guided modules g after each of its stages it minimizes `CE(z_T, y) + mean_k CE(V g_T,k, y)`. The student minimizes
    `distillation * T^2 KL(softmax(z_T / T) || softmax(z_S / T)) + guidance * mean_k ||g_S,k - g_T,k||^2`, g of unit
    length, in which the teacher has no gradient; its own cross-entropy is the loss `cls`. One step trains both; the
    online teacher makes a step about twice as long. A student with another number of stages than three is compared in
    the last ones. T_d is not used.

    Logged: `online_accuracy`, that of the online teacher on the batch; `guided_distance`, the last term.
    """

    needs = frozenset({"label", "logits", "stages", "hr_small"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          temperature: T of both softmaxes, above 0.
          distillation: weight of the logits, at least 0.
          guidance: weight of the guided modules, at least 0.
          width: factor on the channels of the online teacher, as of the student "gdrd".
          dtype: computation type of the online teacher, "float32" or "bfloat16".
        """

        temperature: float = 4.0
        distillation: float = 1.0
        guidance: float = 1.0
        width: float = 1.0
        dtype: str = "float32"

        def __post_init__(self) -> None:
            check_shared(self.width, (), self.dtype)
            if not self.temperature > 0:
                raise ValueError("temperature must be above 0")
            check_at_least_0(self, "distillation", "guidance")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        assert info.hr_small_shape is not None  # `needs` has the faces
        self.config, self.identities, dim = config, info.identities, info.embedding_dim
        settings = GDRDStudent.Config(width=config.width, dtype=config.dtype)
        self.network = GDRDStudent(settings, Shape(info.hr_small_shape[0], info.hr_small_shape[2], dim), rngs=rngs)
        self.classifier = class_parallel.classifier(dim, info.identities, rngs=rngs)
        self.levels = min(len(info.stage_shapes), len(CHANNELS))
        teacher, student = [scaled(c, config.width) for c in CHANNELS], [shape[2] for shape in info.stage_shapes]
        self.teacher_modules, self.student_modules = (
            nnx.List(Guided(size, dim, rngs=rngs) for size in sizes[-self.levels :]) for sizes in (teacher, student)
        )

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        assert outputs.stages is not None  # `needs` has them
        label = sharding.gathered(batch["label"])
        stages = self.network.backbone.stages(batch["hr_small"])
        guides = self._guides(self.teacher_modules, stages)
        logits = self._logits(self.network.head(stages[-1]))
        online = classification_loss(logits, label)
        online += sum(classification_loss(self._logits(guide), label) for guide in guides) / self.levels
        taught = distillation_loss(outputs.logits, logits, self.config.temperature)
        found = self._guides(self.student_modules, outputs.stages)
        pairs = zip(map(normalize, found), map(normalize, jax.lax.stop_gradient(guides)))
        distance = sharding.mean(sum(jnp.mean(jnp.sum((s - t) ** 2, axis=-1)) for s, t in pairs) / self.levels)
        loss = online + self.config.distillation * taught + self.config.guidance * distance
        return loss, {"online_accuracy": accuracy(logits, label), "guided_distance": distance}

    def _guides(self, modules: Sequence[Guided], stages: Sequence[jax.Array]) -> list[jax.Array]:
        return [module(maps) for module, maps in zip(modules, stages[-self.levels :])]

    def _logits(self, embedding: jax.Array) -> jax.Array:
        return class_parallel.own_logits(self.classifier(sharding.gathered(embedding)), self.identities)
