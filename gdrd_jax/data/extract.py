"""Runs what is fixed once over every face and view, into stores (`gdrd_jax.data.feature_store`)."""

import collections
import dataclasses
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
from gdrd_jax.utils.signals import check_signals

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


def extract(*jobs: Extraction, process: ProcessInfo = SINGLE_PROCESS) -> None:
    """Computes the pieces of the stores that are not there yet.

    Several jobs are of the same faces: they are done side by side, so that what they load can be read once.

    Of several processes each takes its share, and then whatever the others have not done: one that comes late, is
    slower or dies costs time, but nothing is missing in the end.
    """
    start, spent, done = time.monotonic(), [0.0] * len(jobs), [0] * len(jobs)
    missing = [set(job.store.missing()) for job in jobs]
    if not any(missing):
        return
    total = sum(job.store.manifest["rows"] * job.store.manifest["views"] for job in jobs)
    there = total - sum(len(rows) for pieces in missing for _, rows in pieces)
    rank = "" if process.world_size == 1 else f", rank {process.rank} of {process.world_size}"
    shown = " + ".join(job.what for job, pieces in zip(jobs, missing) if pieces) + rank
    with tqdm(total=total, initial=there, desc=shown, unit="face") as progress, ThreadPoolExecutor(1) as ahead:
        for number, view, rows, loaded in _loaded_ahead(jobs, missing, process, ahead):
            job = jobs[number]
            if process.world_size > 1 and job.store.has(view, rows):
                continue
            before = time.monotonic()
            values = job.compute(loaded) if job.compute else loaded
            spent[number] += time.monotonic() - before
            job.store.write(view, rows, values)
            done[number] += len(rows)
            progress.update(len(rows))
            check_signals()
    seconds = time.monotonic() - start
    for job, count, busy in zip(jobs, done, spent):
        if count:
            share = f"; {100 * busy / seconds:.1f} % of the time in the network" if job.compute else ""
            rate = count / seconds
            LOG.info("%s: %d faces in %.1f s, %.0f a second%s", job.what + rank, count, seconds, rate, share)


def _loaded_ahead(
    jobs: Sequence[Extraction], missing: Sequence[set], process: ProcessInfo, thread: ThreadPoolExecutor
) -> Iterator[tuple[int, int, range, np.ndarray]]:
    """The missing pieces that this process has to compute, loaded while those before are computed.

    Yields:
      The number of the job, view and rows of the piece, and what was loaded.
    """
    pieces = sorted(
        ((view, rows, number) for number, job in enumerate(jobs) for view, rows in job.store.chunks()),
        key=lambda piece: (piece[1].start, piece[0], piece[2]),
    )
    # All jobs and views of the same rows for one process, which then reads a face once.
    blocks = [list(block) for _, block in itertools.groupby(pieces, key=lambda piece: piece[1].start)]
    others = [
        piece for number, block in enumerate(blocks) if number % process.world_size != process.rank for piece in block
    ]
    # In a random order, so that processes that help do not all compute the same piece.
    random = np.random.default_rng(process.rank).permutation(len(others))
    mine = [*itertools.chain(*blocks[process.rank :: process.world_size]), *(others[i] for i in random)]
    waiting: collections.deque = collections.deque()
    for view, rows, number in mine:
        job = jobs[number]
        if (view, rows) in missing[number] and (process.world_size == 1 or not job.store.has(view, rows)):
            waiting.append((number, view, rows, thread.submit(job.load, view, rows)))
            # One piece of each job waits: beside pieces that need no computing one alone would come too late.
            if len(waiting) > len(jobs):
                *piece, coming = waiting.popleft()
                yield *piece, coming.result()
    for *piece, coming in waiting:
        yield *piece, coming.result()


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


class BlockReader:
    """Reads blocks of faces, and keeps the last block for other loaders that need the same faces.

    Attributes:
      faces: aligned faces, or mixup images.
    """

    def __init__(self, faces: Faces | MixupFaces):
        self.faces = faces
        self._key: tuple | None = None
        self._block: list[np.ndarray] = []

    def read(self, view: int, rows: tuple[int, ...]) -> list[np.ndarray]:
        """Faces, uint8 `[S, S, C]` each; of mixup images those of a view, which differ from view to view."""
        mixed = isinstance(self.faces, MixupFaces)
        key = (view if mixed else 0, rows)
        if key != self._key:
            faces = self.faces.of_view(view) if mixed else self.faces
            self._block, self._key = list(in_parallel(faces.__getitem__, rows)), key
        return self._block


def view_loader(reader: BlockReader, views: Views, *, low: bool) -> Callable[[int, Sequence[int]], np.ndarray]:
    """What `Extraction.load` reads views of faces with.

    Args:
      reader: reads the faces; may be shared with other loaders.
      views: how a view is made.
      low: reduce the views to the low resolution.

    Returns:
      A function `(view, rows) -> uint8 [n, S, S, C]`, or `[n, R, R, C]` if `low`.
    """

    def load(view: int, rows: Sequence[int]) -> np.ndarray:
        rows = tuple(map(int, rows))
        faces = reader.read(view, rows)

        def one(position: int) -> np.ndarray:
            high = views.augment(faces[position], rows[position], view)
            return views.degrade(high, rows[position], view) if low else high

        return np.stack(list(in_parallel(one, range(len(rows)))))

    return load
