"""`data.degradation.resize` as part of an ONNX graph: the same pixels, rounded as OpenCV and Pillow round them.

All matrix products are of whole numbers that float32, and TensorFloat-32 on GPUs, hold exactly, so runtimes that add up
in another order find the same pixels.
"""

import numpy as np

from gdrd_jax.export.graph import Graph

BITS = 22  # of a weight of Pillow's resampling of 8-bit images (Pillow, src/libImaging/Resample.c, PRECISION_BITS)
LOW = 11  # of these, the lower ones, which are summed apart
LEAST_SHARE = 1e-3  # of a pixel; OpenCV leaves out smaller ones (modules/imgproc/src/resize.cpp, computeResizeAreaTab)
SUPPORT, SHARPNESS = 2.0, -0.5  # of Pillow's bicubic filter, in pixels of the smaller image; its parameter a


def reduced(graph: Graph, x: str, size: int, resolution: int, kernel: str) -> str:
    """Nodes that resize images as `data.degradation.resize` does.

    Args:
      graph: to which they are added.
      x: float32 `[N, C, size, size]`, whole numbers from 0 to 255.
      size, resolution: sides before and after, in pixels.
      kernel: see `data.degradation.KERNELS`.

    Returns:
      Name of float32 `[N, C, resolution, resolution]`, whole numbers from 0 to 255.
    """
    if size == resolution:
        return x
    if kernel == "area" and size > resolution:
        return _by_area(graph, x, size, resolution)
    weights = bicubic_weights(size, resolution)
    # Pillow rounds to 8 bits after the columns, too.
    return _fixed_point(graph, _fixed_point(graph, x, weights, columns=True), weights, columns=False)


def _by_area(graph: Graph, x: str, size: int, resolution: int) -> str:
    """OpenCV's INTER_AREA, with its roundings."""
    weights = area_weights(size, resolution)
    if size % resolution:
        return graph.add("Round", _in_order(graph, _in_order(graph, x, weights, 3), weights, 2))
    ones = np.float32(weights > 0)
    total, pixels = graph.add("MatMul", ones, graph.add("MatMul", x, ones.T)), (size // resolution) ** 2
    if pixels == 4:  # OpenCV rounds halves up here, and to even numbers elsewhere
        return graph.add("Floor", graph.add("Mul", graph.add("Add", total, np.float32(2)), np.float32(0.25)))
    return graph.add("Round", graph.add("Mul", total, np.float32(1) / np.float32(pixels)))


def _in_order(graph: Graph, x: str, weights: np.ndarray, axis: int) -> str:
    """Weighted sums along an axis, added up from the first pixel to the last, as OpenCV does: it rounds each sum."""
    rows, first = np.arange(len(weights)), (weights > 0).argmax(axis=1)
    total = ""
    for tap in range((weights > 0).sum(axis=1).max()):
        pixel = np.minimum(first + tap, weights.shape[1] - 1)
        weight = np.where(first + tap < weights.shape[1], weights[rows, pixel], np.float32(0))
        shape = (-1, 1) if axis == 2 else (-1,)
        part = graph.add("Mul", graph.add("Gather", x, pixel.astype(np.int64), axis=axis), weight.reshape(shape))
        total = graph.add("Add", total, part) if total else part
    return total


def _fixed_point(graph: Graph, x: str, weights: np.ndarray, *, columns: bool) -> str:
    """`clip(floor(weights x / 2**BITS + 1/2), 0, 255)` along columns or rows, exactly."""

    def product(part: np.ndarray) -> str:
        part = part.astype(np.float32)
        return graph.add("MatMul", x, part.T) if columns else graph.add("MatMul", part, x)

    high = (weights + 2 ** (LOW - 1)) >> LOW
    low = graph.add("Floor", graph.add("Mul", product(weights - (high << LOW)), np.float32(2.0**-LOW)))
    half = np.float32(2 ** (BITS - LOW - 1))
    summed = graph.add("Add", graph.add("Add", product(high), low), half)
    whole = graph.add("Floor", graph.add("Mul", summed, np.float32(2.0 ** (LOW - BITS))))
    return graph.add("Clip", whole, np.float32(0), np.float32(255))


def area_weights(size: int, resolution: int) -> np.ndarray:
    """Share of each pixel in each of fewer ones: float32 `[resolution, size]`, rows sum to 1."""
    factor = size / resolution
    start, pixel = np.arange(resolution)[:, None] * factor, np.arange(size)
    overlap = np.minimum(start + factor, pixel + 1) - np.maximum(start, pixel)
    return np.float32(np.where(overlap > LEAST_SHARE, overlap, 0) / factor)


def bicubic_weights(size: int, resolution: int) -> np.ndarray:
    """Weights of Pillow's antialiased bicubic filter in units of 2**-BITS: int64 `[resolution, size]`."""
    factor = size / resolution
    scale = max(factor, 1.0)
    center = (np.arange(resolution)[:, None] + 0.5) * factor
    pixel = np.arange(size)
    inside = (pixel >= np.trunc(center - SUPPORT * scale + 0.5)) & (pixel < np.trunc(center + SUPPORT * scale + 0.5))
    distance = np.abs((pixel - center + 0.5) / scale)
    near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * SHARPNESS
    weights = np.where(distance < 1, near, np.where(distance < SUPPORT, far, 0.0)) * inside
    weights *= 2.0**BITS / weights.sum(axis=1, keepdims=True)
    return np.trunc(weights + np.copysign(0.5, weights)).astype(np.int64)
