"""Runs what is fixed once over every face and view, into caches (`gdrd_jax.data.targets`)."""

from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from gdrd_jax.data.degrade import Views
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.targets import CHUNK_ROWS, Cache


def fill(cache: Cache, compute: Callable[[int, range], np.ndarray], what: str) -> None:
    """Computes the rows of `cache` that are not there yet.

    Args:
      cache: to be filled.
      compute: `(view, rows)` -> values `[len(rows), ...]`.
      what: shown beside the progress bar.
    """
    rows, views = cache.manifest["rows"], cache.manifest["views"]
    done = sum(cache.rows_done(view) for view in range(views))
    with tqdm(total=rows * views, initial=done, desc=what, unit="face") as progress:
        for view in range(views):
            for start in range(cache.rows_done(view), rows, CHUNK_ROWS):
                chunk = range(start, min(start + CHUNK_ROWS, rows))
                cache.write(view, start, compute(view, chunk))
                progress.update(len(chunk))


def high_views(faces: Faces, views: Views, view: int, rows: range) -> np.ndarray:
    """Decodes faces, in Grain's threads, and makes their view: uint8 `[n, 112, 112, 3]`."""
    return np.stack(list(in_parallel(lambda row: views.high(faces[row], row, view), rows)))
