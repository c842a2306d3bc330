"""Convolutional streams side by side, after the title of SiameseFace."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gdrd_jax.models.arguments import check_shared
from gdrd_jax.models.layers import STRIDES, ConvNorm, normalized, scaled, side_after
from gdrd_jax.models.residual import Head
from gdrd_jax.models.student import Backbone, Shape, Student
from gdrd_jax.registry import students

KERNELS = (3, 5, 7)  # of the streams
CHANNELS = (64, 128, 256)  # of the layers of a stream


class Streams(Backbone):
    """Streams of convolutions on the same image, whose features are concatenated.

    Args:
      inputs: channels of the images.
      channels: of the layers of each stream.
      strides: of the layers.
      dtype: computation type; parameters are float32.
    """

    def __init__(
        self, inputs: int, channels: tuple[int, ...], strides: tuple[int, ...], dtype: DTypeLike, rngs: nnx.Rngs
    ):  # fmt: skip
        self.streams = nnx.List(
            nnx.List(
                ConvNorm(before, after, kernel, stride, dtype, rngs)
                for before, after, stride in zip((inputs, *channels), channels, strides)
            )
            for kernel in KERNELS
        )

    def stages(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Features of each layer, see `Backbone.stages`."""
        parts, found = [normalized(images)] * len(KERNELS), []
        for layers in zip(*self.streams):
            parts = [layer(part) for layer, part in zip(layers, parts)]
            found.append(jnp.concatenate(parts, axis=-1))
        return tuple(found)


@students.register("siamese")
class SiameseFace(Student):
    """Three convolutional streams with 3x3, 5x5 and 7x7 kernels, and GDRD's head on their concatenated features.

    3.42 M parameters in the backbone at 16x16 and 6.32 M in the head. The network is our reading of the title of
    SiameseFace (ICIIP 2023, "multi-stream CNN in siamese framework", LFW 92.41).
    """

    resolutions = (8, 16, 24, 32, 48)

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          width: factor on the channels of a stream, 64, 128 and 256.
          hidden: widths of the head's hidden layers (not scaled by `width`).
          dtype: computation type, "float32" or "bfloat16"; parameters stay float32.
        """

        width: float = 1.0
        hidden: tuple[int, ...] = ()
        dtype: str = "float32"

        def __post_init__(self) -> None:
            check_shared(self.width, self.hidden, self.dtype)

    def __init__(self, config: Config, shape: Shape, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, shape, rngs=rngs)
        stem, (first, *rest) = STRIDES[shape.resolution]
        strides, dtype = (stem * first, *rest), jnp.dtype(config.dtype)
        channels = tuple(scaled(number, config.width) for number in CHANNELS)
        self.backbone = Streams(shape.channels, channels, strides, dtype, rngs)
        self.head = Head(
            len(KERNELS) * channels[-1], (), config.hidden, shape.embedding_dim,
            size=side_after(shape.resolution, strides), dtype=dtype, rngs=rngs,
        )  # fmt: skip
