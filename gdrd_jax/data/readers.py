"""Every way in which faces come, read into the one description `Faces`.

The path shows the format: a folder with `faces.json` (a store of `data.prepare`), a folder
with one `.rec` file or that file itself (InsightFace RecordIO), a `.tar`, a list (`.txt`,
`.lst`, `.csv`, `.tsv`), or else a folder of folders of images.
"""

import dataclasses
import fnmatch
import json
import logging
import os
from pathlib import Path, PurePosixPath

import numpy as np

from gdrd_jax.data.face_list import read_list
from gdrd_jax.data.faces import Faces, labeled
from gdrd_jax.data.file_tree import IMAGE_SUFFIXES, is_image, scan, why_unreadable
from gdrd_jax.data.recordio import read_index
from gdrd_jax.data.task import FACES, Task
from gdrd_jax.utils.errors import GdrdError, nothing_at

LOG = logging.getLogger(__name__)
LIST_SUFFIXES = frozenset({".txt", ".lst", ".csv", ".tsv"})
MANIFEST, RECORDS, JOURNAL = "faces.json", "train.rec", "journal.jsonl"  # of a store
STAND_IN = "STAND_IN.txt"


def open_faces(
    path: str | os.PathLike, *, pattern: str = "*", skip_bad: bool = False, task: Task = FACES
) -> Faces:  # fmt: skip
    """Describes the faces at `path`, of any format; reads no pixels.

    Args:
      path: see the module.
      pattern: in folders, tars and lists only files whose name matches it, as in a shell ("*.pgm").
      skip_bad: leave out damaged records, dangling links and missing files of a list, listed in `Faces.skipped`,
        instead of raising.
      task: what the images show.

    Raises:
      GdrdError: nothing there, no faces in it, or damage.
    """
    faces = _open(Path(path), pattern, skip_bad, task)
    return faces if task == FACES else faces.with_task(task)


def _open(path: Path, pattern: str, skip_bad: bool, task: Task) -> Faces:
    if not path.exists():
        raise GdrdError(nothing_at(path, f"there are no {task.images} at"), "path-missing")
    _refuse_unfinished(path)
    records = sorted(path.glob("*.rec")) if path.is_dir() else [path] if path.suffix.lower() == ".rec" else []
    if len(records) > 1:
        raise GdrdError(
            f"{path} holds {len(records)} .rec files ({', '.join(r.name for r in records)}); give one of them",
            "rec-several",
        )
    if path.is_dir() and (path / MANIFEST).exists():
        return _store(path)
    if records and pattern != "*":
        raise GdrdError(
            f"{records[0]} has no file names that could match {pattern!r}; leave the pattern out", "rec-pattern"
        )
    if records:
        return _records(records[0], skip_bad)
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        return read_list(path, pattern, skip_bad)
    return _by_folder(path, pattern, skip_bad, task)


def list_files(path: str | os.PathLike) -> Faces:
    """Every file under a folder, in an uncompressed tar or in a store, in natural order of names; all of one identity.

    Names are relative to the folder, with "/"; protocols pick files by name. Files of other programs
    (`file_tree.is_clutter`) are ignored, and their number is logged.

    Raises:
      GdrdError: nothing there, or not a folder, an uncompressed tar or a store.
    """
    path = Path(path)
    if not path.exists():
        raise GdrdError(nothing_at(path, "there is no file or folder"), "path-missing")
    _refuse_unfinished(path)
    if path.is_dir() and (path / MANIFEST).exists():
        return _store(path)
    _check_is_tree(path)
    files, clutter = scan(path)
    if clutter:
        LOG.info("%s: %d files of other programs are ignored, such as %s", path, sum(clutter.values()), [*clutter][0])
    return files


def _check_is_tree(path: Path) -> None:
    if not path.is_dir() and path.suffix.lower() != ".tar":
        raise GdrdError(
            f"{path} has an unknown format; give a folder, an uncompressed .tar or a store of gdrd prepare, or, to "
            f"convert or to train on, an InsightFace .rec or a list ({', '.join(sorted(LIST_SUFFIXES))})",
            "faces-format",
        )


def _refuse_unfinished(path: Path) -> None:
    if (path / JOURNAL).exists() and not (path / MANIFEST).exists():
        raise GdrdError(
            f"{path} is an unfinished store; run the same gdrd prepare command again to finish it", "store-unfinished"
        )


def _by_folder(path: Path, pattern: str, skip_bad: bool, task: Task) -> Faces:
    """Images in folders; everything else is listed in `Faces.skipped`."""
    _check_is_tree(path)
    files, clutter = scan(path)
    chosen, skipped = [], [(name, f"left by another program ({count} files)") for name, count in clutter.items()]
    for row, name in enumerate(files.names):
        if not fnmatch.fnmatch(PurePosixPath(name).name, pattern):
            continue
        problem = why_unreadable(os.path.join(path, name)) if files.spans is None else None
        if not problem and not is_image(files, row):
            skipped.append((name, "not an image"))
        elif "/" not in name:
            skipped.append((name, "not in the folder of a person"))
        elif problem and not skip_bad:
            raise GdrdError(
                f"{files.where(row)} cannot be read: {problem}; remove it, or leave it out with --skip-bad "
                "(gdrd prepare, gdrd evaluate)",
                "file-unreadable",
            )
        elif problem:
            skipped.append((name, problem))
        else:
            chosen.append(row)
    if not chosen:
        raise GdrdError(
            f"{path} holds no {task.images}: the layout is FOLDER/{task.label.upper()}/IMAGE, and it has no such images"
            + (f" that match {pattern!r}" if pattern != "*" else "")
            + f". Formats are {', '.join(sorted(IMAGE_SUFFIXES))}",
            "faces-none",
        )
    faces = dataclasses.replace(files.take(chosen), skipped=tuple(skipped))
    folders = [str(PurePosixPath(name).parent) for name in faces.names]
    above = os.path.commonpath(folders) if len(set(folders)) > 1 else ""
    faces = labeled(faces, (os.path.relpath(folder, above) if above else folder for folder in folders))
    return faces.take(np.argsort(faces.labels, kind="stable"))


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
            f"{path / RECORDS} holds {len(faces)} faces of {len(faces.identities)} people, but {MANIFEST} lists "
            f"{len(names)} faces of {len(identities)}; make the store again with gdrd prepare, in a new folder",
            "store-mismatch",
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
    raise GdrdError(
        f"{folder / MANIFEST} is damaged, or was not written by gdrd prepare; make the store again, in a new folder",
        "store-damaged",
    )


def stand_in(path: str | os.PathLike) -> str | None:
    """What a stand-in for a benchmark says of itself (`tools/make_stand_ins.py`); None if `path` is none.

    The label lies in the folder, in one around it, or in the tar.
    """
    path = Path(path)
    for folder in (path, *path.resolve().parents[:2]):
        if (folder / STAND_IN).is_file():
            return " ".join((folder / STAND_IN).read_text(encoding="utf-8").split())
    if path.suffix.lower() == ".tar":
        files = list_files(path)
        for row, name in enumerate(files.names):
            if PurePosixPath(name).name == STAND_IN:
                return " ".join(files.read(row).decode().split())
    return None
