"""The cache: what is computed once from each (face, view) and read many times.

A cache is a folder with one zarr3 array a view (rows in data set order, crc32c
checksums) and `manifest.json`: what made it, its shape and how many rows are done.
Rows are written a chunk at a time and counted after the chunk is on disk, so
killing the writer loses at most one chunk.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import tensorstore as ts

from gdrd_jax.errors import GdrdError
from gdrd_jax.files import write_json

CHUNK_ROWS = 256


def _spec(path: Path, shape: tuple[int, ...], dtype: str) -> dict:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
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
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
    }


@dataclasses.dataclass
class Cache:
    """One teacher's targets (or the low-resolution faces themselves) for every face and view.

    Attributes:
      path: folder of the cache.
      manifest: `views`, `rows`, `shape` (of one row), `dtype`, `rows_done` (a view's
        number, as text -> rows) and `made_from`, whatever the writer says of its origin.
    """

    path: Path
    manifest: dict

    @classmethod
    def create(
        cls, path: Path, *, rows: int, views: int, shape: tuple[int, ...], dtype: str, made_from: dict
    ) -> "Cache":
        """Opens the cache at `path` to go on writing, or starts one.

        Raises:
          GdrdError: the folder holds a cache of something else.
        """
        wanted = {"rows": rows, "views": views, "shape": list(shape), "dtype": dtype, "made_from": made_from}
        if (path / "manifest.json").exists():
            cache = cls._read(path)
            found = {key: cache.manifest[key] for key in wanted}
            if found != wanted:
                raise GdrdError(f"{path} holds targets made from something else; remove it or choose another workdir")
            return cache
        path.mkdir(parents=True, exist_ok=True)
        cache = cls(path, {**wanted, "rows_done": {str(view): 0 for view in range(views)}})
        write_json(path / "manifest.json", cache.manifest)
        return cache

    @classmethod
    def open(cls, path: Path) -> "Cache":
        """Opens a finished cache.

        Raises:
          GdrdError: it is missing or unfinished.
        """
        cache = cls._read(path)
        if any(done < cache.manifest["rows"] for done in cache.manifest["rows_done"].values()):
            raise GdrdError(f"{path} is not finished: {cache.manifest['rows_done']} rows of {cache.manifest['rows']}")
        return cache

    @classmethod
    def _read(cls, path: Path) -> "Cache":
        try:
            return cls(path, json.loads((path / "manifest.json").read_text()))
        except (OSError, ValueError) as error:
            raise GdrdError(f"{path} holds no readable manifest.json of a target cache") from error

    def rows_done(self, view: int) -> int:
        """Rows of `view` that are on disk."""
        return self.manifest["rows_done"][str(view)]

    def _array(self, view: int, **how):
        shape = (self.manifest["rows"], *self.manifest["shape"])
        return ts.open(_spec(self.path / f"view{view}", shape, self.manifest["dtype"]), **how).result()

    def write(self, view: int, start: int, values: np.ndarray) -> None:
        """Writes rows `start:start + len(values)` of `view`; `start` is where the last write ended.

        Raises:
          GdrdError: a value is not finite.
        """
        if start != self.rows_done(view):
            raise ValueError(f"rows come in order: {start} after {self.rows_done(view)}")
        with np.errstate(over="ignore"):  # told below
            values = values.astype(self.manifest["dtype"])
        if not np.isfinite(values).all():
            bad = start + int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(axis=1)))
            raise GdrdError(
                f"view {view} of face {bad} gives a value that is not finite in {values.dtype}; "
                f"look at this face and at the teacher behind {self.path}"
            )
        array = self._array(view, open=True, create=True)
        array[start : start + len(values)].write(values).result()
        self.manifest["rows_done"][str(view)] = start + len(values)
        write_json(self.path / "manifest.json", self.manifest)

    def read(self, view: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Rows of one view, `[n, *shape]`.

        Raises:
          GdrdError: a chunk is missing or its checksum is wrong.
        """
        if isinstance(rows, slice):
            rows = slice(*rows.indices(self.manifest["rows"]))
        try:
            return self._array(view, open=True, read=True)[rows].read().result()
        except ValueError as error:
            raise GdrdError(f"{self.path}/view{view} is damaged; remove {self.path.parent} and run again") from error

    def read_all(self) -> np.ndarray:
        """Every view of every row, `[N, views, *shape]`."""
        return np.stack([self.read(view) for view in range(self.manifest["views"])], axis=1)


def channel_statistics(cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over faces, views and positions of features `[C, h, w]`: float32 `[C]` each."""
    count, total, squares = 0, 0.0, 0.0
    for view in range(cache.manifest["views"]):
        for start in range(0, cache.manifest["rows"], CHUNK_ROWS):
            chunk = cache.read(view, slice(start, start + CHUNK_ROWS)).astype(np.float64)
            count += chunk.size // chunk.shape[1]
            total = total + chunk.sum(axis=(0, 2, 3))
            squares = squares + (chunk**2).sum(axis=(0, 2, 3))
    mean = total / count
    return mean.astype(np.float32), np.sqrt(np.maximum(squares / count - mean**2, 0)).astype(np.float32)
