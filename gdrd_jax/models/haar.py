"""The Haar wavelet transform of images and features, and convolutions that reduce by it."""

from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from gdrd_jax.models.layers import convolution


def transform(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One level of the orthonormal Haar transform (Mallat, 1989): LL, and details along x, along y and along both.

    Args:
      x: `[B, h, w, C]` with even sides.

    Returns:
      `[B, h/2, w/2, C]` each. Of a constant c, LL is 2 c and the others are 0.
    """
    a, b, c, d = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
    return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2


class HaarConvolution(nnx.Conv):
    """A convolution of stride 1 and the LL of its result, instead of one of stride 2."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """`[B, h, w, inputs]` -> `[B, h/2, w/2, outputs]`."""
        if self.kernel_size == (1, 1):  # the same in another order, with a quarter of the products
            return super().__call__(transform(inputs)[0], out_sharding)
        return transform(super().__call__(inputs, out_sharding))[0]


def haar_convolution(
    inputs: int, outputs: int, size: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:  # fmt: skip
    """`layers.convolution`, with LL instead of a stride of 2."""
    return convolution(inputs, outputs, size, 1, dtype, rngs, kind=HaarConvolution if stride == 2 else nnx.Conv)
