"""Faces on disk, of any format: one in-memory description without pixels."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import unicodedata
import weakref
from collections.abc import Iterable, Sequence
from importlib import util
from pathlib import Path

import numpy as np

from gdrd_jax.data.align import align
from gdrd_jax.data.decoding import HEAD_BYTES, decode
from gdrd_jax.data.degradation import resize
from gdrd_jax.data.task import FACES, Task
from gdrd_jax.utils.errors import missing

JOINT = (0xCED7230A).to_bytes(4, "little")  # what stands between the parts of a split record, see `recordio`


@dataclasses.dataclass(frozen=True)
class Faces:
    """Where encoded faces lie and whose they are; decoded on access. A Grain random-access source.

    Attributes:
      root: the folder that `names` are files of, or the one file that holds all faces.
      names: what each face is called: a path, or a record's key.
      labels: int32 `[N]`, indices into `identities`.
      identities: names of the people.
      spans: int64 `[N, 2]`, first byte and size of each face in the file `root`; None for a folder.
      parts: spans of the few faces whose bytes lie in several pieces, by row.
      fingerprint: sha256 of labels and contents; "" until `data.prepare.checked` has read them.
      skipped: `(name, reason)` of files that were left out.
      in_memory: encoded faces by row, of the few formats in which a face is not a span of bytes of the file.
      roots: of a set that `joined` made: the folder or file of each of its parts; `root` is the first. Rows of `spans`
        of faces that are files of a folder are negative.
      part: which of `roots` holds each face, int `[N]`; None of a set that was not joined.
      task: what the images show, by which they are read.
      landmarks: of each face, float `[N, P, 2]`, see `data.align.align`, which cuts it out of its image; None of faces
        that are aligned already.
    """

    root: Path
    names: tuple[str, ...]
    labels: np.ndarray
    identities: tuple[str, ...]
    spans: np.ndarray | None = None
    parts: dict[int, list[tuple[int, int]]] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    skipped: tuple[tuple[str, str], ...] = ()
    in_memory: dict[int, bytes] = dataclasses.field(default_factory=dict)
    roots: tuple[Path, ...] = ()
    part: np.ndarray | None = None
    task: Task = FACES
    landmarks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 `[H, W, C]`, C being the task's channels; `[S, S, C]` of tasks that do not align, and with landmarks.

        Raises:
          GdrdError: damaged, of other channels, or with landmarks that determine no face.
        """
        image = decode(self.read(index), self.where(index), self.task.channels, self.task.maximum)
        if self.landmarks is not None:
            return align(image, self.landmarks[index], self.where(index))
        return image if self.task.aligned else resize(middle_square(image), self.task.image_size, "area")

    def read(self, index: int) -> bytes:
        """The encoded face."""
        if index in self.in_memory:
            return self.in_memory[index]
        if self._is_file(index):
            return (self._root(index) / self.names[index]).read_bytes()
        pieces, root = self.parts.get(index) or [self.spans[index]], self._root(index)
        return JOINT.join(self._read_at(root, int(start), int(size)) for start, size in pieces)

    def head(self, index: int) -> bytes:
        """The first bytes of the encoded face, from which its format is recognized."""
        if self._is_file(index):
            with (self._root(index) / self.names[index]).open("rb") as file:
                return file.read(HEAD_BYTES)
        start, size = self.spans[index]
        return self._read_at(self._root(index), int(start), min(int(size), HEAD_BYTES))

    def where(self, index: int) -> str:
        """The face's name in messages."""
        root = self._root(index)
        return str(root / self.names[index]) if self._is_file(index) else f"{self.names[index]} of {root}"

    def _root(self, index: int) -> Path:
        return self.root if self.part is None else self.roots[self.part[index]]

    def _is_file(self, index: int) -> bool:
        return self.spans is None or self.spans[index, 0] < 0

    def _read_at(self, root: Path, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor(root), size, start)
        with root.open("rb") as file:  # Windows cannot read at a position of a file that several threads share
            file.seek(start)
            return file.read(size)

    @functools.cached_property
    def _descriptors(self) -> dict[Path, int]:
        return {}

    def _descriptor(self, root: Path) -> int:
        if root not in self._descriptors:
            self._descriptors[root] = os.open(root, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptors[root])
        return self._descriptors[root]

    def take(self, rows: np.ndarray | Sequence[int]) -> "Faces":
        """Some of the faces, of the same identities; without a fingerprint."""
        rows = np.asarray(rows, int)
        parts, in_memory = (
            {new: known[old] for new, old in enumerate(rows.tolist()) if old in known}
            for known in (self.parts, self.in_memory)
        )
        return dataclasses.replace(
            self, names=tuple(self.names[i] for i in rows), labels=self.labels[rows], parts=parts, in_memory=in_memory,
            spans=None if self.spans is None else self.spans[rows], fingerprint="",
            part=None if self.part is None else self.part[rows],
            landmarks=None if self.landmarks is None else self.landmarks[rows],
        )  # fmt: skip

    def with_task(self, task: Task) -> "Faces":
        """The same files, read as another task's images; without a fingerprint."""
        return dataclasses.replace(self, task=task, fingerprint="")

    def in_colors(self) -> "Faces":
        """The same images as RGB, which teachers see: a gray one three times, of four channels the first three."""
        if self.task.channels == 3:
            return self
        maximum = self.task.maximum if self.task.channels == 1 else 0
        return self.with_task(dataclasses.replace(self.task, channels=3, maximum=maximum))

    def split(self, held_out: int) -> tuple["Faces", "Faces"]:
        """The faces without, and those of, the last `held_out` identities."""
        first = len(self.identities) - held_out
        return self._people(0, first), self._people(first, len(self.identities))

    def _people(self, start: int, stop: int) -> "Faces":
        faces = self.take(np.flatnonzero((self.labels >= start) & (self.labels < stop)))
        known = self.fingerprint and hashlib.sha256(f"{self.fingerprint}:{start}:{stop}".encode()).hexdigest()
        return dataclasses.replace(
            faces, labels=faces.labels - start, identities=self.identities[start:stop], fingerprint=known
        )

    def split_each(self, images: int) -> tuple["Faces", "Faces"]:
        """The faces without, and those of, the last `images` faces of each identity; both have all identities."""
        tested = self.last_of_each(images)
        return self._of_each(~tested, f"without {images}"), self._of_each(tested, f"last {images}")

    def last_of_each(self, images: int) -> np.ndarray:
        """Which faces are among the last `images` of their identity, bool `[N]`."""
        count = np.bincount(self.labels, minlength=len(self.identities))
        place = np.empty(len(self), int)  # of each face among those of its identity
        place[np.argsort(self.labels, kind="stable")] = np.concatenate([np.arange(n) for n in count])
        return place >= count[self.labels] - images

    def _of_each(self, chosen: np.ndarray, name: str) -> "Faces":
        known = self.fingerprint and hashlib.sha256(f"{self.fingerprint}:{name}".encode()).hexdigest()
        return dataclasses.replace(self.take(np.flatnonzero(chosen)), fingerprint=known)

    def rows_of_last_identities(self, identities: int, images: int) -> np.ndarray:
        """Row numbers of the first `images` faces of each of the last `identities` identities."""
        first = len(self.identities) - identities
        people = range(first, len(self.identities))
        return np.concatenate([np.flatnonzero(self.labels == i)[:images] for i in people])

    def signature(self) -> str:
        """Changes when a face is added, removed or renamed, or a file resized or touched; reads no contents."""
        digest = hashlib.sha256(os.fsencode("\0".join(self.names + self.identities)) + self.labels.tobytes())
        if self.spans is None:
            paths = [self.root / name for name in self.names]
        elif self.part is None:
            paths = [self.root]
        else:
            paths = [root for root in self.roots if not root.is_dir()]
            paths += [self._root(row) / self.names[row] for row in range(len(self)) if self._is_file(row)]
        for path in paths:
            stat = path.stat()
            digest.update(f"{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def contents(self) -> str:
        """Changes when a face is added, removed, renamed or becomes another, not when it is only touched; reads all."""
        digest = hashlib.sha256(os.fsencode("\0".join(self.names + self.identities)) + self.labels.tobytes())
        for index in range(len(self)):
            digest.update(hashlib.sha256(self.read(index)).digest())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes the description (not the pixels) as JSON; faces beside the file may move with it."""
        home = path.parent.resolve()
        root, *roots = (
            str(root.relative_to(home) if root.is_relative_to(home) else root) for root in (self.root, *self.roots)
        )
        text = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "root": root, "roots": roots, "labels": self.labels.tolist(),
            "spans": None if self.spans is None else self.spans.tolist(),
            "part": None if self.part is None else self.part.tolist(),
            "landmarks": None if self.landmarks is None else self.landmarks.tolist(),
            "task": self.task.recorded(),
        }  # fmt: skip
        if self.task == FACES:
            del text["task"]
        if self.landmarks is None:
            del text["landmarks"]
        path.write_text(json.dumps(text), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Faces":
        """Reads what `save` wrote."""
        text = json.loads(path.read_text(encoding="utf-8"))
        spans, home = text["spans"], path.parent.resolve()
        part = text.get("part")  # which versions up to 0.4.0 did not write
        return cls(
            home / text["root"], tuple(text["names"]), np.array(text["labels"], np.int32),
            tuple(text["identities"]), None if spans is None else np.array(spans, np.int64).reshape(-1, 2),
            {int(row): pieces for row, pieces in text["parts"].items()}, text["fingerprint"],
            tuple(map(tuple, text["skipped"])), roots=tuple(home / root for root in text.get("roots", ())),
            part=None if part is None else np.array(part, np.int32),
            task=Task(**text["task"]) if "task" in text else FACES,
            landmarks=np.array(text["landmarks"]) if "landmarks" in text else None,
        )  # fmt: skip


def labeled(faces: Faces, people: Iterable[str]) -> Faces:
    """The faces with the identity of each given by name; identities are sorted naturally, in Unicode's form NFC."""
    people = [same_name(person) for person in people]
    identities = sorted(set(people), key=natural)
    number = {name: i for i, name in enumerate(identities)}
    labels = np.array([number[name] for name in people], np.int32)
    return dataclasses.replace(faces, labels=labels, identities=tuple(identities))


def joined(sets: Sequence[Faces]) -> Faces:
    """All faces of several sets, whose people are taken to be different; without a fingerprint."""
    if len(sets) == 1:
        return sets[0]
    parts, in_memory, spans, first = {}, {}, [], 0
    for faces in sets:
        parts |= {first + row: pieces for row, pieces in faces.parts.items()}
        in_memory |= {first + row: data for row, data in faces.in_memory.items()}
        spans.append(np.full((len(faces), 2), -1, np.int64) if faces.spans is None else faces.spans)
        first += len(faces)
    offsets = np.cumsum([0, *(len(faces.identities) for faces in sets)])
    return Faces(
        sets[0].root, sum((faces.names for faces in sets), ()),
        np.concatenate([faces.labels + offset for faces, offset in zip(sets, offsets)]).astype(np.int32),
        tuple(f"{faces.root.stem}/{name}" for faces in sets for name in faces.identities),
        np.concatenate(spans), parts, skipped=sum((faces.skipped for faces in sets), ()), in_memory=in_memory,
        roots=tuple(faces.root for faces in sets), part=np.repeat(np.arange(len(sets)), list(map(len, sets))),
        task=sets[0].task,
    )  # fmt: skip


def same_name(name: str) -> str:
    """A name in the one Unicode form (NFC) in which names are compared: macOS writes accents in another one."""
    try:  # names of files, where the locale's encoding cannot hold them
        name = os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a name from a list
        pass
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> tuple:
    """Sorting key: numbers inside names by their value."""
    parts = re.split(r"([0-9]+)", name)
    # Numbers by length, then digits: `int` refuses very long ones.
    digits = [part.lstrip("0") for part in parts]
    return [(len(digits[i]), digits[i]) if i % 2 else part for i, part in enumerate(parts)], name


def middle_square(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle of `[H, W, C]`: `[S, S, C]`."""
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def packaged(package: str, inside: str) -> Path:
    """A file or folder that an installed package carries, found without importing the package."""
    spec = util.find_spec(package)
    found = Path(spec.submodule_search_locations[0], inside) if spec else None
    if found is None or not found.exists():
        raise missing(package, "quickstart")
    return found
