"""Students that compile fast, without convolutions and with one block, for tests whose question is not the network.

config.plugins = ("tiny_student",)
config.student.name = "colors"  # or "three_stages" or "one_block"
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from gdrd_jax.models.layers import side_after
from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.models.residual import Head, ResidualBackbone, Stage
from gdrd_jax.models.student import Backbone, Student
from gdrd_jax.registry import students

SIDE = 4  # of the features


class Colors(Backbone):
    """Mean colors of parts of the image, mixed by a linear layer."""

    def __init__(self, inputs, channels, rngs):
        self.mix = nnx.Linear(inputs, channels, kernel_init=nnx.initializers.uniform(0.5), rngs=rngs)

    def stages(self, images):
        count, side = images.shape[:2]
        parts = images.astype(jnp.float32).reshape(count, SIDE, side // SIDE, SIDE, side // SIDE, -1).mean(axis=(2, 4))
        return (self.mix(parts / 127.5 - 1),)


class TinyHead(nnx.Module):
    def __init__(self, widths, rngs):
        self.layers = nnx.List(
            nnx.Linear(a, b, kernel_init=nnx.initializers.uniform(0.2), rngs=rngs) for a, b in zip(widths, widths[1:])
        )

    def __call__(self, features):
        x = features.reshape(features.shape[0], -1)
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


@students.register("colors")
class TinyStudent(Student):
    """A linear layer on the colors of 4x4 parts of the image, and a head of linear layers."""

    @dataclass(frozen=True)
    class Config:
        width: float = 1.0
        hidden: tuple[int, ...] = ()
        head_stages: int = 0
        dtype: str = "float32"

    def __init__(self, config, shape, *, rngs):
        super().__init__(config, shape, rngs=rngs)
        channels = max(4, round(64 * config.width))
        self.backbone = Colors(shape.channels, channels, rngs)
        self.head = TinyHead([SIDE * SIDE * channels, *config.hidden, shape.embedding_dim], rngs)


class Pyramid(Backbone):
    """Three linear layers, the last two on means of 2x2 positions, and batch normalization."""

    def __init__(self, inputs, rngs):
        sizes = ((inputs, 8), (8, 16), (16, 32))
        self.layers = nnx.List(
            nnx.Linear(a, b, use_bias=False, kernel_init=nnx.initializers.uniform(0.5), rngs=rngs) for a, b in sizes
        )
        self.norm = BatchNorm(32, dtype=jnp.float32)

    def stages(self, images):
        x, found = images.astype(jnp.float32) / 127.5 - 1, []
        for layer in self.layers:
            if found:
                count, side = x.shape[:2]
                x = x.reshape(count, side // 2, 2, side // 2, 2, -1).mean(axis=(2, 4))
            x = layer(x)
            found.append(x)
        return (*found[:2], self.norm(found[2]))


@students.register("three_stages")
class ThreeStageStudent(Student):
    """Three stages of a linear layer each, whose features have the sizes of the paper's student of width 0.0625."""

    @dataclass(frozen=True)
    class Config:
        hidden: tuple[int, ...] = ()

    def __init__(self, config, shape, *, rngs):
        super().__init__(config, shape, rngs=rngs)
        self.backbone = Pyramid(shape.channels, rngs)
        self.head = TinyHead([(shape.resolution // 4) ** 2 * 32, *config.hidden, shape.embedding_dim], rngs)


@students.register("one_block")
class OneBlockStudent(Student):
    """The paper's student with one basic block in the place of its stages, and one for each of the head's."""

    @dataclass(frozen=True)
    class Config:
        hidden: tuple[int, ...] = ()
        head_stages: int = 0

    def __init__(self, config, shape, *, rngs):
        super().__init__(config, shape, rngs=rngs)
        stage, dtype = Stage(32, 1, 2), jnp.float32
        self.backbone = ResidualBackbone(shape.channels, 2, [stage], dtype=dtype, rngs=rngs)
        self.head = Head(
            stage.channels, [Stage(32, 1, 1)] * config.head_stages, config.hidden, shape.embedding_dim,
            size=side_after(shape.resolution, (2, 2)), dtype=dtype, rngs=rngs,
        )  # fmt: skip
