"""Which faces make up which batch, and faces decoded by several threads."""

import functools
import os
from collections.abc import Callable, Iterator

import numpy as np

TOGETHER, AHEAD = 16, 128  # numbers a thread takes at once, and results that may wait to be taken


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


def in_parallel(function: Callable[[int], object], numbers: range) -> Iterator:
    """`function` of every number, in order, computed ahead in Grain's threads."""
    import grain  # takes a second

    def several(start: int) -> list:
        return [function(number) for number in numbers[start : start + TOGETHER]]

    # More threads than cores, and more results waiting, only take memory and hinder one another.
    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=AHEAD // TOGETHER)
    groups = grain.MapDataset.range(0, len(numbers), TOGETHER).map(several).to_iter_dataset(options)
    return (result for group in groups for result in group)
