"""MobileNetV3-Large with squeeze-and-excitation (arXiv 1905.02244) for low resolutions, with a head for faces."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gdrd_jax.models.arguments import check_shared
from gdrd_jax.models.layers import STRIDES, ConvNorm, SequentialBackbone, relu, side_after
from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.models.student import Shape, Student
from gdrd_jax.registry import students


class Row(NamedTuple):
    """A row of table 1: a block without its stride."""

    kernel: int
    expansion: int  # channels of the depthwise convolution
    outputs: int
    excites: bool  # whether it has squeeze-and-excitation
    hard_swish: bool  # otherwise ReLU


STEM, FIRST, LAST = 16, Row(3, 16, 16, False, False), 960  # LAST: channels of the 1x1 convolution at the end
STAGES = (  # the first block of each stage has its stride
    (Row(3, 64, 24, False, False), Row(3, 72, 24, False, False)),
    (Row(5, 72, 40, True, False), Row(5, 120, 40, True, False), Row(5, 120, 40, True, False)),
    (
        Row(3, 240, 80, False, True), Row(3, 200, 80, False, True), Row(3, 184, 80, False, True),
        Row(3, 184, 80, False, True), Row(3, 480, 112, True, True), Row(3, 672, 112, True, True),
        Row(5, 672, 160, True, True), Row(5, 960, 160, True, True), Row(5, 960, 160, True, True),
    ),
)  # fmt: skip


def divisible(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not more than 10 % below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcitation(nnx.Module):
    """Gates of the channels from their means (arXiv 1709.01507), with hard sigmoids (section 5.2)."""

    def __init__(self, channels: int, dtype: DTypeLike, rngs: nnx.Rngs):
        squeezed = divisible(channels / 4)
        self.squeeze = nnx.Linear(channels, squeezed, dtype=dtype, rngs=rngs)
        self.excite = nnx.Linear(squeezed, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gates = nnx.hard_sigmoid(self.excite(nnx.relu(self.squeeze(x.mean(axis=(1, 2))))))
        return x * gates[:, None, None]


class Bottleneck(nnx.Module):
    """An inverted residual (figure 4), whose gates stand between normalization and activation function."""

    def __init__(self, inputs: int, row: Row, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        kernel, wide, outputs, excites, hard_swish = row
        self.activation = nnx.hard_swish if hard_swish else relu
        self.expand = (
            None if wide == inputs else ConvNorm(inputs, wide, 1, 1, dtype, rngs, activation=self.activation)
        )  # fmt: skip
        self.depthwise = ConvNorm(wide, wide, kernel, stride, dtype, rngs, depthwise=True, activation=None)
        self.gates = SqueezeExcitation(wide, dtype, rngs) if excites else None
        self.project = ConvNorm(wide, outputs, 1, 1, dtype, rngs, activation=None)
        self.adds = stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.depthwise(self.expand(x) if self.expand else x)
        y = self.project(self.activation(self.gates(y) if self.gates else y))
        return x + y if self.adds else y


class FaceHead(nnx.Module):
    """A weighted mean over positions for each channel, and a linear layer (MobileFaceNet, arXiv 1804.07573)."""

    def __init__(self, inputs: int, embedding_dim: int, size: int, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.kaiming_normal()
        self.positions = nnx.Conv(
            inputs, inputs, (size, size), padding="VALID", feature_group_count=inputs, use_bias=False,
            kernel_init=init, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.norm1 = BatchNorm(inputs, dtype=dtype)
        self.linear = nnx.Linear(inputs, embedding_dim, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(embedding_dim, dtype=jnp.float32)

    def __call__(self, features: jax.Array) -> jax.Array:
        """`[B, h, w, C]` -> float32 `[B, D]`, not normalized."""
        x = self.norm1(self.positions(features))
        return self.norm2(self.linear(x.reshape(x.shape[0], -1)))


@students.register("mobilenet_v3_se")
class MobileNetV3SE(Student):
    """MobileNetV3-Large (arXiv 1905.02244), strides for low resolutions, MobileFaceNet's head (arXiv 1804.07573).

    2.97 M parameters in the backbone at 16x16 and 0.51 M in the head. The network is our reading of the title of
    the face method MobileNetV3-SE (ICCECE 2024, LFW 92.86). There is no dropout before the embedding.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          width: factor on the channels, 16 to 960, which become multiples of 8.
          dtype: computation type, "float32" or "bfloat16"; parameters stay float32.
        """

        width: float = 1.0
        dtype: str = "float32"

        def __post_init__(self) -> None:
            check_shared(self.width, (), self.dtype)

    def __init__(self, config: Config, shape: Shape, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, shape, rngs=rngs)
        stem_stride, strides = STRIDES[shape.resolution]
        dtype = jnp.dtype(config.dtype)

        def block(inputs: int, row: Row, stride: int) -> Bottleneck:
            wide, outputs = divisible(row.expansion * config.width), divisible(row.outputs * config.width)
            return Bottleneck(inputs, row._replace(expansion=wide, outputs=outputs), stride, dtype, rngs)

        stem, last = divisible(STEM * config.width), divisible(LAST * config.width)
        stages: list[list[nnx.Module]] = [
            [
                ConvNorm(shape.channels, stem, 3, stem_stride, dtype, rngs, activation=nnx.hard_swish),
                block(stem, FIRST, 1),
            ],
            [],
            [],
        ]
        inputs = divisible(FIRST.outputs * config.width)
        for stage, rows, stride in zip(stages, STAGES, strides):
            for number, row in enumerate(rows):
                stage.append(block(inputs, row, 1 if number else stride))
                inputs = divisible(row.outputs * config.width)
        stages[-1].append(ConvNorm(inputs, last, 1, 1, dtype, rngs, activation=nnx.hard_swish))
        self.backbone = SequentialBackbone(stages)
        size = side_after(shape.resolution, (stem_stride, *strides))
        self.head = FaceHead(last, shape.embedding_dim, size, dtype, rngs)
