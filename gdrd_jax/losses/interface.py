"""The interface of losses: the base class, and the data that a loss receives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Fixed(nnx.Variable):
    """A constant of a loss or stage, such as target statistics: it is saved in checkpoints but never trained."""


class State(nnx.Variable):
    """State that a loss updates itself, such as a memory bank or a moving average; it is saved in checkpoints.

    It must stay the same on all devices: compute updates from the whole batch, with `distributed.sharding.replicated`.
    Only state with one entry per class can be divided among the devices, with `distributed.class_parallel.divide`. If
    a row occurs twice in a batch, do not set it twice, because the order is undefined: use the mean.
    """


@dataclass(frozen=True)
class DataInfo:
    """Facts about the training set that a loss may use before the first step.

    Attributes:
      identities: number K of identities.
      images: number N of images; `index` of a batch is in `range(N)`.
      embedding_dim: dimension D of T_d's embedding and of the student's.
      centers: the normalized mean T_d embedding of each identity, float32 `[K, D]`; None without T_d.
      center_lengths: the length of the sum of the T_d embeddings of each identity, float32 `[K]`; None without T_d.
      feature_shape: `(h, w, C)` of the backbone's features.
      target_shape: `(C, h, w)` of T_g's features; None without T_g.
      target_statistics: function without arguments that returns mean `[C, h, w]` and standard deviation `[C]` of T_g's
        features over the training set, float32; None without T_g.
      stage_shapes: `(h, w, C)` of the features of each stage of the backbone; empty if no loss needs them.
      hr_shape: `(C, 4, 4)` of T_d's feature maps; None if no loss needs them.
      hr_statistics: like `target_statistics`, for T_d's feature maps.
      hr_small_shape: `(S, S, C)` of the images at a higher resolution, S at most 2R; None if no loss needs them.
    """

    identities: int = 0
    images: int = 0
    embedding_dim: int = 0
    centers: np.ndarray | None = None
    center_lengths: np.ndarray | None = None
    feature_shape: tuple[int, int, int] = (0, 0, 0)
    target_shape: tuple[int, int, int] | None = None
    target_statistics: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    stage_shapes: tuple[tuple[int, int, int], ...] = ()
    hr_shape: tuple[int, int, int] | None = None
    hr_statistics: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    hr_small_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Outputs:
    """The student's outputs for the b images of a batch that are on this device.

    Each of them but `features` is None if no loss needs it.

    Attributes:
      features: output of the backbone, float `[b, h, w, C]`.
      embedding: output of the head, float `[b, D]`, not normalized.
      logits: logits of the stage's linear classifier for the embeddings of the whole batch, float `[B, K]` (for the
        classes of this device, see `distributed.class_parallel`).
      teacher: T_d's embeddings, float32 `[b, D]`, unit length.
      stages: features of each stage of the backbone, float `[b, h', w', C']`; the last ones are `features`.
      second: the outputs for the second image of each row (see `data.samplers`), without logits.
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
    All of them are saved in the checkpoints, and none in the trained student.

    Attributes:
      Config: frozen dataclass of the loss's settings. Its docstring documents them; its `__post_init__` raises
        `ValueError` for values out of range.
      needs: names of what the loss reads; the pipeline makes the stores behind them, and no others.
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
      rngs: random streams for the initial parameters.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config = config

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the value, which must be the same on all devices, and figures, whose mean over devices is logged.

        Args:
          outputs: see `Outputs`.
          batch: see `training.stages.Stage.loss`.
          key: random key of this step, the same on all devices.
        """
        raise NotImplementedError
