"""BridgeDistill: the student learns from T_d's embeddings as an adaptor makes them fit the identities at hand."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gdrd_jax.distributed import class_parallel, sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Loss, Metrics, Outputs, check_at_least_0
from gdrd_jax.losses.logits import accuracy, classification_loss
from gdrd_jax.losses.margin import unit
from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.registry import losses


@losses.register("bridge")
class BridgeDistill(Loss):
    """BridgeDistill: an adaptor makes T_d's embeddings fit the identities, and the student learns the adapted
    embeddings and the classifier on them (arXiv 2409.11786; our reading of the abstract).

    The adaptor A, linear - batch normalization - ReLU - linear, a linear classifier V and a linear regressor R back to
    T_d's embeddings t minimize `CE(V A(t), y) + regression * mean ||R A(t) - t||^2`. The student's embeddings s
    minimize `CE(V s, y) + distance * mean ||s / |s| - A(t) / |A(t)| ||^2`, in which A and V have no gradient. Faces
    without identity do not count in the cross-entropies.

    The method trains A, V and R first, and the student then with both fixed; here both sums are minimized together,
    which is our deviation. A(t) has the dimension of T_d's embeddings, because the student's do. Its norm grows while
    it learns, so the distance is that of directions.

    Logged: `adapted_accuracy`, the share of faces that V classifies rightly by A(t); `adapted_distance`, the mean
    squared distance of the student at unit length, 0 to 4.
    """

    needs = frozenset({"embedding", "label", "discriminative"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          regression: weight of the regression of T_d's embeddings, at least 0.
          distance: weight of the distance between the student's and the adapted embeddings, at least 0.
        """

        regression: float = 0.1
        distance: float = 1.0

        def __post_init__(self) -> None:
            check_at_least_0(self, "regression", "distance")

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config, self.identities, dim = config, info.identities, info.embedding_dim
        self.adaptor = nnx.Sequential(
            nnx.Linear(dim, dim, rngs=rngs), BatchNorm(dim, dtype=jnp.float32), nnx.relu,
            nnx.Linear(dim, dim, rngs=rngs),
        )  # fmt: skip
        self.regressor = nnx.Linear(dim, dim, rngs=rngs)
        self.classifier = class_parallel.classifier(dim, info.identities, rngs=rngs)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        assert outputs.embedding is not None  # `needs` has it
        teacher, student = jax.lax.stop_gradient(outputs.teacher), outputs.embedding.astype(jnp.float32)
        label = sharding.gathered(batch["label"])
        adapted = self.adaptor(teacher)
        kernel, bias = self.classifier.kernel[...], self.classifier.bias[...]
        logits = self._logits(adapted, kernel, bias)
        bridge = classification_loss(logits, label)
        bridge += self.config.regression * _squared_distance(self.regressor(adapted), teacher)
        adapted, kernel, bias = jax.lax.stop_gradient((adapted, kernel, bias))
        distance = _squared_distance(unit(student), unit(adapted))
        taught = classification_loss(self._logits(student, kernel, bias), label) + self.config.distance * distance
        return bridge + taught, {"adapted_accuracy": accuracy(logits, label), "adapted_distance": distance}

    def _logits(self, embedding: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return class_parallel.own_logits(sharding.gathered(embedding) @ kernel + bias, self.identities)


def _squared_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean over the batch of `||a_i - b_i||^2`, of the parts `[b, D]` on each device."""
    return sharding.mean(jnp.mean(jnp.sum((a - b) ** 2, axis=-1)))
