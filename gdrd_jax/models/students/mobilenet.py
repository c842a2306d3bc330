"""MobileNet (arXiv 1704.04861) for low resolutions."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gdrd_jax.models.arguments import check_shared
from gdrd_jax.models.layers import STRIDES, ConvNorm, SequentialBackbone, scaled
from gdrd_jax.models.student import Shape, Student
from gdrd_jax.registry import students

STEM = (32, 64)  # channels of the stem and of the block after it
STAGES = ((128, 128), (256, 256), (512,) * 6 + (1024, 1024))  # of the blocks of each stage, the first of which strides


class SeparableConvolution(nnx.Module):
    """A depthwise 3x3 convolution and a pointwise one (figure 3)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.depthwise = ConvNorm(inputs, inputs, 3, stride, dtype, rngs, depthwise=True)
        self.pointwise = ConvNorm(inputs, outputs, 1, 1, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pointwise(self.depthwise(x))


class MeanHead(nnx.Module):
    """A linear layer on the mean over positions."""

    def __init__(self, inputs: int, embedding_dim: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.linear = nnx.Linear(
            inputs, embedding_dim, kernel_init=nnx.initializers.kaiming_normal(), dtype=dtype, rngs=rngs
        )

    def __call__(self, features: jax.Array) -> jax.Array:
        """`[B, h, w, C]` -> float32 `[B, D]`, not normalized."""
        return self.linear(features.mean(axis=(1, 2))).astype(jnp.float32)


@students.register("mobilenet")
class MobileNet(Student):
    """MobileNet v1 of depthwise separable convolutions (arXiv 1704.04861), strides for low resolutions, mean, linear.

    3.21 M parameters in the backbone at 16x16 and 0.52 M in the head. The rows of GDRD's table IV named MobileNet do
    not say which version they are; this one, trained with cross-entropy alone, is our reading.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          width: factor on the channels, 32 to 1024.
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
        stem, inputs = (scaled(channels, config.width) for channels in STEM)
        stages: list[list[nnx.Module]] = [
            [
                ConvNorm(shape.channels, stem, 3, stem_stride, dtype, rngs),
                SeparableConvolution(stem, inputs, 1, dtype, rngs),
            ],
            [],
            [],
        ]
        for stage, blocks, stride in zip(stages, STAGES, strides):
            for number, channels in enumerate(blocks):
                outputs = scaled(channels, config.width)
                stage.append(SeparableConvolution(inputs, outputs, 1 if number else stride, dtype, rngs))
                inputs = outputs
        self.backbone = SequentialBackbone(stages)
        self.head = MeanHead(inputs, shape.embedding_dim, dtype, rngs)
