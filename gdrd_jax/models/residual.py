"""Residual networks of basic blocks (He et al., arXiv 1512.03385), and the head that goes with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gdrd_jax.models.layers import convolution, normalized, relu
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


Downsampling = Callable[[jax.Array], jax.Array]  # `[B, h, w, C]` -> `[B, h/2, w/2, C]`


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (He et al., figure 5).

    Args:
      downsampling: instead of a stride of 2, before the second convolution and in the shortcut before its convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs,
        downsampling: Downsampling | None = None,
    ):  # fmt: skip
        assert stride in (1, 2) or not downsampling
        self.final_relu = True
        self.downsampling = downsampling if stride > 1 else None
        conv_stride = 1 if downsampling else stride
        self.conv1 = convolution(inputs, outputs, 3, conv_stride, dtype, rngs)
        self.norm1 = BatchNorm(outputs, dtype=dtype)
        self.conv2 = convolution(outputs, outputs, 3, 1, dtype, rngs)
        self.norm2 = BatchNorm(outputs, dtype=dtype)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nnx.Sequential(
            convolution(inputs, outputs, 1, conv_stride, dtype, rngs), BatchNorm(outputs, dtype=dtype)
        )  # fmt: skip

    def __call__(self, x: jax.Array) -> jax.Array:
        y = relu(self.norm1(self.conv1(x)))
        if self.downsampling:
            x, y = self.downsampling(x), self.downsampling(y)
        y = self.norm2(self.conv2(y))
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return relu(y) if self.final_relu else y


def _blocks(
    inputs: int, stage: Stage, dtype: DTypeLike, rngs: nnx.Rngs, downsampling: Downsampling | None
) -> list[BasicBlock]:  # fmt: skip
    return [
        BasicBlock(stage.channels if i else inputs, stage.channels, 1 if i else stage.stride, dtype, rngs, downsampling)
        for i in range(stage.blocks)
    ]


class ResidualBackbone(Backbone):
    """A 3x3 stem and stages of basic blocks.

    Args:
      inputs: channels of the images.
      stem_stride: stride of the stem, whose channels are those of the first stage.
      stages: at least one.
      dtype: computation type; parameters are float32.
      downsampling: instead of strides of 2, see `BasicBlock`; after the stem's activation.
    """

    def __init__(
        self, inputs: int, stem_stride: int, stages: Sequence[Stage], *, dtype: DTypeLike, rngs: nnx.Rngs,
        downsampling: Downsampling | None = None,
    ):  # fmt: skip
        channels = stages[0].channels
        self.downsampling = downsampling if stem_stride > 1 else None
        self.stem = convolution(inputs, channels, 3, 1 if downsampling else stem_stride, dtype, rngs)
        self.norm = BatchNorm(channels, dtype=dtype)
        self.blocks = nnx.List()
        self.ends = tuple(sum(stage.blocks for stage in stages[: i + 1]) for i in range(len(stages)))
        for stage in stages:
            self.blocks.extend(_blocks(channels, stage, dtype, rngs, downsampling))
            channels = stage.channels
        # Eq. 1 matches f with features of either sign, so f is taken before the last ReLU.
        self.blocks[-1].final_relu = False

    def stages(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Features of each stage, see `Backbone.stages`."""
        x = relu(self.norm(self.stem(normalized(images))))
        if self.downsampling:
            x = self.downsampling(x)
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
      downsampling: instead of strides of 2, see `BasicBlock`.
    """

    def __init__(
        self, inputs: int, stages: Sequence[Stage], hidden: Sequence[int], embedding_dim: int, *, size: int,
        dtype: DTypeLike, rngs: nnx.Rngs, downsampling: Downsampling | None = None,
    ):  # fmt: skip
        self.blocks = nnx.List()
        for stage in stages:
            self.blocks.extend(_blocks(inputs, stage, dtype, rngs, downsampling))
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
