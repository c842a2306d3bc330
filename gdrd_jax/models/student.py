"""The student S = {S_b, S_h} (GDRD, arXiv 2409.06371, section III).

`S_b` (`Backbone`) is a 3x3 stem and ResNet-18 basic blocks, two a stage. `S_h`
(`Head`) is fully connected, with as many of the last convolutional stages as
`head_stages` gives it. Images are NHWC.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.utils.errors import GdrdError

STAGE_CHANNELS = (128, 256, 512)
# Stem stride and stage strides by input resolution: the last stage is 4x4 for all.
STRIDES = {8: (1, (1, 2, 1)), 16: (1, (1, 2, 2)), 32: (2, (1, 2, 2))}
FEATURE_SIZE = 4


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
    """Two 3x3 convolutions and a shortcut (He et al., arXiv 1512.03385, figure 5)."""

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


def _stage(inputs: int, outputs: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs) -> list[BasicBlock]:
    return [
        BasicBlock(inputs, outputs, stride, dtype, rngs),
        BasicBlock(outputs, outputs, 1, dtype, rngs),
    ]


class Backbone(nnx.Module):
    """`S_b`: uint8 faces to spatial features.

    Args:
      resolution: side of the input in pixels: 8, 16 or 32.
      channels: output channels of each stage; fewer than three stages when the
        rest belongs to the head.
      dtype: computation type; parameters are float32.
    """

    def __init__(self, resolution: int, channels: Sequence[int], *, dtype: DTypeLike, rngs: nnx.Rngs):
        stem_stride, strides = STRIDES[resolution]
        self.stem = _conv(3, channels[0], 3, stem_stride, dtype, rngs)
        self.norm = BatchNorm(channels[0], dtype=dtype)
        self.blocks = nnx.List()
        inputs = channels[0]
        for outputs, stride in zip(channels, strides):
            self.blocks.extend(_stage(inputs, outputs, stride, dtype, rngs))
            inputs = outputs
        # Eq. 1 matches f with features of either sign, so f is taken before the last ReLU.
        self.blocks[-1].final_relu = False

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 RGB `[B, R, R, 3]` -> features `f` `[B, h, w, C]`."""
        x = images.astype(jnp.float32) / 127.5 - 1.0
        x = _relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return x


class Head(nnx.Module):
    """`S_h`: features to an embedding.

    Args:
      inputs: channels of the features.
      stages: `(channels, stride)` of convolutional stages moved here from the backbone.
      hidden: widths of the hidden fully connected layers.
      embedding_dim: the teacher's dimension.
      size: side of the features that reach the fully connected layers.
    """

    def __init__(
        self, inputs: int, stages: Sequence[tuple[int, int]], hidden: Sequence[int],
        embedding_dim: int, *, size: int = FEATURE_SIZE, dtype: DTypeLike, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.blocks = nnx.List()
        for outputs, stride in stages:
            self.blocks.extend(_stage(inputs, outputs, stride, dtype, rngs))
            inputs = outputs
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
        x = self.norm(x.reshape(len(x), -1))
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x).astype(jnp.float32)


class Student(nnx.Module):
    """`S = {S_b, S_h}`: low-resolution faces to embeddings.

    Args:
      resolution: 8, 16 or 32 pixels.
      width: factor on the paper's channels (1.0: 128, 256, 512).
      hidden: widths of the head's hidden layers (not scaled by `width`).
      embedding_dim: dimension of the embedding, the teacher's as a rule.
      head_stages: how many of the three convolutional stages belong to the head, 0 to 2.
      dtype: computation type ("float32" or "bfloat16"); parameters stay float32.

    Raises:
      GdrdError: a resolution or `head_stages` that the architecture does not have.
    """

    def __init__(
        self, *, resolution: int, width: float, hidden: Sequence[int], embedding_dim: int,
        head_stages: int = 0, dtype: str = "float32", rngs: nnx.Rngs,
    ):  # fmt: skip
        if resolution not in STRIDES:
            raise GdrdError(f"resolution is {resolution}; it can be one of {sorted(STRIDES)}", "student-resolution")
        if head_stages not in (0, 1, 2):
            raise GdrdError(f"student.head_stages is {head_stages}; it can be 0, 1 or 2", "student-head-stages")
        computed_in = jnp.dtype(dtype)
        channels = [max(8, round(c * width)) for c in STAGE_CHANNELS]
        strides = STRIDES[resolution][1]
        kept = len(channels) - head_stages
        self.resolution = resolution
        self.backbone = Backbone(resolution, channels[:kept], dtype=computed_in, rngs=rngs)
        self.head = Head(
            channels[kept - 1], list(zip(channels[kept:], strides[kept:])), hidden, embedding_dim,
            dtype=computed_in, rngs=rngs,
        )  # fmt: skip

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 `[B, R, R, 3]` -> float32 `[B, D]`, not normalized."""
        return self.head(self.backbone(images))


def abstract_student(settings: dict) -> Student:
    """A student, made with these arguments, whose weights are still to be filled in; drawing them takes seconds."""
    return nnx.eval_shape(lambda: Student(**settings, rngs=nnx.Rngs(0)))


def embed(student: Student, images: jax.Array) -> jax.Array:
    """The embedding that is compared: L2-normalized sum over the image and its mirror image.

    Args:
      student: in evaluation mode (`student.eval()`).
      images: uint8 RGB `[B, R, R, 3]`.

    Returns:
      float32 `[B, D]`, unit length.
    """
    both = student(images) + student(images[:, :, ::-1])
    return both / jnp.linalg.norm(both, axis=-1, keepdims=True).clip(1e-12)
