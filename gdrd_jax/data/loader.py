"""Which faces make up which batch, and faces decoded by several threads."""

import os
from collections.abc import Callable, Iterator

import numpy as np

AHEAD = 64  # results that wait to be taken; more hold memory, and threads beyond the cores only hinder


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
        order = np.random.default_rng([seed, 0, epoch]).permutation(faces)
        chosen = epochs == epoch
        rows[chosen] = order[positions[chosen] % faces]
    chosen_views = [np.random.default_rng([seed, 1, step]).integers(views, size=batch) for step in steps]
    return rows.reshape(len(steps), batch), np.array(chosen_views, np.int32)


def in_parallel(function: Callable[[int], object], numbers: range) -> Iterator:
    """`function` of every number, in order, computed ahead in Grain's threads."""
    import grain  # takes a second

    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.range(numbers.start, numbers.stop).map(function).to_iter_dataset(options))
