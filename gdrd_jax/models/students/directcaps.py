"""DirectCapsNet (arXiv 1908.10027): capsules (arXiv 1710.09829) as an embedding."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gdrd_jax.models.arguments import check_shared
from gdrd_jax.models.layers import STRIDES, SequentialBackbone, convolution, relu, scaled, side_after
from gdrd_jax.models.student import Shape, Student
from gdrd_jax.registry import students

CHANNELS = (128, 256)  # of the two convolutions before the primary capsules
TYPES = 32  # of primary capsules at a position
PRIMARY, CAPSULE = 8, 16  # dimensions of a primary capsule, and at most of one of the embedding
ROUNDS = 3  # of routing


def squash(x: jax.Array) -> jax.Array:
    """`[..., d]` -> the same directions with lengths n²/(1 + n²), below 1 (arXiv 1710.09829, Eq. 1)."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * square / ((1 + square) * jnp.sqrt(square + 1e-8))  # the root has no derivative at 0


def route(predictions: jax.Array, rounds: int) -> jax.Array:
    """Routing by agreement (arXiv 1710.09829, procedure 1), with gradients through the last round alone.

    Args:
      predictions: `[B, I, J, d]`, what each of I capsules predicts of each of J.
      rounds: at least 1, which is the uniform sum.

    Returns:
      `[B, J, d]`, of lengths below 1.
    """
    detached = jax.lax.stop_gradient(predictions)
    agreement, coupling = 0, 1 / predictions.shape[2]
    for _ in range(rounds - 1):
        capsules = squash((coupling * detached).sum(axis=1))
        agreement = agreement + (detached * capsules[:, None]).sum(axis=3, keepdims=True)
        coupling = jax.nn.softmax(agreement, axis=2)
    return squash((coupling * predictions).sum(axis=1))


class EmbeddingCapsules(nnx.Module):
    """Primary capsules, the channels at each position, and capsules that are the embedding.

    Args:
      inputs: channels of the features.
      size: side of the features.
      embedding_dim: dimension of the embedding, which is divided into capsules as large as it allows.
      dtype: computation type of the predictions.
    """

    def __init__(self, inputs: int, size: int, embedding_dim: int, dtype: DTypeLike, rngs: nnx.Rngs):
        number, capsule = size**2 * inputs // PRIMARY, math.gcd(embedding_dim, CAPSULE)
        outputs = embedding_dim // capsule
        # The first round divides a sum over `number` capsules by `outputs`; lengths are about 1 after it.
        init = nnx.initializers.normal(outputs / math.sqrt(number * capsule))
        self.weights, self.dtype = nnx.Param(init(rngs.params(), (number, outputs, PRIMARY, capsule))), dtype

    def __call__(self, features: jax.Array) -> jax.Array:
        """`[B, h, w, C]` -> float32 `[B, D]`, not normalized."""
        primary = squash(features.astype(jnp.float32).reshape(features.shape[0], -1, PRIMARY))
        predictions = jnp.einsum("bik,ijkd->bijd", primary.astype(self.dtype), self.weights[...].astype(self.dtype))
        capsules = route(predictions.astype(jnp.float32), ROUNDS)
        return capsules.reshape(features.shape[0], -1)


@students.register("directcaps")
class DirectCapsNet(Student):
    """Convolutions and capsules whose outputs are the embedding, after DirectCapsNet (arXiv 1908.10027).

    1.94 M parameters in the backbone at 16x16 and 2.10 M in the head, whose 32 capsules have 16 dimensions each. The
    layers are our reading of the abstract; capsules and routing are those of arXiv 1710.09829. A layer with a capsule
    for each identity would have 65,536 parameters an identity and is left out.
    """

    resolutions = (8, 16, 24, 32, 48)

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          width: factor on the channels, 128 and 256, and on the 32 types of primary capsules.
          dtype: computation type, "float32" or "bfloat16"; parameters and routing stay float32.
        """

        width: float = 1.0
        dtype: str = "float32"

        def __post_init__(self) -> None:
            check_shared(self.width, (), self.dtype)

    def __init__(self, config: Config, shape: Shape, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, shape, rngs=rngs)
        stem, (first, *rest) = STRIDES[shape.resolution]
        strides, dtype = (stem * first, *rest), jnp.dtype(config.dtype)
        one, two = (scaled(channels, config.width) for channels in CHANNELS)
        primary = PRIMARY * max(1, round(TYPES * config.width))
        self.backbone = SequentialBackbone([
            [nnx.Sequential(convolution(shape.channels, one, 3, strides[0], dtype, rngs, bias=True), relu)],
            [nnx.Sequential(convolution(one, two, 3, strides[1], dtype, rngs, bias=True), relu)],
            [convolution(two, primary, 5, strides[2], dtype, rngs, bias=True)],
        ])  # fmt: skip
        self.head = EmbeddingCapsules(
            primary, side_after(shape.resolution, strides), shape.embedding_dim, dtype, rngs
        )  # fmt: skip
