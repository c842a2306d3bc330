"""Eq. 1 of GDRD (arXiv 2409.06371): the backbone's features are regressed onto T_g's; FitNet's hint onto T_d's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax.distributed import sharding
from gdrd_jax.losses.interface import Batch, DataInfo, Fixed, Loss, Metrics, Outputs
from gdrd_jax.registry import losses


def generative_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Eq. 1: `mean_i ||R(S_b(lr_i)) - T_g(lr_i)||^2`, per feature element.

    The paper's sum over the elements of a feature map is a mean here, which changes only the suitable learning rate.
    With standardized targets, the loss is then the unexplained share of the variance, 1 - R^2.

    Args:
      prediction: `R(S_b(lr))`, float `[B, ...]`.
      target: `T_g(lr)`, same shape; receives no gradient.
    """
    difference = prediction.astype(jnp.float32) - jax.lax.stop_gradient(target)
    return sharding.mean(jnp.mean(difference**2))


@losses.register("feature_regression")
class FeatureRegression(Loss):
    """Mean squared error between `R(S_b(lr))` and T_g's features, standardized (Eq. 1).

    The mean over faces is subtracted at each position: for aligned faces it is half of the variance, and it says
    nothing about identity.

    `R` is the identity where shapes agree, else a 1x1 convolution: after average pooling where the targets are
    coarser, and where they are n times finer to n x n outputs a position (the sub-pixel convolution of Shi et al.,
    arXiv 1609.05158), because interpolated features could not follow them.
    """

    needs = frozenset({"generative"})

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        self.config = config
        assert info.target_shape is not None and info.target_statistics is not None  # `needs` has T_g's features
        channels, height, width = info.target_shape
        self.target_size = (height, width)
        same = (self.target_size, channels) == (info.feature_shape[:2], info.feature_shape[2])
        self.finer = _times(self.target_size, info.feature_shape[:2])
        outputs = channels * self.finer[0] * self.finer[1]
        self.regressor = None if same else nnx.Conv(info.feature_shape[2], outputs, (1, 1), rngs=rngs)
        mean, std = info.target_statistics()
        self.mean, self.std = Fixed(jnp.asarray(mean)), Fixed(jnp.asarray(std))

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        target = self.standardize(batch["generative"])
        loss = generative_loss(self.predict(outputs.features), target)
        square = sharding.mean(jnp.mean(target**2))
        return loss, {"r2": jnp.where(square > 0, 1 - loss / square, 0.0)}

    def predict(self, features: jax.Array) -> jax.Array:
        """`R` of the backbone's features `[B,h,w,C]`, in standardized units."""
        features = _pooled(features, self.target_size)
        if self.regressor is not None:
            features = _spread(self.regressor(features), self.finer)
        return resized(features, self.target_size)

    def statistics(self) -> tuple[jax.Array, jax.Array]:
        """Mean `[C,h,w]` and standard deviation `[C]` of T_g's features."""
        return self.mean[...], self.std[...]

    def standardize(self, target: jax.Array) -> jax.Array:
        """Teacher features `[B,C,h,w]` -> `[B,h,w,C]`, zero mean at each position and unit variance per channel."""
        return standardized(target, *self.statistics())


@losses.register("hint")
class Hint(FeatureRegression):
    """FitNet's hint: mean squared error between `R(S_b(lr))` and T_d's feature map on the full-size image, standardized
    (Romero et al., arXiv 1412.6550; after others' code).

    The others' code is RepDistiller, whose weight is 100. Its `R` has batch normalization and a ReLU; targets that are
    standardized are of either sign, so `R` is that of `feature_regression` here, and the mean over faces is subtracted
    at each position, too.

    Logged: `hint_r2`, the share of the variance that is explained.
    """

    needs = frozenset({"hr_features"})

    def __init__(self, config: Any, info: DataInfo, *, rngs: nnx.Rngs) -> None:
        info = dataclasses.replace(info, target_shape=info.hr_shape, target_statistics=info.hr_statistics)
        super().__init__(config, info, rngs=rngs)

    def __call__(self, outputs: Outputs, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        loss, metrics = super().__call__(outputs, {**batch, "generative": batch["hr_features"]}, key)
        return loss, {"hint_r2": metrics["r2"]}


class TeacherFeatures(nnx.Module):
    """A teacher's features, standardized, without gradient. In place of a backbone, T_g's are the paper's "SR".

    Args:
      mean, std: mean and standard deviation of the features, float `[C,h,w]` and `[C]`.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray):
        self.mean, self.std = Fixed(jnp.asarray(mean)), Fixed(jnp.asarray(std))

    def __call__(self, features: jax.Array) -> jax.Array:
        """`[B,C,h,w]` -> float32 `[B,h,w,C]`."""
        return standardized(jax.lax.stop_gradient(features), self.mean[...], self.std[...])


def standardized(features: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """`[B,C,h,w]`, mean `[C,h,w]`, standard deviation `[C]` -> float32 `[B,h,w,C]`."""
    return (features.astype(jnp.float32) - mean).transpose(0, 2, 3, 1) / std


def resized(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Feature maps of another size, `[B,h,w,C]` -> `[B,*size,C]`: means of blocks where that is a whole number of times
    smaller, else interpolated."""
    if x.shape[1:3] == size:
        return x
    x = _pooled(x, size)
    return x if x.shape[1:3] == size else jax.image.resize(x, (*x.shape[:1], *size, x.shape[3]), "linear")


def _times(size: Sequence[int], of: Sequence[int]) -> tuple[int, int]:
    """How many times larger, along both axes, where it is a whole number; else 1."""
    return (size[0] // of[0], size[1] // of[1]) if size[0] % of[0] == size[1] % of[1] == 0 else (1, 1)


def _pooled(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Means of blocks, `[B,h,w,C]` -> `[B,*size,C]` where that is a whole number of times smaller."""
    down, across = _times(x.shape[1:3], size)
    blocks = x.reshape(len(x), x.shape[1] // down, down, x.shape[2] // across, across, x.shape[3])
    return blocks.mean(axis=(2, 4))


def _spread(x: jax.Array, times: tuple[int, int]) -> jax.Array:
    """Depth to space: `[B,h,w,m*n*C]` -> `[B,h*m,w*n,C]`."""
    (batch, height, width, _), (down, across) = x.shape, times
    blocks = x.reshape(batch, height, width, down, across, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, height * down, width * across, -1)
