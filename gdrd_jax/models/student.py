"""Students: networks of two parts, made by name (GDRD, arXiv 2409.06371, section III: S = {S_b, S_h}).

A new student is one file: a subclass of `Student` with `@students.register("name")`, see docs/extending.md. Images are
NHWC.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax.models import arguments as of
from gdrd_jax.registry import students
from gdrd_jax.utils.errors import GdrdError


@dataclass(frozen=True)
class Shape:
    """Sizes of a student's input and output.

    Attributes:
      resolution: side R of the input in pixels.
      channels: number C of input channels; 3 is RGB.
      embedding_dim: dimension D of the embedding, usually the teacher's.
      mirror: whether the mirror image shows the same thing, so that `embed` adds its embedding.
    """

    resolution: int
    channels: int
    embedding_dim: int
    mirror: bool = True


class Backbone(nnx.Module):
    """`S_b`: maps images to spatial features."""

    def stages(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Features of each stage, float `[B, h, w, C']`, of equal or decreasing size; the last are the features `f`.

        Args:
          images: uint8 `[B, R, R, C]`.
        """
        raise NotImplementedError

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps uint8 `[B, R, R, C]` to the features `f`, float `[B, h, w, C']`."""
        return self.stages(images)[-1]


class Student(nnx.Module):
    """`S = {S_b, S_h}`: maps low-resolution images to embeddings; in evaluation mode, each image independently.

    Attributes:
      Config: frozen dataclass of the student's settings; its docstring documents them, its `__post_init__` raises
        `ValueError` for values out of range. Fields named as in `models.arguments.SHARED` are set by
        `config.student.NAME`, others by `config.student.settings`.
      resolutions: sides of the input, in pixels, that it accepts.
      channel_counts: numbers of channels that it accepts.
      backbone: a `Backbone`, or another module with the same call.
      head: module that maps features `[B, h, w, C']` to embeddings, float32 `[B, D]`, not normalized.

    Args:
      config: a `Config`.
      shape: sizes of input and output, with a resolution and number of channels that the student accepts.
      rngs: random streams for the initial parameters.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    resolutions: ClassVar[tuple[int, ...]] = of.RESOLUTIONS
    channel_counts: ClassVar[tuple[int, ...]] = of.CHANNEL_COUNTS
    backbone: Any
    head: Any

    def __init__(self, config: Any, shape: Shape, *, rngs: nnx.Rngs) -> None:
        self.config, self.shape = config, shape

    @property
    def resolution(self) -> int:
        """Side of the input in pixels."""
        return self.shape.resolution

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps uint8 `[B, R, R, C]` to embeddings, float32 `[B, D]`, not normalized."""
        return self.head(self.backbone(images))


def make_student(*, rngs: nnx.Rngs, **arguments: Any) -> Student:
    """Makes a student by name.

    Args:
      rngs: random streams for the initial parameters.
      **arguments: see `models.arguments`.

    Raises:
      GdrdError: there is no such student, or it does not support one of the arguments.
    """
    kind, config, shape = _described(arguments)
    return kind(config, shape, rngs=rngs)


def _described(arguments: Mapping) -> tuple[Callable[..., Student], Any, Shape]:
    """What a student is made from; raises as `make_student`."""
    of.check(arguments)
    name = arguments.get("name", of.DEFAULT)
    channels, mirror = arguments.get("channels", of.RGB), arguments.get("mirror", True)
    shape = Shape(arguments["resolution"], channels, arguments["embedding_dim"], mirror)
    return students[name], students.settings(name, of.settings(arguments)), shape


def check_output(arguments: Mapping) -> None:
    """Refuses a student whose embeddings have another dimension than asked for; arguments as of `make_student`.

    Raises:
      GdrdError: they have.
    """
    student = abstract_student(arguments)
    images = np.zeros((2, student.resolution, student.resolution, student.shape.channels), np.uint8)
    found = nnx.eval_shape(lambda student: student(images), student).shape
    if found != (2, student.shape.embedding_dim):
        raise GdrdError(
            f"the student {arguments['name']!r} gives {list(found)} for 2 images; its head has to give "
            f"[2, {student.shape.embedding_dim}], with the shape's embedding_dim",
            "student-output",
        )


def abstract_student(arguments: Mapping) -> Student:
    """A student without weights, which have to be filled in; drawing random ones would take seconds."""
    kind, config, shape = _described(arguments)
    return nnx.merge(*_traced(kind, config, shape, repr((config, shape))), copy=True)


@functools.lru_cache(maxsize=16)  # programs load a student several times, such as before and after an export
def _traced(kind: Callable[..., Student], config: Any, shape: Shape, _written: str) -> tuple[nnx.GraphDef, nnx.State]:
    """`_written` tells apart arguments that are equal and yet not the same, such as 1 and 1.0."""
    return nnx.split(nnx.eval_shape(lambda: kind(config, shape, rngs=nnx.Rngs(0))))


def parameters(student: Student) -> int:
    """Number of a student's parameters, including those of batch normalization but not its running statistics."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(student, nnx.Param)))


def embed(student: Student, images: jax.Array) -> jax.Array:
    """The embedding that is compared: the L2-normalized sum over the image and, if `shape.mirror`, its mirror image.

    Args:
      student: in evaluation mode (`student.eval()`).
      images: uint8 `[B, R, R, C]`.

    Returns:
      float32 `[B, D]`, unit length.
    """
    return embed_with_lengths(student, images)[0]


def embed_with_lengths(student: Student, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `embed`, and the length of each sum before it was normalized, float32 `[B]`, which determines its quality."""
    both = student(images)
    if student.shape.mirror:
        both = both + student(images[:, :, ::-1])
    lengths = jnp.linalg.norm(both, axis=-1, keepdims=True).clip(1e-12)
    return both / lengths, lengths[:, 0]
