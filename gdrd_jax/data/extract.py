"""Runs what is fixed once over every face and view, into stores (`gdrd_jax.data.feature_store`)."""

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from gdrd_jax.data.degradation import Views
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import CHUNK_ROWS, FeatureStore
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.mixup import MixupFaces
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.launch import SINGLE_PROCESS, ProcessInfo

LOG = logging.getLogger(__name__)
VERIFIED = 64  # rows of each view
FURTHEST = 0.02  # of a row computed again from the stored one, relative


@dataclasses.dataclass(frozen=True)
class Extraction:
    """How a store is filled.

    Attributes:
      store: to be filled.
      load: `(view, rows)` -> what `compute` takes, read by a thread while it computes.
      compute: -> values `[len(rows), ...]`; None where `load` gives them.
      what: shown beside the progress bar.
    """

    store: FeatureStore
    load: Callable[[int, np.ndarray | range], np.ndarray]
    compute: Callable[[np.ndarray], np.ndarray] | None
    what: str


def extract(job: Extraction, process: ProcessInfo = SINGLE_PROCESS) -> None:
    """Computes the pieces of the store that are not there yet.

    Of several processes each takes its share, and then whatever the others have not done: one that comes late, is
    slower or dies costs time, but nothing is missing in the end.
    """
    store, start, spent = job.store, time.monotonic(), 0.0
    missing = store.missing()
    total = store.manifest["rows"] * store.manifest["views"]
    if not missing:
        return
    there = total - sum(len(rows) for _, rows in missing)
    what = job.what if process.world_size == 1 else f"{job.what}, rank {process.rank} of {process.world_size}"
    done = 0
    with tqdm(total=total, initial=there, desc=what, unit="face") as progress, ThreadPoolExecutor(1) as ahead:
        for view, rows, inputs in _loaded_ahead(job, set(missing), process, ahead):
            if process.world_size > 1 and store.has(view, rows):
                continue
            before = time.monotonic()
            values = job.compute(inputs) if job.compute else inputs
            spent += time.monotonic() - before
            store.write(view, rows, values)
            done += len(rows)
            progress.update(len(rows))
    seconds = time.monotonic() - start
    if done:
        share = f"; {100 * spent / seconds:.1f} % of the time in the network" if job.compute else ""
        LOG.info("%s: %d faces in %.1f s, %.0f a second%s", what, done, seconds, done / seconds, share)


def _loaded_ahead(
    job: Extraction, missing: set[tuple[int, range]], process: ProcessInfo, thread: ThreadPoolExecutor
) -> Iterator[tuple[int, range, np.ndarray]]:
    """The missing pieces that this process has to compute, each loaded while the one before is computed."""
    # All views of the same rows for one process, which then decodes a face once.
    blocks = [list(views) for _, views in itertools.groupby(job.store.chunks(), key=lambda chunk: chunk[1])]
    others = [
        chunk for number, block in enumerate(blocks) if number % process.world_size != process.rank for chunk in block
    ]
    # In an order of one's own, so that those who help do not all help with the same piece.
    random = np.random.default_rng(process.rank).permutation(len(others))
    mine = [*itertools.chain(*blocks[process.rank :: process.world_size]), *(others[i] for i in random)]
    order = (chunk for chunk in mine if chunk in missing and (process.world_size == 1 or not job.store.has(*chunk)))
    waiting = None
    for view, rows in order:
        coming = (view, rows, thread.submit(job.load, view, rows))
        if waiting:
            yield *waiting[:2], waiting[2].result()
        waiting = coming
    if waiting:
        yield *waiting[:2], waiting[2].result()


def verify(job: Extraction) -> None:
    """Reads a whole store, which checks its checksums, and computes some of its rows again.

    Raises:
      GdrdError: a checksum is wrong, or a row is further from the stored one than other hardware, batches and
        float16 explain.
    """
    store, furthest = job.store, 0.0
    for view in tqdm(range(store.manifest["views"]), desc=f"{job.what}, verified", unit="view"):
        for start in range(0, store.manifest["rows"], CHUNK_ROWS):
            store.read(view, slice(start, start + CHUNK_ROWS))
        rng = np.random.default_rng(view)
        rows = np.sort(rng.permutation(store.manifest["rows"])[:VERIFIED])
        stored = store.read(view, rows).reshape(len(rows), -1).astype(np.float64)
        again = job.compute(job.load(view, rows)).reshape(len(rows), -1)
        difference = np.linalg.norm(stored - again, axis=1) / np.maximum(np.linalg.norm(again, axis=1), 1e-12)
        worst = int(difference.argmax())
        if not difference[worst] <= FURTHEST:
            raise GdrdError(
                f"{store.path}: view {view} of face {rows[worst]} has a relative error of {difference[worst]:.2g} "
                "against the same target computed again; remove this folder and run again",
                "targets-not-reproduced",
            )
        furthest = max(furthest, float(difference[worst]))
    LOG.info(
        "%s: every checksum is right; %d rows of each of %d views computed again differ by at most %.1e, relative",
        job.what, len(rows), store.manifest["views"], furthest,
    )  # fmt: skip


def view_loader(faces: Faces | MixupFaces, views: Views, *, low: bool) -> Callable[[int, Sequence[int]], np.ndarray]:
    """What `Extraction.load` reads views of faces with.

    Args:
      faces: aligned faces.
      views: how a view is made.
      low: reduce the views to the low resolution.

    Returns:
      A function `(view, rows) -> uint8 [n, 112, 112, 3]`, or `[n, R, R, 3]` if `low`. It decodes a face once for
      calls with the same rows that follow each other, the order of `FeatureStore.chunks`.
    """

    @functools.lru_cache(maxsize=1)
    def decoded(rows: tuple[int, ...]) -> list[np.ndarray]:
        return list(in_parallel(faces.__getitem__, rows))

    def load(view: int, rows: Sequence[int]) -> np.ndarray:
        rows = tuple(map(int, rows))
        if isinstance(faces, MixupFaces):
            mixed = faces.of_view(view)  # each view mixes other faces
            face = lambda position: mixed[rows[position]]  # noqa: E731
        else:
            face = decoded(rows).__getitem__

        def one(position: int) -> np.ndarray:
            high = views.augment(face(position), rows[position], view)
            return views.degrade(high, rows[position], view) if low else high

        return np.stack(list(in_parallel(one, range(len(rows)))))

    return load
