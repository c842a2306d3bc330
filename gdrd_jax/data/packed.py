"""A training set in one small file: small faces as WebP, teacher embeddings in a few bits, labels.

About 900 bytes a face, so that it travels to machines with accelerators; stage dis reads it instead of everything that
comes before it (`config.data.packed`). Its input is drawn from the small faces inside the training step, see
`data.random_degradation`. The file is in the safetensors format:

  images    uint8 `[bytes]`: all faces, one after the other
  sizes     int32 `[N]`: bytes of each
  targets   uint8 `[bytes]`: int8 `[N, D]` compressed by zlib, unit-length embeddings divided by the metadata's `step`
  labels    int32 `[N]`: identities, or -1
"""

import dataclasses
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from PIL import Image
from tqdm import tqdm

from gdrd_jax.data.decoding import decode
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.errors import GdrdError, first_line
from gdrd_jax.utils.files import replacing_file

FORMAT = "gdrd_jax packed training set 1"
# Between two values of a target, in standard deviations of its numbers: rounding leaves a cosine of 1 - STEP^2 / 24.
STEP = 0.13
BLOCK = 4096  # faces at once


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array in memory with the methods of `data.feature_store.FeatureStore` that a `Dataset` needs.

    Attributes:
      values: `[N, views, ...]`.
    """

    values: np.ndarray

    @property
    def manifest(self) -> dict:
        """`rows`, `views`, `shape` and `dtype`."""
        rows, views, *shape = self.values.shape
        return {"rows": rows, "views": views, "shape": shape, "dtype": self.values.dtype.name}

    @property
    def row_bytes(self) -> int:
        """Size of one view of one row."""
        return self.values[0, 0].nbytes

    def read(self, view: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Rows of one view, `[n, ...]`."""
        return self.values[rows, view]

    def read_all(self, rows: slice | np.ndarray = slice(None), out: np.ndarray | None = None) -> np.ndarray:
        """All views of some rows, `[n, views, ...]`; into `out` if it is given."""
        if out is None:
            return self.values[rows]
        out[:] = self.values[rows]
        return out

    def reader(self, memory: int):
        """A function `(view, rows)`, as `FeatureStore.reader`; it needs no further memory."""
        return self.read


@dataclasses.dataclass(frozen=True)
class PackedSet:
    """What `load` read.

    Attributes:
      small: faces, uint8 `[N, 1, S, S, 3]`.
      targets: unit-length embeddings of T_d, float16 `[N, 1, D]`.
      labels: int32 `[N]`, -1 where the identity is not known.
      about: `name` and `fingerprint` of T_d, and `faces`, a fingerprint of the training set that was packed.
    """

    small: Stored
    targets: Stored
    labels: np.ndarray
    about: dict[str, str]


def pack(
    parts: Sequence[tuple[Faces, np.ndarray, np.ndarray, FeatureStore]], paths: Sequence[Path], *,
    teacher: dict, faces: str, size: int, quality: int, step: float = STEP,
) -> None:  # fmt: skip
    """Writes a training set, spread evenly over several files.

    Args:
      parts: faces, rows of them and of the store, labels of these rows (-1 for none), and the store of T_d's
        embeddings, whose first view is taken.
      paths: of the files; the faces are dealt out to them in turn.
      teacher: `name` and `fingerprint` of T_d.
      faces: fingerprint of all faces.
      size: side of the small faces in pixels; three times the student's resolution loses hardly anything.
      quality: of WebP, 1 to 100.
      step: see `STEP`.

    Raises:
      GdrdError: a file cannot be written.
    """
    count = len(paths)
    images, targets, labels = [], [], []
    with tqdm(total=sum(len(rows) for _, rows, _, _ in parts), desc="packing", unit="face") as progress:
        for source, rows, known, store in parts:
            for start in range(0, len(rows), BLOCK):
                block = rows[start : start + BLOCK]
                images += in_parallel(lambda row, source=source: _encoded(source[row], size, quality), block.tolist())
                targets.append(quantized(store.read(0, block), step))
                progress.update(len(block))
            labels.append(known)
    codes, labels = np.concatenate(targets), np.concatenate(labels).astype(np.int32)
    for number, path in enumerate(paths):
        own = images[number::count]
        arrays = {
            "images": np.frombuffer(b"".join(own), np.uint8), "sizes": np.array([*map(len, own)], np.int32),
            "targets": np.frombuffer(zlib.compress(codes[number::count].tobytes(), 9), np.uint8),
            "labels": np.ascontiguousarray(labels[number::count]),  # safetensors does not heed strides
        }  # fmt: skip
        about = {
            "format": FORMAT, "teacher": teacher["name"], "fingerprint": teacher["fingerprint"], "faces": faces,
            "step": repr(step / codes.shape[1] ** 0.5), "size": str(size), "dim": str(codes.shape[1]),
            "piece": f"{number + 1} of {count}",
        }  # fmt: skip
        with replacing_file(path) as file:
            file.write(safetensors.numpy.save(arrays, about))


def _encoded(face: np.ndarray, size: int, quality: int) -> bytes:
    file = io.BytesIO()
    small = Image.fromarray(face).resize((size, size), Image.Resampling.BOX)
    small.save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def quantized(embeddings: np.ndarray, step: float = STEP) -> np.ndarray:
    """Embeddings `[n, D]` in the unit of a packed set's targets, int8 `[n, D]`."""
    x = unit(embeddings.astype(np.float32))
    return np.clip(np.rint(x * (x.shape[1] ** 0.5 / step)), -127, 127).astype(np.int8)


def is_packed(path: Path) -> bool:
    """Whether a file is one that `pack` writes."""
    return has_format(path, FORMAT)


def has_format(path: Path, name: str) -> bool:
    """Whether a file is of the safetensors format, with `format` of this name in its metadata."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == name
    except (safetensors.SafetensorError, OSError):
        return False


def load(paths: Sequence[Path]) -> PackedSet:
    """Reads the files of a training set into memory.

    Raises:
      GdrdError: one is missing, damaged, or of another training set.
    """
    pieces = [_read(path) for path in paths]
    first = pieces[0][1]
    for path, (_, about) in zip(paths, pieces):
        odd = [key for key in ("fingerprint", "faces", "size", "dim") if about[key] != first[key]]
        if odd:
            raise GdrdError(
                f"{path} belongs to another training set than {paths[0]}: {', '.join(odd)} differ; give the files of "
                "one set",
                "packed-mismatch",
            )
    names = [about["piece"] for _, about in pieces]
    count = int(names[0].split(" of ")[1])
    if sorted(names) != sorted(f"{number + 1} of {count}" for number in range(count)):
        raise GdrdError(
            f"the training set has {count} files, and these are {', '.join(names)}; give each file once",
            "packed-incomplete",
        )
    pieces.sort(key=lambda piece: int(piece[1]["piece"].split()[0]))  # the order in which they are given does not count
    small = np.concatenate([arrays["small"] for arrays, _ in pieces])
    targets = np.concatenate([arrays["targets"] for arrays, _ in pieces])
    labels = np.concatenate([arrays["labels"] for arrays, _ in pieces])
    about = {"name": first["teacher"], "fingerprint": first["fingerprint"], "faces": first["faces"]}
    return PackedSet(Stored(small[:, None]), Stored(targets[:, None]), labels, about)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if not path.is_file():
        raise GdrdError(f"there is no file {str(path)!r}; gdrd pack writes it", "file-missing")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise GdrdError(
                    f"{path} is not a packed training set that this version reads; write one with gdrd pack",
                    "packed-format",
                )
            arrays = {name: file.get_tensor(name) for name in ("images", "sizes", "targets", "labels")}
        ends = np.cumsum(arrays["sizes"])
        data, size, dim = arrays["images"].tobytes(), int(about["size"]), int(about["dim"])
        codes = np.frombuffer(zlib.decompress(arrays["targets"].tobytes()), np.int8).reshape(len(ends), dim)
        if len(arrays["labels"]) != len(ends) or (len(ends) and ends[-1] != len(data)):
            raise ValueError("its arrays are of different lengths")
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, zlib.error) as error:
        raise GdrdError(
            f"{path} is damaged ({first_line(error)}); write it again with gdrd pack", "packed-damaged"
        ) from error
    small = np.empty((len(ends), size, size, 3), np.uint8)

    def fill(row: int) -> None:
        small[row] = decode(data[ends[row] - arrays["sizes"][row] : ends[row]], f"face {row} of {path}")

    for _ in in_parallel(fill, range(len(ends))):
        pass
    targets = (codes * np.float32(about["step"])).astype(np.float16)
    return {"small": small, "targets": targets, "labels": arrays["labels"]}, about
