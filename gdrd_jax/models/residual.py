"""Residual networks of basic blocks (He et al., arXiv 1512.03385), and the head that goes with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.models.student import Backbone


@dataclass(frozen=True)
class Stage:
    """Basic blocks at one size.

    Attributes:
      channels: number of output channels.
      blocks: number of blocks.
      stride: of the first block.
    """

    channels: int
    blocks: int
    stride: int


def _conv(inputs: int, outputs: int, size: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs, outputs, (size, size), strides=stride, padding=size // 2, use_bias=False,
        kernel_init=nnx.initializers.kaiming_normal(), dtype=dtype, rngs=rngs,
    )  # fmt: skip


def _relu(x: jax.Array) -> jax.Array:
    # As a choice between two arrays XLA computes it once. A maximum it computes anew, with all of the normalization
    # before it, wherever it is read, for one transposing the 5th at width 1.0 in 90 ms of a step's 1,700 on two cores.
    return jnp.where(x > 0, x, 0)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (He et al., figure 5)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.final_relu = True
        self.conv1 = _conv(inputs, outputs, 3, stride, dtype, rngs)
        self.norm1 = BatchNorm(outputs, dtype=dtype)
        self.conv2 = _conv(outputs, outputs, 3, 1, dtype, rngs)
        self.norm2 = BatchNorm(outputs, dtype=dtype)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nnx.Sequential(
            _conv(inputs, outputs, 1, stride, dtype, rngs), BatchNorm(outputs, dtype=dtype)
        )  # fmt: skip

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return _relu(y) if self.final_relu else y


def _blocks(inputs: int, stage: Stage, dtype: DTypeLike, rngs: nnx.Rngs) -> list[BasicBlock]:
    return [
        BasicBlock(stage.channels if i else inputs, stage.channels, 1 if i else stage.stride, dtype, rngs)
        for i in range(stage.blocks)
    ]


def side_after(resolution: int, strides: Sequence[int]) -> int:
    """Side in pixels of what convolutions of these strides leave."""
    for stride in strides:
        resolution = math.ceil(resolution / stride)
    return resolution


class ResidualBackbone(Backbone):
    """A 3x3 stem and stages of basic blocks.

    Args:
      inputs: channels of the images.
      stem_stride: stride of the stem, whose channels are those of the first stage.
      stages: at least one.
      dtype: computation type; parameters are float32.
    """

    def __init__(self, inputs: int, stem_stride: int, stages: Sequence[Stage], *, dtype: DTypeLike, rngs: nnx.Rngs):
        channels = stages[0].channels
        self.stem = _conv(inputs, channels, 3, stem_stride, dtype, rngs)
        self.norm = BatchNorm(channels, dtype=dtype)
        self.blocks = nnx.List()
        self.ends = tuple(sum(stage.blocks for stage in stages[: i + 1]) for i in range(len(stages)))
        for stage in stages:
            self.blocks.extend(_blocks(channels, stage, dtype, rngs))
            channels = stage.channels
        # Eq. 1 matches f with features of either sign, so f is taken before the last ReLU.
        self.blocks[-1].final_relu = False

    def stages(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Features of each stage, see `Backbone.stages`."""
        x = images.astype(jnp.float32) / 127.5 - 1.0
        x = _relu(self.norm(self.stem(x)))
        found = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number in self.ends:
                found.append(x)
        return tuple(found)


class Head(nnx.Module):
    """`S_h`: features to an embedding, by fully connected layers.

    Args:
      inputs: channels of the features.
      stages: convolutional stages before the fully connected layers.
      hidden: widths of the hidden fully connected layers.
      embedding_dim: dimension of the embedding.
      size: side of the features that reach the fully connected layers.
    """

    def __init__(
        self, inputs: int, stages: Sequence[Stage], hidden: Sequence[int], embedding_dim: int, *, size: int,
        dtype: DTypeLike, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.blocks = nnx.List()
        for stage in stages:
            self.blocks.extend(_blocks(inputs, stage, dtype, rngs))
            inputs = stage.channels
        widths = [inputs * size**2, *hidden, embedding_dim]
        # As in heads of InsightFace. Features of a frozen backbone can be of any scale; no rate of learning suits all.
        self.norm = BatchNorm(widths[0], dtype=dtype)
        self.layers = nnx.List(
            nnx.Linear(a, b, kernel_init=nnx.initializers.kaiming_normal(), dtype=dtype, rngs=rngs)
            for a, b in zip(widths, widths[1:])
        )

    def __call__(self, features: jax.Array) -> jax.Array:
        """`[B, h, w, C]` -> float32 embedding `[B, D]`, not normalized."""
        x = features
        for block in self.blocks:
            x = block(x)
        x = self.norm(x.reshape(x.shape[0], -1))
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x).astype(jnp.float32)


def scaled(channels: int, width: float) -> int:
    """A number of channels times the width, at least 8."""
    return max(8, round(channels * width))
