"""The faiss index of a gallery: which of its faces are worth comparing with a probe.

An index is derived from the embeddings in the gallery's database and only proposes faces; similarities come from the
database. A small gallery is compared as a whole (`IndexFlatIP`, in memory). A large one is compared by 8-bit codes of
its principal components (`PCAMatrix`, `IndexScalarQuantizer`), which are also kept in a file:

  generation   32 hexadecimal digits, the database's when the index was built
  checksum     uint32, little endian: CRC-32 of what follows
  index        as `faiss.serialize_index` writes it
"""

import contextlib
import dataclasses
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.utils.errors import require

EXACT = 20_000  # faces up to which comparing all embeddings, 6 ms at 512 dimensions, is about as fast as codes
AXES, SHARE = 128, 0.8  # at least so many principal axes, and as many as hold this share of the variance
SAMPLE = 50_000  # faces from which the axes are found
CANDIDATES = 100  # faces proposed for a probe, at least; ten of a million contained the best one
GROWTH = 1.1  # an index is built again when the gallery has grown by this factor, for its axes are of other faces
HEADER = struct.Struct("<32sI")

Blocks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]  # ids int64 [n] and embeddings float32 [n, D], by id


@dataclasses.dataclass
class GalleryIndex:
    """An index of the faces of one generation of a gallery's database.

    Attributes:
      generation: of the database; another one means that faces were removed or replaced.
      exact: whether embeddings are compared, rather than codes.
      built: number of faces when it was built.
      last: the largest id of its faces; a database gives added faces larger ones.
      faiss: an `IndexIDMap2`, whose ids are the database's.
    """

    generation: str
    exact: bool
    built: int
    last: int
    faiss: Any

    def serves(self, generation: str, faces: int) -> bool:
        """Whether it is of this generation and needs only to be extended for a gallery of `faces` faces."""
        if self.generation != generation or self.exact != (faces <= EXACT):
            return False
        return self.exact or faces <= GROWTH * self.built

    def extend(self, ids: np.ndarray, embeddings: np.ndarray) -> None:
        """Adds faces: ids int64 `[n]`, rising, all above `last`, and embeddings float32 `[n, D]`."""
        self.faiss.add_with_ids(embeddings, ids)
        self.last = int(ids[-1])

    def candidates(self, probes: np.ndarray, k: int) -> list[np.ndarray]:
        """For each probe, float32 `[N, D]`, ids among which the `k` most similar faces are."""
        count = min(k if self.exact else max(CANDIDATES, 4 * k), self.faiss.ntotal)
        return [ids[ids >= 0] for ids in self.faiss.search(probes, count)[1]]


def build(generation: str, dim: int, faces: int, blocks: Blocks) -> GalleryIndex:
    """Builds the index of a gallery of `faces` faces, which `blocks` reads."""
    faiss = require("faiss")
    exact = faces <= EXACT
    if exact:
        inner = faiss.IndexFlatIP(dim)
    else:
        step = max(1, faces // SAMPLE)
        inner = _codes(faiss, np.concatenate([embeddings[::step] for _, embeddings in blocks()]))
    index = GalleryIndex(generation, exact, faces, -1, faiss.IndexIDMap2(inner))
    for ids, embeddings in blocks():
        index.extend(ids, embeddings)
    return index


def _codes(faiss: Any, sample: np.ndarray) -> Any:
    """An empty index of 8-bit principal components, trained on `sample`, float32 `[S, D]`."""
    axes = faiss.PCAMatrix(sample.shape[1], sample.shape[1])
    axes.train(sample)
    variance = np.cumsum(faiss.vector_to_array(axes.eigenvalues))
    axes.d_out = min(axes.d_in, max(AXES, 1 + int(np.searchsorted(variance, SHARE * variance[-1]))))
    axes.prepare_Ab()
    # Without faiss's centering the product of two projections approximates the cosine.
    faiss.copy_array_to_vector(np.zeros(axes.d_out, np.float32), axes.b)
    codes = faiss.IndexScalarQuantizer(axes.d_out, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT)
    codes.train(axes.apply(sample))
    return faiss.IndexPreTransform(axes, codes)


def read(file: Path) -> GalleryIndex | None:
    """Reads what `write` wrote; None where it is missing or damaged, so that it has to be built again."""
    faiss = require("faiss")
    try:
        content = file.read_bytes()
        generation, checksum = HEADER.unpack_from(content)
        payload = np.frombuffer(content, np.uint8, offset=HEADER.size)
        if zlib.crc32(payload.data) != checksum:
            return None
        index = faiss.deserialize_index(payload)
        ids = faiss.vector_to_array(index.id_map)
    except (OSError, struct.error, ValueError, RuntimeError, AttributeError):  # the last two: another faiss wrote it
        return None
    return GalleryIndex(generation.decode("ascii", "replace"), False, len(ids), int(ids.max(initial=-1)), index)


def write(index: GalleryIndex, file: Path) -> None:
    """Replaces the file atomically by an index of codes, and deletes it for an exact one, which needs none.

    Nothing happens where the folder cannot be written: the file only saves time.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        if index.exact:
            file.unlink(missing_ok=True)
            return
        payload = require("faiss").serialize_index(index.faiss)
        try:
            with temporary.open("wb") as opened:
                opened.write(HEADER.pack(index.generation.encode(), zlib.crc32(payload)))
                opened.write(payload)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
