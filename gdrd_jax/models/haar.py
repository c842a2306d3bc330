"""The Haar wavelet transform of images and features."""

import jax


def transform(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One level of the orthonormal Haar transform (Mallat, 1989): LL, and details along x, along y and along both.

    Args:
      x: `[B, h, w, C]` with even sides.

    Returns:
      `[B, h/2, w/2, C]` each. Of a constant c, LL is 2 c and the others are 0.
    """
    a, b, c, d = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
    return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2


def low_frequencies(x: jax.Array) -> jax.Array:
    """LL of `transform`: `[B, h, w, C]` -> `[B, h/2, w/2, C]`."""
    return transform(x)[0]
