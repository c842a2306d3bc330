"""Every way in which faces come, read into the one description `Faces`.

Told apart by what a path is: a folder with `faces.json` (a store of `data.prepare`), a folder
with one `.rec` file or that file itself (InsightFace RecordIO), a `.tar`, a list (`.txt`,
`.lst`, `.csv`, `.tsv`), or else a folder of folders of images.
"""

import dataclasses
import fnmatch
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.data.recordio import read_index
from gdrd_jax.errors import GdrdError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp"})
LIST_SUFFIXES = frozenset({".txt", ".lst", ".csv", ".tsv"})
MANIFEST, RECORDS, JOURNAL = "faces.json", "train.rec", "journal.jsonl"  # of a store
STAND_IN = "STAND_IN.txt"


def open_faces(path: str | Path, *, pattern: str = "*", skip_bad: bool = False) -> Faces:
    """Describes the faces at `path`, of any format; reads no pixels.

    Args:
      path: see the module.
      pattern: in folders, tars and lists only files whose name matches it, as in a shell ("*.pgm").
      skip_bad: leave damaged records out, listed in `Faces.skipped`, instead of raising.

    Raises:
      GdrdError: nothing there, no faces in it, or damage.
    """
    path = Path(path)
    if not path.exists():
        raise GdrdError(f"there are no faces at {str(path)!r}: no such file or folder")
    _refuse_unfinished(path)
    records = sorted(path.glob("*.rec")) if path.is_dir() else [path] if path.suffix == ".rec" else []
    if len(records) > 1:
        raise GdrdError(f"{path} holds {len(records)} .rec files ({', '.join(r.name for r in records)}); give one")
    if path.is_dir() and (path / MANIFEST).exists():
        return _store(path)
    if records and pattern != "*":
        raise GdrdError(f"{records[0]} has no file names that could match {pattern!r}; leave the pattern out")
    if records:
        return _records(records[0], skip_bad)
    if path.is_file() and path.suffix in LIST_SUFFIXES:
        return _list(path, pattern)
    return _by_folder(path, pattern)


def tree(path: Path) -> Faces:
    """Every file under a folder, in a tar or in a store, in natural order of names; all of one identity.

    Names are relative to the folder, with "/"; protocols pick theirs by name.

    Raises:
      GdrdError: nothing there, or not a folder, an uncompressed tar or a store.
    """
    if not path.exists():
        raise GdrdError(f"there is no {str(path)!r}")
    _refuse_unfinished(path)
    if path.is_dir() and (path / MANIFEST).exists():
        return _store(path)
    if path.is_dir():
        found = dict.fromkeys(_walk(path), (0, 0))
    elif path.suffix == ".tar":
        found = _tar(path)
    else:
        raise GdrdError(
            f"{path} is of no known format: a folder, an uncompressed .tar, a store of prepare_faces.py, or, to "
            f"convert or to train on, an InsightFace .rec or a list ({', '.join(sorted(LIST_SUFFIXES))})"
        )
    names = sorted(found, key=_natural)
    spans = None if path.is_dir() else np.array([found[name] for name in names], np.int64).reshape(-1, 2)
    return Faces(path.resolve(), tuple(names), np.zeros(len(names), np.int32), ("",), spans)


def _refuse_unfinished(path: Path) -> None:
    if (path / JOURNAL).exists() and not (path / MANIFEST).exists():
        raise GdrdError(f"{path} is an unfinished store; give the same prepare_faces.py command again, and it goes on")


def _walk(root: Path) -> Iterator[str]:
    """Every file under a folder, through links too, except those to a folder around them."""

    def unreadable(error: OSError):
        raise error

    for folder, inside, files in os.walk(root, followlinks=True, onerror=unreadable):
        inside[:] = [name for name in inside if not _leads_up(os.path.join(folder, name))]
        above = PurePosixPath(os.path.relpath(folder, root))
        yield from (str(above / name) for name in files)


def _leads_up(path: str) -> bool:
    return os.path.islink(path) and Path(os.path.realpath(os.path.dirname(path))).is_relative_to(os.path.realpath(path))


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def labelled(faces: Faces, people: Iterable[str]) -> Faces:
    """The faces, with the identity of each given by name; identities sorted naturally."""
    people = list(people)
    identities = sorted(set(people), key=_natural)
    number = {name: i for i, name in enumerate(identities)}
    labels = np.array([number[name] for name in people], np.int32)
    return dataclasses.replace(faces, labels=labels, identities=tuple(identities))


def _natural(name: str) -> tuple:
    parts = re.split(r"([0-9]+)", name)
    # Numbers by length, then digits: `int` refuses very long ones.
    digits = [part.lstrip("0") for part in parts]
    return [(len(digits[i]), digits[i]) if i % 2 else part for i, part in enumerate(parts)], name


def _by_folder(path: Path, pattern: str) -> Faces:
    files = tree(path)
    matching = [
        row for row, name in enumerate(files.names)
        if is_image(name) and fnmatch.fnmatch(PurePosixPath(name).name, pattern) and "/" in name
    ]  # fmt: skip
    if not matching:
        raise GdrdError(
            f"{path} holds no faces: no sub-folder with images {pattern} ({', '.join(sorted(IMAGE_SUFFIXES))}); "
            "the layout is FOLDER/PERSON/IMAGE"
        )
    faces = files.take(matching)
    folders = [str(PurePosixPath(name).parent) for name in faces.names]
    above = os.path.commonpath(folders) if len(set(folders)) > 1 else ""
    faces = labelled(faces, (os.path.relpath(folder, above) if above else folder for folder in folders))
    return faces.take(np.argsort(faces.labels, kind="stable"))


def _tar(path: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = os.path.normpath(member.name).lstrip("/")
                if member.islnk() or member.issym():
                    beside = "" if member.islnk() else os.path.dirname(member.name)
                    found[name] = found[os.path.normpath(os.path.join(beside, member.linkname)).lstrip("/")]
                elif member.issparse():
                    raise GdrdError(f"{path}: {name} is stored sparse; unpack the archive and give the folder")
                elif member.isreg():
                    found[name] = (member.offset_data, member.size)
            end = archive.offset
    except tarfile.TarError as error:
        raise GdrdError(f"{path} is not an uncompressed tar, or is damaged ({error}); unpack or copy it") from error
    except KeyError as error:
        raise GdrdError(f"{path}: {name} is a link to {error}, which is not before it; unpack the archive") from error
    with path.open("rb") as file:  # tarfile takes a damaged head, or none, for the end
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise GdrdError(f"{path} is damaged or truncated at byte {end}, after {len(found)} files; copy it again")
    return found


def _list(path: Path, pattern: str) -> Faces:
    """Lines `PATH IDENTITY`, or mxnet's `INDEX LABEL PATH` in a `.lst`; paths relative to the list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise GdrdError(f"{path} is not a list of faces in UTF-8: {error}") from error
    names, people = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        separator = "," if path.suffix == ".csv" else "\t" if "\t" in line else None
        if path.suffix == ".lst":
            fields = line.split("\t")
            fields = [fields[-1], fields[1]] if len(fields) >= 3 else []
        else:
            fields = line.rsplit(separator, 1)
        if len(fields) != 2:
            raise GdrdError(f"{path}, line {number}: {line!r} is not `PATH IDENTITY` (a .lst: INDEX, LABEL, PATH)")
        name, person = (field.strip() for field in fields)
        if not fnmatch.fnmatch(PurePosixPath(name).name, pattern):
            continue
        if not (path.parent / name).is_file():
            raise GdrdError(f"{path}, line {number}: there is no file {path.parent / name} (headers must begin with #)")
        names.append(name)
        people.append(person)
    if not names:
        raise GdrdError(f"{path} lists no faces; its lines are `PATH IDENTITY`")
    return labelled(Faces(path.parent.resolve(), tuple(names), np.zeros(len(names), np.int32), ("",)), people)


def _records(path: Path, skip_bad: bool) -> Faces:
    index = read_index(path, skip_bad=skip_bad)
    values, labels = np.unique(index.labels, return_inverse=True)
    return Faces(
        path.resolve(), index.keys, labels.astype(np.int32), tuple(f"{value:.0f}" for value in values),
        index.spans, index.parts, skipped=index.skipped,
    )  # fmt: skip


def _store(path: Path) -> Faces:
    """A store keeps names and identities that RecordIO has no room for."""
    manifest = read_manifest(path)
    names, identities = manifest["names"], manifest["identities"]
    faces = _records(path / RECORDS, skip_bad=False)
    if len(faces) != len(names) or len(faces.identities) != len(identities):
        raise GdrdError(
            f"{path / RECORDS} holds {len(faces)} faces of {len(faces.identities)} people, {MANIFEST} speaks of "
            f"{len(names)} of {len(identities)}; run prepare_faces.py again"
        )
    return Faces(
        faces.root, tuple(names), faces.labels, tuple(identities), faces.spans, faces.parts, manifest["fingerprint"],
        tuple(map(tuple, manifest["skipped"])),
    )  # fmt: skip


def read_manifest(folder: Path) -> dict:
    """What `data.prepare` wrote of a store.

    Raises:
      GdrdError: damaged, or something else of this name.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        lists = [manifest[key] for key in ("names", "identities", "skipped")]
        if all(isinstance(value, list) for value in lists) and manifest["origin"] and manifest["fingerprint"]:
            return manifest
    except (ValueError, KeyError, TypeError):
        pass
    raise GdrdError(f"{folder / MANIFEST} is damaged or not of prepare_faces.py; make the store again, elsewhere")


def stand_in(path: Path) -> str | None:
    """What a stand-in for a benchmark says of itself (`tools/make_stand_ins.py`); None if `path` is none.

    The label lies in the folder, in one around it, or in the tar.
    """
    for folder in (path, *path.resolve().parents[:2]):
        if (folder / STAND_IN).is_file():
            return " ".join((folder / STAND_IN).read_text(encoding="utf-8").split())
    if path.suffix == ".tar":
        files = tree(path)
        for row, name in enumerate(files.names):
            if PurePosixPath(name).name == STAND_IN:
                return " ".join(files.read(row).decode().split())
    return None


def only_one_each(faces: Faces, rows: Iterable[int], key: Callable[[str], object]) -> None:
    """Raises GdrdError if two of the rows' names have one `key`: a protocol would count a face twice."""
    seen: dict[object, str] = {}
    for row in rows:
        name = faces.names[row]
        other = seen.setdefault(key(name), name)
        if other != name:
            raise GdrdError(f"{faces.root} holds a face twice: {other} and {name}; give one of them")
