"""What a loss is, and what it gets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Fixed(nnx.Variable):
    """A constant of a loss or stage, such as target statistics: saved and moved, never trained."""


class State(nnx.Variable):
    """State that a loss updates itself, such as a memory bank or a moving average; saved with checkpoints.

    It must stay the same on all devices: compute updates from the whole batch, by `distributed.sharding.replicated`.
    Only state that has one entry a class can be divided among them, by `distributed.class_parallel.divide`. A row that
    occurs twice in a batch must not be set twice, for the order is undefined: take the mean.
    """


@dataclass(frozen=True)
class DataInfo:
    """What a loss may know of the training set before the first step.

    Attributes:
      identities: number of identities, K.
      images: number of images, N; `index` of a batch is in `range(N)`.
      embedding_dim: dimension of T_d's embedding and of the student's, D.
      centers: the normalized mean T_d embedding of each identity, float32 `[K, D]`; None without T_d.
      feature_shape: `(h, w, C)` of the backbone's features.
      target_shape: `(C, h, w)` of T_g's features; None without T_g.
      target_statistics: function without arguments that gives mean `[C, h, w]` and standard deviation `[C]` of T_g's
        features over the training set, float32; None without T_g.
      stage_shapes: `(h, w, C)` of the features of each stage of the backbone; empty where no loss needs them.
      hr_shape: `(C, 4, 4)` of T_d's feature maps; None where no loss needs them.
      hr_statistics: as `target_statistics`, of T_d's feature maps.
      hr_small_shape: `(S, S, C)` of the images at a higher resolution, S at most 2R; None where no loss needs them.
    """

    identities: int = 0
    images: int = 0
    embedding_dim: int = 0
    centers: np.ndarray | None = None
    feature_shape: tuple[int, int, int] = (0, 0, 0)
    target_shape: tuple[int, int, int] | None = None
    target_statistics: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    stage_shapes: tuple[tuple[int, int, int], ...] = ()
    hr_shape: tuple[int, int, int] | None = None
    hr_statistics: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    hr_small_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Outputs:
    """What the student gives for the part of a batch on this device, of b images.

    Attributes:
      features: of the backbone, float `[b, h, w, C]`.
      embedding: of the head, float `[b, D]`, not normalized; None where no loss needs it.
      logits: of the stage's linear classifier on the embeddings of the whole batch, float `[B, K]` (of the classes of
        this device, see `distributed.class_parallel`); None where no loss needs them.
      teacher: T_d's embeddings, float32 `[b, D]`, of unit length; None where no loss needs them.
      stages: features of each stage of the backbone, float `[b, h', w', C']`, the last are `features`; None where no
        loss needs them.
      second: the same of the second image of each row (see `data.samplers`), without logits; None where no loss needs
        it.
    """

    features: jax.Array
    embedding: jax.Array | None = None
    logits: jax.Array | None = None
    teacher: jax.Array | None = None
    stages: tuple[jax.Array, ...] | None = None
    second: "Outputs | None" = None


def check_at_least_0(config: Any, *names: str) -> None:
    """For the `__post_init__` of a `Config`: raises `ValueError` where one of these settings is below 0."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 0")


class Loss(nnx.Module):
    """A term of a stage's loss: a float32 scalar of the whole batch, the same on all devices.

    A loss may own parameters (`nnx.Param`: classifiers, critics, projections), constants (`Fixed`) and state (`State`).
    All of it is in the checkpoints, and none of it in the trained student.

    Attributes:
      Config: frozen dataclass of the loss's settings; its docstring documents them, its `__post_init__` raises
        `ValueError` for values out of range.
      needs: what the loss reads; the pipeline makes the stores behind it, and no others.
        Of `Outputs`: "embedding", "logits" (a linear classifier over identities), "discriminative" (T_d's embeddings),
        "stages" (features of each stage of the backbone), "second" (`Outputs.second`, and `has_second` of a batch, bool
        `[b]`; from a sampler).
        Of a batch, under these names: "label", "index" (row of the training set), "balanced" (rows that were sampled by
        identity, bool `[b]`; from a sampler), "generative" (T_g's features, float16 `[b, C, h, w]`), "assistant"
        (embeddings of an earlier stage's student, float16 `[b, D]`, of unit length), "hr_small" (the images at twice
        the resolution, uint8 `[b, 2R, 2R, C]`), "hr_features" (a feature map inside T_d of the full-size images,
        averaged to 4x4 positions, float16 `[b, C, 4, 4]`), "selected" (weights of a stage's selection, float32 `[b]`).

    Args:
      config: a `Config`.
      info: see `DataInfo`.
      rngs: of the initial parameters.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config = config

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The value, which has to be the same on all devices, and figures to log, whose mean over devices is logged.

        Args:
          outputs: see `Outputs`.
          batch: see `training.stages.Stage.loss`.
          key: of this step, the same on all devices.
        """
        raise NotImplementedError
