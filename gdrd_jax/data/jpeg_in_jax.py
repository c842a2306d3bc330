"""What JPEG compression does to a small face, as a jittable function: 8x8 DCT, quantization, 4:2:0 chroma.

As libjpeg does it by default, but for rounding on the way: standard tables, chroma averaged over 2x2 pixels and
enlarged by a triangle filter.
"""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 8
# ITU-T T.81, tables K.1 and K.2.
LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
], np.float32)  # fmt: skip
CHROMINANCE = np.full((BLOCK, BLOCK), 99, np.float32)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
RGB = np.linalg.inv(YCC).astype(np.float32)


def compress(face: jax.Array, quality: jax.Array) -> jax.Array:
    """Compresses and decompresses a face.

    Args:
      face: float RGB `[R, R, 3]` in 0..255; R is a multiple of 8.
      quality: 1 to 100, as libjpeg means it.

    Returns:
      float RGB `[R, R, 3]` in 0..255.
    """
    ycc = face @ YCC.T - np.array([128, 0, 0], np.float32)
    scale = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    planes = []
    for channel, (table, (analysis, synthesis)) in enumerate((
        (LUMINANCE, _luminance(face.shape[0])), (CHROMINANCE, _chrominance(face.shape[0])),
        (CHROMINANCE, _chrominance(face.shape[0])),
    )):  # fmt: skip
        quantum = jnp.floor((table * scale + 50) / 100).clip(1, 255)
        quantum = jnp.tile(quantum, (len(analysis) // BLOCK,) * 2)
        coefficients = analysis @ ycc[..., channel] @ analysis.T
        planes.append(synthesis @ (jnp.rint(coefficients / quantum) * quantum) @ synthesis.T)
    ycc = jnp.stack(planes, axis=-1) + np.array([128, 0, 0], np.float32)
    return (ycc @ RGB.T).clip(0, 255)


def _dct(size: int) -> np.ndarray:
    """Orthonormal DCT-II of blocks of 8 along an axis of `size` pixels, `[size, size]`."""
    frequency, pixel = np.mgrid[:BLOCK, :BLOCK]
    basis = np.cos(np.pi * (2 * pixel + 1) * frequency / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    basis[0] = np.sqrt(1 / BLOCK)
    return np.kron(np.eye(size // BLOCK), basis).astype(np.float32)


def _luminance(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices from pixels to coefficients along an axis and back."""
    return _dct(size), _dct(size).T


def _chrominance(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of a plane of half the size, the border repeated up to a whole block."""
    half = size // 2
    padded = -(-half // BLOCK) * BLOCK
    halved = np.kron(np.eye(half), np.full((1, 2), 0.5))
    bordered = np.eye(half)[np.arange(padded).clip(0, half - 1)]
    at = ((np.arange(size) + 0.5) / 2 - 0.5).clip(0, half - 1)
    enlarged = (1 - np.abs(at[:, None] - np.arange(half))).clip(0)
    analysis = _dct(padded) @ bordered @ halved
    return analysis.astype(np.float32), (enlarged @ _dct(padded).T[:half]).astype(np.float32)
