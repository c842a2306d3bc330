"""A set of known faces, and which of them a face is most like.

On disk a gallery is a folder with `gallery.json` (format, recognizer, sizes) that names a folder beside it with

  embeddings.f32   float32 `[N, D]`, unit length, little endian
  faces.jsonl      a line a face: its id and metadata
  starts.i64       int64 `[N + 1]`: where each line begins, and where the last one ends
  axes.npy         float32 `[D, A]`, of large galleries: their embeddings' principal axes
  codes.faiss      uint8 `[N, A]`, of large galleries: all faces along these axes

Nothing of it is read on opening. A small gallery is searched as it is. Of a large one all codes are compared with the
probe, and only the best faces' embeddings.
"""

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import locked, user_path, write_json, writing

FORMAT = 1  # of the folder
MANIFEST, VERSION = "gallery.json", "gallery."
OURS = re.compile(re.escape(VERSION) + "[0-9a-f]{8}")
EXACT = 20_000  # faces up to which codes would save no time
AXES, SHARE = 128, 0.8  # at least so many axes, and as many as hold this share of the embeddings' variance
SAMPLE = 50_000  # faces from which the axes are found
CODES = 127  # the largest; the smallest is -127
CANDIDATES = 300  # faces whose embeddings are compared, at least; ten of a million had the best one among them
BLOCK, PROBES = 16_384, 256  # faces and probes at once
UNIT = 0.01  # how far from 1 a length may be: float16 is


class Match(NamedTuple):
    """A face of the gallery; `similarity` is its cosine with the probe."""

    id: str
    similarity: float
    metadata: dict


class Gallery:
    """Known faces to search in.

    Any number of threads and processes may search at once, while none adds.

    Attributes:
      dim: D of its embeddings.
      fingerprint: of the recognizer that they are from.

    Examples:
      >>> gallery = Gallery(128, recognizer.fingerprint())
      >>> gallery.add(recognizer.embed(faces), ["ann", "bob"])
      >>> gallery.save("people")
      >>> Gallery.load("people", recognizer.fingerprint()).search(recognizer.embed(probes))[0][0].id
    """

    def __init__(self, dim: int, fingerprint: str):
        """An empty one, in memory."""
        self.dim, self.fingerprint = dim, fingerprint
        self._folder: Path | None = None  # where it was loaded from or saved
        self._version: str | None = None  # of what is there
        # What was loaded comes first, and is never changed.
        self._saved, self._text, self._starts = np.empty((0, dim), "<f4"), np.empty(0, np.uint8), np.zeros(1, "<i8")
        self._axes = self._codes = None
        self._room, self._lines = np.empty((0, dim), "<f4"), []  # room grows by doubling

    def __len__(self) -> int:
        return len(self._saved) + len(self._lines)

    def add(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None = None) -> None:
        """Adds faces; a folder that it was loaded from changes only by `save`.

        Args:
          embeddings: float `[N, D]`, unit length.
          ids: N names of people, who may have any number of faces.
          metadata: N dicts of what JSON can hold; empty ones if None.

        Raises:
          GdrdError: another shape, type, length or count. Nothing is added then.
        """
        embeddings = _unit(embeddings, self.dim)
        metadata = [{}] * len(ids) if metadata is None else metadata
        if not len(embeddings) == len(ids) == len(metadata):
            raise GdrdError(
                f"there are {len(embeddings)} embeddings, {len(ids)} ids and {len(metadata)} dicts of metadata; "
                "give one of each for each face"
            )
        lines = [_line(number, *entry) for number, entry in enumerate(zip(ids, metadata))]
        before, after = len(self._lines), len(self._lines) + len(lines)
        if after > len(self._room):
            room = np.empty((max(after, 2 * len(self._room)), self.dim), "<f4")
            room[:before] = self._room[:before]
            self._room = room
        self._room[before:after] = embeddings
        self._lines += lines

    def people(self) -> list[str]:
        """The distinct ids, in the order in which they were added; reads all lines."""
        return list(dict.fromkeys(self._entry(row)[0] for row in range(len(self))))

    def templates(self) -> "Gallery":
        """A gallery with one entry for each id, in memory.

        Returns:
          The mean of each one's embeddings, of unit length again, with the metadata of the first of them and, under
          "faces", how many they are.
        """
        numbers: dict[str, int] = {}
        owners = np.array([numbers.setdefault(self._entry(row)[0], len(numbers)) for row in range(len(self))], int)
        means = np.zeros((len(numbers), self.dim), np.float32)
        for first, block in self.blocks():
            own = owners[first : first + len(block)]
            order = np.argsort(own, kind="stable")
            present, starts = np.unique(own[order], return_index=True)
            means[present] += np.add.reduceat(block[order], starts)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        gallery = Gallery(self.dim, self.fingerprint)
        firsts, counts = np.unique(owners, return_index=True, return_counts=True)[1:]
        of_first = (self._entry(row)[1] for row in firsts)
        gallery.add(means, list(numbers), [one | {"faces": int(n)} for one, n in zip(of_first, counts)])
        return gallery

    def search(self, embeddings: np.ndarray, k: int = 5) -> list[list[Match]]:
        """The faces most like each probe.

        Which ones they are is exact in a gallery of up to `EXACT` faces and for faces added since it was loaded, and
        nearly so otherwise. Similarities always are.

        Args:
          embeddings: of the probes, float `[N, D]`, unit length.
          k: how many faces for each; all if there are fewer.

        Returns:
          For each probe its matches, the most similar first.

        Raises:
          GdrdError: another shape, type or length, `k` below 1, no face to search in, or damage.
        """
        probes = _unit(embeddings, self.dim)
        if not len(self):
            raise GdrdError("the gallery is empty; add faces before searching")
        if k < 1:
            raise GdrdError(f"k is {k}; ask for 1 match at least")
        found = []
        for start in range(0, len(probes), PROBES):
            block = probes[start : start + PROBES]
            found += [self._matches(probe, rows, k) for probe, rows in zip(block, self._candidates(block, k))]
        return found

    def _candidates(self, probes: np.ndarray, k: int) -> np.ndarray:
        """Rows `[P, C]` among which the best `k` are."""
        found, coded = [], 0
        if self._codes is not None:
            coded = len(self._saved)
            found.append(self._codes.search(probes @ self._axes, min(max(CANDIDATES, 4 * k), coded))[1])
        if coded < len(self):
            found.append(_nearest(probes, self.blocks(coded), k))
        return np.concatenate(found, axis=1)

    def _matches(self, probe: np.ndarray, rows: np.ndarray, k: int) -> list[Match]:
        rows = np.sort(rows)  # as they lie on disk; and of equals the first added comes first
        embeddings = self._rows(rows)
        # All of them at every opening would take seconds.
        if not (np.abs(np.linalg.norm(embeddings, axis=1) - 1) <= UNIT).all():
            raise self._damaged("an embedding is not of unit length")
        similarities = embeddings @ probe
        matches = []
        for best in np.argsort(-similarities, kind="stable")[:k]:
            name, metadata = self._entry(rows[best])
            matches.append(Match(name, float(similarities[best]), metadata))
        return matches

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of rising rows."""
        saved = np.searchsorted(rows, len(self._saved))
        return np.concatenate([self._saved[rows[:saved]], self._room[rows[saved:] - len(self._saved)]])

    def blocks(self, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """All embeddings from row `first` on, float32 `[n, D]` at a time, with the row that each block begins with."""
        for offset, part in ((0, self._saved), (len(self._saved), self._room[: len(self._lines)])):
            for row in range(max(first - offset, 0), len(part), BLOCK):
                yield offset + row, part[row : row + BLOCK]

    def _entry(self, row: int) -> tuple[str, dict]:
        if row >= len(self._saved):
            return json.loads(self._lines[row - len(self._saved)])
        try:
            name, metadata = json.loads(self._text[self._starts[row] : self._starts[row + 1]].tobytes())
        except (ValueError, TypeError) as error:
            raise self._damaged(f"line {row + 1} of faces.jsonl cannot be read") from error
        return name, metadata

    def _damaged(self, what: str) -> GdrdError:
        return GdrdError(f"the gallery {self._folder} is damaged: {what}; make it anew")

    def save(self, folder: str | Path, *, new: bool = False) -> None:
        """Writes the gallery, in the place of one that is there already; other files there are left alone.

        Whenever it is killed, the folder holds the old gallery or the new one, and whoever has opened the old one can
        go on searching in it.

        Args:
          folder: where to; it is made if it is missing.
          new: there must be no gallery yet.

        Raises:
          GdrdError: it is empty, another process is saving there or has saved since this one was loaded from there,
            or the folder could not be written.
        """
        if not len(self):
            raise GdrdError(f"the gallery is empty; add faces before saving it in {folder}")
        require_codes(len(self))
        folder = user_path(folder).resolve()
        version = f"{VERSION}{uuid.uuid4().hex[:8]}"
        with writing(folder), locked(folder):
            if new and _version(folder):
                raise GdrdError(f"another process has made the gallery {folder} meanwhile; load it and add to it")
            if self._folder == folder and self._version != _version(folder):
                raise GdrdError(f"the gallery {folder} was changed by another process meanwhile; load it and add again")
            try:
                (folder / version).mkdir()
                self._write(folder / version)
                sizes = {file.name: file.stat().st_size for file in (folder / version).iterdir()}
                write_json(folder / MANIFEST, {
                    "format": FORMAT, "fingerprint": self.fingerprint, "dim": self.dim, "faces": len(self),
                    "version": version, "sizes": sizes,
                })  # fmt: skip
            except BaseException:
                if _holds(folder, version):  # interrupted just after
                    self._folder, self._version = folder, version
                else:
                    shutil.rmtree(folder / version, ignore_errors=True)
                raise
            for old in folder.iterdir():
                if OURS.fullmatch(old.name) and old.name != version:
                    shutil.rmtree(old, ignore_errors=True)
        self._folder, self._version = folder, version

    def _write(self, folder: Path) -> None:
        with (folder / "embeddings.f32").open("wb") as file:
            for _, block in self.blocks():
                block.tofile(file)
        with (folder / "faces.jsonl").open("wb") as file:
            self._text.tofile(file)
            file.writelines(self._lines)
        ends = self._starts[-1] + np.cumsum([len(line) for line in self._lines], dtype="<i8")
        np.concatenate([self._starts, ends]).tofile(folder / "starts.i64")
        if len(self) > EXACT:
            self._write_codes(folder)

    def _write_codes(self, folder: Path) -> None:
        faiss = require_codes(len(self))
        sample = self._rows(np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(int))
        axes = _axes(sample)
        index = faiss.IndexScalarQuantizer(
            axes.shape[1], faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        for _, block in self.blocks():
            index.add(np.clip(np.rint(block @ axes), -CODES, CODES))
        np.save(folder / "axes.npy", axes)
        faiss.write_index(index, str(folder / "codes.faiss"))

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str | Sequence[str] | None = None) -> "Gallery":
        """Opens a saved gallery without reading it: it is mapped into memory.

        Args:
          folder: where it was saved.
          fingerprint: of the recognizer that the probes are from, or of all whose galleries they can be compared with
            (`Recognizer.comparable`), its own first; None takes a gallery of any.

        Raises:
          GdrdError: no gallery there, one of another recognizer, or damage.
        """
        folder = user_path(folder).resolve()
        manifest = _manifest(folder)
        accepted = [fingerprint] if isinstance(fingerprint, str) else fingerprint
        if accepted is not None and manifest["fingerprint"] not in accepted:
            from gdrd_jax.inference.pretrained import known_as  # OpenCV, which galleries do not need

            raise GdrdError(
                f"the gallery {folder} is of another recognizer ({known_as(manifest['fingerprint'])}, not "
                f"{' or '.join(map(known_as, accepted))}), whose embeddings cannot be compared; enroll its faces "
                "with this one"
            )
        gallery = cls(manifest["dim"], manifest["fingerprint"])
        gallery._folder, gallery._version = folder, manifest["version"]
        try:
            gallery._open(folder / manifest["version"], manifest)
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            if _manifest(folder) != manifest:  # saved again meanwhile
                return cls.load(folder, fingerprint)
            if isinstance(error, FileNotFoundError):
                raise gallery._damaged(f"{error.filename} is missing") from error
            raise gallery._damaged("its axes and codes cannot be read") from error
        return gallery

    def _open(self, folder: Path, manifest: dict) -> None:
        for name, size in manifest["sizes"].items():
            if (found := (folder / name).stat().st_size) != size:
                raise self._damaged(f"{folder / name} has {found} bytes of {size}")
        mapped = lambda name, dtype: np.asarray(np.memmap(folder / name, dtype, "r"))  # noqa: E731
        self._saved = mapped("embeddings.f32", "<f4").reshape(manifest["faces"], self.dim)
        self._text, self._starts = mapped("faces.jsonl", np.uint8), mapped("starts.i64", "<i8")
        if "codes.faiss" in manifest["sizes"]:
            faiss = require("faiss", "export")
            self._axes = np.load(folder / "axes.npy")
            self._codes = faiss.read_index(str(folder / "codes.faiss"), faiss.IO_FLAG_MMAP_IFC)
            if (self._codes.ntotal, self._codes.d) != (len(self._saved), self._axes.shape[1]):
                raise ValueError("codes of something else")


def require_codes(faces: int):
    """Imports faiss if a gallery of so many faces needs codes.

    Raises:
      GdrdError: faiss is not installed.
    """
    return require("faiss", "export") if faces > EXACT else None


def _manifest(folder: Path) -> dict:
    if not folder.exists():
        raise GdrdError(f"there is no gallery {str(folder)!r}; gdrd enroll, or Gallery.save, makes one")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
        for key, kind in {"fingerprint": str, "dim": int, "faces": int, "version": str, "sizes": dict}.items():
            if not isinstance(manifest[key], kind):
                raise ValueError(f"{key} is {manifest[key]!r}")
        if not OURS.fullmatch(manifest["version"]):
            raise ValueError(f"version {manifest['version']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(f"{folder} holds no {MANIFEST} of a gallery that this version reads; save one there") from error
    return manifest


def _holds(folder: Path, version: str) -> bool:
    try:
        return _version(folder) == version
    except GdrdError:
        return False


def _version(folder: Path) -> str | None:
    """Of the gallery that is there, if one is."""
    return _manifest(folder)["version"] if (folder / MANIFEST).exists() else None


def _unit(embeddings: np.ndarray, dim: int) -> np.ndarray:
    """float32 `[N, D]`, of unit length to the last digit."""
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or embeddings.dtype.kind != "f":
        raise GdrdError(f"embeddings are {embeddings.dtype} {list(embeddings.shape)}; give float [N, {dim}]")
    embeddings = embeddings.astype(np.float32)
    lengths = np.linalg.norm(embeddings, axis=1)
    odd = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT))  # NaN, too
    if len(odd):
        raise GdrdError(f"embedding {odd[0]} has length {lengths[odd[0]]:.3g}; give embeddings of unit length")
    return embeddings / lengths[:, None]


def _line(number: int, name: str, metadata: dict) -> bytes:
    if not isinstance(name, str) or not isinstance(metadata, dict):
        raise GdrdError(
            f"face {number} has the id {name!r} and the metadata {metadata!r}; give text as id and a dict as metadata"
        )
    try:
        return json.dumps([name, metadata]).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise GdrdError(f"the metadata of face {number} ({name}) cannot be written as JSON: {error}") from error


def _axes(sample: np.ndarray) -> np.ndarray:
    """Principal axes `[D, A]` of embeddings, so long that faces along them are the whole numbers of their codes.

    They begin at zero, not at the faces' mean: dot products are kept.
    """
    axes = np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
    along = sample @ axes
    variance = np.cumsum(along.var(axis=0))  # what all faces share tells none from another
    count = max(AXES, 1 + int(np.searchsorted(variance, SHARE * variance[-1])))
    return np.ascontiguousarray(axes[:, :count] * (CODES / np.abs(along[:, :count]).max()), np.float32)


def _nearest(probes: np.ndarray, blocks: Iterator[tuple[int, np.ndarray]], k: int) -> np.ndarray:
    """Rows `[P, k]` of the best in all blocks, in no order; fewer if there are not so many."""
    rows, similarities = np.empty((len(probes), 0), int), np.empty((len(probes), 0), np.float32)
    for first, block in blocks:
        own = np.broadcast_to(np.arange(first, first + len(block)), (len(probes), len(block)))
        rows = np.concatenate([rows, own], axis=1)
        similarities = np.concatenate([similarities, probes @ block.T], axis=1)
        if rows.shape[1] > k:
            kept = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
            rows, similarities = (np.take_along_axis(values, kept, axis=1) for values in (rows, similarities))
    return rows
