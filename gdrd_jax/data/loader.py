"""Which faces make up which batch, and faces decoded by several threads."""

import collections
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gdrd_jax.utils.signals import check_signals

ITEMS_PER_TASK = 16  # handing over a single item costs more than decoding a face
MAX_THREADS = 32  # bounds the results that wait, and the interpreter's lock lets no more of them work


def batch_rows(seed: int, steps: range, batch: int, faces: int, views: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and view numbers of the batches of some steps: a pure function, so that resuming is exact.

    Every epoch visits each face once in a new order (the last, incomplete batch of an
    epoch is filled from the next), in a view drawn uniformly.

    Args:
      seed: of the order.
      steps: step numbers.
      batch: faces a batch.
      faces, views: size of the data set.

    Returns:
      int32 `[len(steps), batch]` rows and views.
    """
    positions = np.arange(steps.start * batch, steps.stop * batch)
    epochs = positions // faces
    rows = np.empty(len(positions), np.int32)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = _order(seed, int(epoch), faces)[positions[chosen] % faces]
    chosen_views = [np.random.default_rng([seed, 1, step]).integers(views, size=batch) for step in steps]
    return rows.reshape(len(steps), batch), np.array(chosen_views, np.int32)


@functools.lru_cache(maxsize=4)  # a batch takes from two epochs at most, several threads make batches
def _order(seed: int, epoch: int, faces: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(faces).astype(np.int32)


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(function: Callable[[int], object], numbers: Sequence[int]) -> Iterator:
    """`function` of every number, in order, computed ahead by as many threads as this process may use cores.

    OpenCV, simplejpeg and Pillow release the GIL while they work.
    """
    threads = min(available_cores(), MAX_THREADS)

    def several(start: int) -> list:
        return [function(number) for number in numbers[start : start + ITEMS_PER_TASK]]

    pool, waiting = ThreadPoolExecutor(threads), collections.deque()
    try:
        for start in range(0, len(numbers), ITEMS_PER_TASK):
            check_signals()
            waiting.append(pool.submit(several, start))
            if len(waiting) > 2 * threads:  # more results waiting would only take memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
