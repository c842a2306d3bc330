"""The paper's student (GDRD, arXiv 2409.06371, section III)."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from gdrd_jax.models.arguments import check_shared
from gdrd_jax.models.layers import STRIDES, scaled, side_after
from gdrd_jax.models.residual import Downsampling, Head, ResidualBackbone, Stage
from gdrd_jax.models.student import Shape, Student
from gdrd_jax.registry import students

CHANNELS = (128, 256, 512)
BLOCKS = 2  # of a stage


@students.register("gdrd")
class GDRDStudent(Student):
    """The paper's: a 3x3 stem, three stages of two basic blocks, and fully connected layers."""

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          width: factor on the paper's channels, 128, 256 and 512.
          hidden: widths of the head's hidden layers (not scaled by `width`).
          head_stages: how many of the three convolutional stages belong to the head, 0 to 2.
          dtype: computation type, "float32" or "bfloat16"; parameters stay float32.
        """

        width: float = 1.0
        hidden: tuple[int, ...] = ()
        head_stages: int = 0
        dtype: str = "float32"

        def __post_init__(self) -> None:
            check_shared(self.width, self.hidden, self.dtype)
            if self.head_stages not in (0, 1, 2):
                raise ValueError(f"head_stages is {self.head_stages}; it can be 0, 1 or 2")

    downsampling: ClassVar[Downsampling | None] = None  # instead of strides of 2

    def __init__(self, config: Config, shape: Shape, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, shape, rngs=rngs)
        # The second network of a loss can have another resolution, and the strides of the next lower one.
        stem, strides = STRIDES[max(side for side in STRIDES if side <= shape.resolution)]
        stages = [Stage(scaled(c, config.width), BLOCKS, stride) for c, stride in zip(CHANNELS, strides)]
        kept, dtype = len(stages) - config.head_stages, jnp.dtype(config.dtype)
        shared = {"dtype": dtype, "rngs": rngs, "downsampling": type(self).downsampling}
        self.backbone = ResidualBackbone(shape.channels, stem, stages[:kept], **shared)
        self.head = Head(
            stages[kept - 1].channels, stages[kept:], config.hidden, shape.embedding_dim,
            size=side_after(shape.resolution, (stem, *strides)), **shared,
        )  # fmt: skip
