"""The faiss index of a gallery in SQLite: kept in memory and in a file, and always of the faces in the database."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gdrd_jax.galleries import faiss_index

if TYPE_CHECKING:
    from gdrd_jax.galleries.sqlite import SqliteFaces

INDEX = "gallery.faiss"
PROBES = 256  # compared at once


class FaissSearch:
    """Proposes faces of a database; its methods take that database, whose index it is."""

    def __init__(self) -> None:
        """Makes one without an index, which the first search reads or builds."""
        self._index: faiss_index.GalleryIndex | None = None
        self._building = threading.Lock()

    def forget(self) -> None:
        """Drops the index in memory."""
        self._index = None

    def candidates(self, faces: "SqliteFaces", probes: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """For each probe, float32 `[N, D]`, ids among which the `k` most similar faces are; called within `reading`."""
        if not faces.count():
            yield from np.zeros((len(probes), 0), np.int64)
            return
        index = self._prepared(faces)
        for start in range(0, len(probes), PROBES):
            yield from index.candidates(probes[start : start + PROBES], k)

    def _prepared(self, faces: "SqliteFaces") -> faiss_index.GalleryIndex:
        """The index of the faces that the database holds now: the one in memory, from its file, or a new one."""
        generation, count = faces.state()
        index = self._index if self._has_index(faces) else None
        if index is None:
            index = faiss_index.build(generation, faces.dim, count, faces.blocks)
            self._keep(faces, index)
        for ids, block in faces.blocks(after=index.last):
            index.extend(ids, block)
        return index

    def build_ahead(self, faces: "SqliteFaces") -> None:
        """Builds a missing index of a large gallery, which may take minutes, without a transaction that lasts as long.

        Other processes would have to wait with their changes, and fail in the end. Faces that they add meanwhile are
        added to the index; if they remove faces, it is not used.
        """
        with self._building:
            with faces.reading():
                generation, count = faces.state()
                if count <= faiss_index.EXACT or self._has_index(faces):
                    return
            index = faiss_index.build(generation, faces.dim, count, faces.blocks)
            with faces.reading():
                if index.serves(*faces.state()):
                    self._keep(faces, index)

    def _has_index(self, faces: "SqliteFaces") -> bool:
        """Whether the index in memory, or else the one in the file, serves the faces that the database holds now."""
        generation, count = faces.state()
        if self._index is None or not self._index.serves(generation, count):
            self._index = faiss_index.read(faces.folder / INDEX) if faces.folder else None
        return self._index is not None and self._index.serves(generation, count)

    def _keep(self, faces: "SqliteFaces", index: faiss_index.GalleryIndex) -> None:
        """Uses an index from now on; called while the database cannot change: no removal may precede its file."""
        self._index = index
        if faces.folder:
            faiss_index.write(index, faces.folder / INDEX)
