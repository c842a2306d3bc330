"""ResNet-18 and 34 for low resolutions, with which students are compared in the papers on low-resolution faces."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from gdrd_jax.models.arguments import check_shared
from gdrd_jax.models.layers import scaled, side_after
from gdrd_jax.models.residual import Head, ResidualBackbone, Stage
from gdrd_jax.models.student import Shape, Student
from gdrd_jax.registry import students

CHANNELS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# Strides of the stages by input resolution; that of the stem is 1. The last stage has 4, 6 or 7 pixels; at 112 the
# strides are those of InsightFace's iresnet.
STRIDES = {
    8: (1, 2, 1, 1), 16: (1, 2, 2, 1), 24: (1, 2, 2, 1), 32: (1, 2, 2, 2), 48: (1, 2, 2, 2), 64: (2, 2, 2, 2),
    112: (2, 2, 2, 2),
}  # fmt: skip


@students.register("resnet")
class ResNet(Student):
    """ResNet of basic blocks (arXiv 1512.03385) with a 3x3 stem, strides for low resolutions and GDRD's head."""

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          depth: number of layers, 18 or 34.
          width: factor on the channels, 64 to 512.
          hidden: widths of the head's hidden layers (not scaled by `width`).
          dtype: computation type, "float32" or "bfloat16"; parameters stay float32.
        """

        depth: int = 18
        width: float = 1.0
        hidden: tuple[int, ...] = ()
        dtype: str = "float32"

        def __post_init__(self) -> None:
            check_shared(self.width, self.hidden, self.dtype)
            if self.depth not in BLOCKS:
                raise ValueError(f"depth is {self.depth}; it can be {' or '.join(map(str, BLOCKS))}")

    def __init__(self, config: Config, shape: Shape, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, shape, rngs=rngs)
        strides, dtype = STRIDES[shape.resolution], jnp.dtype(config.dtype)
        plan = zip(CHANNELS, BLOCKS[config.depth], strides)
        stages = [Stage(scaled(channels, config.width), blocks, stride) for channels, blocks, stride in plan]
        self.backbone = ResidualBackbone(shape.channels, 1, stages, dtype=dtype, rngs=rngs)
        self.head = Head(
            stages[-1].channels, (), config.hidden, shape.embedding_dim,
            size=side_after(shape.resolution, strides), dtype=dtype, rngs=rngs,
        )  # fmt: skip
