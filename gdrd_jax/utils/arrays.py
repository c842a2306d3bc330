"""Small functions of arrays."""

import math

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    """Flattens all but the first axis and scales rows to unit length."""
    flat = x.reshape(len(x), math.prod(x.shape[1:]))
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Images `[..., C]` with 1 to 4 channels as teachers and people see them, `[..., 3]`: gray ones three times."""
    channels = images.shape[-1]
    if channels == 3:
        return images
    return images[..., :3] if channels == 4 else np.repeat(images[..., :1], 3, axis=-1)


def number_within(labels: np.ndarray) -> np.ndarray:
    """How many entries of the same label come before each: int `[N]` of int `[N]`."""
    order = np.argsort(labels, kind="stable")
    ranked, number = labels[order], np.empty(len(labels), int)
    number[order] = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    return number
