"""Feature stores: values that are computed once for each (face, view) and read many times.

A store is a folder with one zarr3 array per view (rows in data set order, crc32c checksums) and `manifest.json`, which
records its provenance and its shape. An array is written in chunks of rows; each chunk is a file that appears under its
name only when it is complete. So a killed writer loses at most the chunk in progress, and any number of writers, on any
number of machines, can fill one store without coordination. The arrays can be in an object store instead of the folder
(`manifest["arrays"]`), where all stores with the same provenance share them.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from gdrd_jax.data import object_store
from gdrd_jax.utils.errors import GdrdError, first_line
from gdrd_jax.utils.files import digest, storable, write_json, writing

FORMAT = 2  # of the folder
CHUNK_ROWS = 256
PROVENANCE_BEFORE = "made_from"  # in the manifests of versions up to 0.4
CHECKSUM = 4  # bytes that crc32c adds to a chunk


def _spec(kvstore: dict, shape: tuple[int, ...], dtype: str) -> dict:
    return {
        "driver": "zarr3",
        "kvstore": kvstore,
        # A lost chunk must be an error, not zeros.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [CHUNK_ROWS, *shape[1:]]},
            },
            # All chunks as files of one folder, "NUMBER.0.0".
            "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
    }


@dataclasses.dataclass
class FeatureStore:
    """The targets of one teacher (or the low-resolution faces themselves) for every face and view.

    Attributes:
      path: folder of the store.
      manifest: `views`, `rows`, `shape` (of one row) and `dtype`; `provenance`, which says what the values were
        computed from and identifies a store (`faces` is the data set's fingerprint); `about`, other facts about how it
        was made; and `arrays`, the URL of the folder in an object store that contains the arrays, or "".
      row_bytes: size in bytes of one view of one row.
    """

    path: Path
    manifest: dict

    @classmethod
    def create(
        cls, path: Path, *, rows: int, views: int, shape: tuple[int, ...], dtype: str, provenance: dict,
        about: dict | None = None, arrays: str = "",
    ) -> "FeatureStore":  # fmt: skip
        """Opens the store at `path` to continue writing, or creates it, with its arrays at the URL `arrays` if given.

        Raises:
          GdrdError: the folder holds a store with another provenance, or TensorStore cannot read its path.
        """
        wanted = {
            "format": FORMAT, "rows": rows, "views": views, "shape": list(shape), "dtype": dtype,
            "provenance": provenance,
        }  # fmt: skip
        path = storable(path)
        if not (path / "manifest.json").exists():
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "manifest.json", {**wanted, "about": about or {}, "arrays": arrays})
        store = cls._read(path)
        odd = [key for key, value in wanted.items() if store.manifest.get(key) != value]
        if odd:
            raise GdrdError(
                f"{path} holds targets that were made from something else ({', '.join(odd)} differ); remove it or "
                "choose another workdir",
                "targets-other-source",
            )
        return store

    @classmethod
    def open(cls, path: Path, *, faces: str = "") -> "FeatureStore":
        """Opens a finished store.

        Args:
          path: folder of the store.
          faces: fingerprint of the data set that it must belong to; "" accepts any.

        Raises:
          GdrdError: it is missing, unfinished, or of another data set.
        """
        store = cls._read(storable(path))
        if faces and store.manifest["provenance"].get("faces") != faces:
            raise GdrdError(f"{path} holds targets of another data set; remove it and run again", "targets-other-faces")
        missing = store.missing()
        if missing:
            (view, rows), pieces = missing[0], len(list(store.chunks()))
            raise GdrdError(
                f"{path} is not finished: {len(missing)} of {pieces} pieces are missing or cut short, first rows "
                f"{rows.start}-{rows.stop - 1} of view {view}; run the command that made it again, and if that reports "
                f"the step as done, remove {path.parent} first",
                "targets-unfinished",
            )
        return store

    @classmethod
    def _read(cls, path: Path) -> "FeatureStore":
        try:
            store = cls(path, json.loads((path / "manifest.json").read_text(encoding="utf-8")))
            if store.manifest["format"] != FORMAT:
                raise ValueError(f"format {store.manifest['format']}")
            provenance = store.manifest.pop(PROVENANCE_BEFORE, None)  # of a store that an earlier version began
            store.manifest.setdefault("provenance", provenance)
            if not isinstance(store.manifest["provenance"], dict):
                raise ValueError("no provenance")
            # The names of the arrays stay those of earlier versions, with which an object store may be shared.
            name = digest(
                {key: store.manifest[key] for key in ("rows", "shape", "dtype")}
                | {PROVENANCE_BEFORE: store.manifest["provenance"]}
            )
            store._folders = f"view{{}}.{name[:8]}"
            store.row_bytes = math.prod(store.manifest["shape"]) * np.dtype(store.manifest["dtype"]).itemsize
            store._piece_bytes = CHUNK_ROWS * store.row_bytes + CHECKSUM
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GdrdError(
                f"{path} has no manifest.json of a feature store that this version reads; remove it and run again",
                "targets-manifest",
            ) from error
        return store

    def chunks(self) -> Iterator[tuple[int, range]]:
        """View and rows of every chunk, in order: all views of the first rows, then of the next rows."""
        rows = self.manifest["rows"]
        for start in range(0, rows, CHUNK_ROWS):
            for view in range(self.manifest["views"]):
                yield view, range(start, min(start + CHUNK_ROWS, rows))

    def has(self, view: int, rows: range) -> bool:
        """Whether a chunk exists and, on disk, has its full size."""
        if self._url:
            return bool(object_store.keys(self._place(view), self._piece(rows)))
        try:
            return os.stat(f"{self._place(view)}/{self._piece(rows)}").st_size == self._piece_bytes
        except FileNotFoundError:
            return False

    def missing(self) -> list[tuple[int, range]]:
        """The chunks that do not exist yet."""
        if not self._url:
            return [(view, rows) for view, rows in self.chunks() if not self.has(view, rows)]
        there = [object_store.keys(self._place(view)) for view in range(self.manifest["views"])]
        return [(view, rows) for view, rows in self.chunks() if self._piece(rows) not in there[view]]

    def _piece(self, rows: range) -> str:
        return ".".join([str(rows.start // CHUNK_ROWS), *["0"] * len(self.manifest["shape"])])

    @property
    def _url(self) -> str:
        return self.manifest.get("arrays", "")

    def _place(self, view: int) -> str:
        # Named by what it is made from: a process that was left behind by an older run must not write into it.
        return f"{self._url or self.path}/{self._folders.format(view)}"

    def _array(self, view: int, **mode):
        shape, place = (self.manifest["rows"], *self.manifest["shape"]), self._place(view)
        kvstore = object_store.kvstore(place) if self._url else {"driver": "file", "path": place}
        return ts.open(_spec(kvstore, shape, self.manifest["dtype"]), **mode).result()

    def write(self, view: int, rows: range, values: np.ndarray) -> None:
        """Writes one of `chunks`, `[len(rows), *shape]`.

        Raises:
          GdrdError: a value is not finite, or the disk is full.
        """
        if len(values) != len(rows) or rows.start % CHUNK_ROWS:
            raise ValueError(f"{len(values)} values for rows {rows}, which must be one of chunks()")
        with np.errstate(over="ignore"):  # reported below
            values = values.astype(self.manifest["dtype"])
        if not np.isfinite(values).all():
            bad = rows.start + int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(axis=1)))
            raise GdrdError(
                f"the teacher's output for view {view} of face {bad} is not finite in {values.dtype}; check this face "
                f"and the teacher whose targets are in {self.path}",
                "targets-not-finite",
            )
        with writing(self._url or self.path):
            self._array(view, open=True, create=True)[rows.start : rows.stop].write(values).result()

    def read(self, view: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Reads rows of one view, `[n, *shape]`; takes memory for these rows and one chunk only.

        Raises:
          GdrdError: a chunk is missing or its checksum is wrong, or the object store cannot be read.
        """
        if isinstance(rows, slice):
            rows = slice(*rows.indices(self.manifest["rows"]))
        return self._read_from(self._array(view, open=True, read=True), view, rows)

    def reader(self, memory: int) -> Callable[[int, np.ndarray], np.ndarray]:
        """A function like `read` for many calls with any rows in any order; it caches up to `memory` bytes."""
        context = ts.Context({"cache_pool": {"total_bytes_limit": memory}})
        mode = {"open": True, "read": True, "context": context, "recheck_cached_data": "open"}
        arrays = [self._array(view, **mode) for view in range(self.manifest["views"])]
        return lambda view, rows: self._read_from(arrays[view], view, rows)

    def _read_from(self, array: ts.TensorStore, view: int, rows: slice | np.ndarray) -> np.ndarray:
        try:
            return array[rows].read().result()
        except ValueError as error:
            if self._url:
                raise GdrdError(
                    f"{self._place(view)} cannot be read: {first_line(error)}; if it is damaged, remove it there and "
                    "run again",
                    "targets-unreadable",
                ) from error
            raise GdrdError(
                f"view {view} of {self.path} is damaged; remove {self.path.parent} and run again", "targets-damaged"
            ) from error

    def read_all(self, rows: slice | np.ndarray = slice(None), out: np.ndarray | None = None) -> np.ndarray:
        """Reads every view of all rows or of the given ones, `[N, views, *shape]`, into `out` if it is given."""
        if out is None:
            count = len(np.arange(self.manifest["rows"])[rows])
            out = np.empty((count, self.manifest["views"], *self.manifest["shape"]), self.manifest["dtype"])
        for view in range(self.manifest["views"]):
            out[:, view] = self.read(view, rows)
        return out


def feature_statistics(store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of features `[C, h, w]` over a store.

    Returns:
      The mean over faces and views, float32 `[C, h, w]`, and the standard deviation of each channel from this mean,
      over faces, views and positions, `[C]`.
    """
    count, total, squares = 0, 0.0, 0.0
    for view in range(store.manifest["views"]):
        for start in range(0, store.manifest["rows"], CHUNK_ROWS):
            chunk = store.read(view, slice(start, start + CHUNK_ROWS)).astype(np.float64)
            count += len(chunk)
            total = total + chunk.sum(axis=0)
            squares = squares + (chunk**2).sum(axis=0)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0).mean(axis=(1, 2))
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
