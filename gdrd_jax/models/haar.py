"""The low frequencies of the Haar wavelet transform of images and features."""

import jax


def low_frequencies(x: jax.Array) -> jax.Array:
    """LL of one level of the orthonormal Haar transform (Mallat, 1989), twice the mean of four neighbors.

    Args:
      x: `[B, h, w, C]` with even sides.

    Returns:
      `[B, h/2, w/2, C]`.
    """
    return (x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]) / 2
