"""Reading every face once: to check and fingerprint it, or to convert any format into one store.

A store is a folder with InsightFace's `train.rec`, `train.idx` and `property`, so that other
tools read it too, and `faces.json` with the names and what was left out, which RecordIO has no
room for.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from gdrd_jax.data import recordio
from gdrd_jax.data.align import FACE_SIZE, VERSION, Aligner, align
from gdrd_jax.data.decoding import decode
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.file_tree import UNREADABLE_ERRNOS
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.data.readers import JOURNAL, MANIFEST, RECORDS, open_faces, read_manifest
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCK, locked, write_json
from gdrd_jax.utils.signals import deferred

LOG = logging.getLogger(__name__)
SAVE_EVERY = 256  # faces; an interrupted conversion loses fewer
SHOWN = 5  # files that were left out


class UnusableImage(GdrdError):
    """One face cannot be used."""


class NoFace(UnusableImage):
    """A picture in which no face was found."""


def checked(faces: Faces, *, stretch: bool = False, skip_bad: bool = False) -> Faces:
    """The faces with their fingerprint, every one having been decoded.

    Args:
      faces: of any format.
      stretch: take aligned faces of other sizes than the task's, too; the caller stretches them.
      skip_bad: leave unusable faces out and list them in `Faces.skipped`, instead of raising.

    Raises:
      GdrdError: a face that does not decode or has the wrong size.
    """
    rows, digests, skipped = [], [], list(faces.skipped)
    for row, (data, problem) in enumerate(_fit_all(faces, None, stretch, f"checking {faces.task.images}")):
        if problem is None:
            rows.append(row)
            digests.append(hashlib.sha256(data).digest())
        elif skip_bad:
            skipped.append((faces.names[row], str(problem)))
        else:
            raise _with_remedy(problem)
    kept = faces if len(rows) == len(faces) else faces.take(rows)
    fingerprint = faces.task.of_contents(_fingerprint(kept.labels, digests))
    if kept.landmarks is not None:
        aligned = kept.landmarks.astype("<f8").tobytes() + f"{fingerprint}:{VERSION}".encode()
        fingerprint = hashlib.sha256(aligned).hexdigest()
    return dataclasses.replace(kept, fingerprint=fingerprint, skipped=tuple(skipped))


def log_skipped(faces: Faces, listing: Path) -> None:
    """Logs how many files were left out and why the first of them were; `listing` is the file that lists them all."""
    if not faces.skipped:
        return
    LOG.info("left out: %d", len(faces.skipped))
    for name, reason in faces.skipped[:SHOWN]:
        LOG.info("  %s: %s", name, reason)
    if len(faces.skipped) > SHOWN:
        LOG.info("  ... all in %s", listing)


def _with_remedy(problem: UnusableImage) -> UnusableImage:
    """With --skip-bad, which leaves out pictures without a face only where these are left out anyway."""
    if isinstance(problem, NoFace):
        return problem
    return UnusableImage(
        f"{problem}; or leave such files out with --skip-bad (gdrd prepare, gdrd evaluate)", problem.code
    )


def _fingerprint(labels: np.ndarray, digests: list[bytes]) -> str:
    return hashlib.sha256(np.asarray(labels, "<i4").tobytes() + b"".join(digests)).hexdigest()


def _fit_all(
    faces: Faces, aligner: Aligner | None, stretch: bool, what: str, start: int = 0
) -> Iterator[tuple[bytes | None, UnusableImage | None]]:
    """For every face from `start` on: its encoded, aligned form, or why it cannot be used."""

    def fit(row: int):
        try:
            return _fit(faces, row, aligner, stretch), None
        except GdrdError as error:
            return None, error if isinstance(error, UnusableImage) else UnusableImage(str(error), error.code)
        except OSError as error:
            if error.errno not in UNREADABLE_ERRNOS:
                raise
            return None, UnusableImage(f"{faces.where(row)} cannot be read: {error.strerror}", "file-unreadable")

    with tqdm(total=len(faces), initial=start, desc=what, unit=faces.task.image, mininterval=0.5) as progress:
        for result in in_parallel(fit, range(start, len(faces))):
            yield result
            progress.update()


def _fit(faces: Faces, row: int, aligner: Aligner | None, stretch: bool) -> bytes:
    data, task = faces.read(row), faces.task
    image = decode(data, faces.where(row), task.channels, task.maximum)
    if aligner is not None:
        face = aligner(image)
        if face is None:
            raise NoFace(
                f"no face was found in {faces.where(row)}; remove it, or align it yourself to {FACE_SIZE}x{FACE_SIZE}",
                "no-face",
            )
        return cv2.imencode(".png", cv2.cvtColor(face, cv2.COLOR_RGB2BGR))[1].tobytes()
    if faces.landmarks is not None:
        align(image, faces.landmarks[row], faces.where(row))
        return data
    (height, width), size = image.shape[:2], task.image_size
    if task.aligned and (height, width) != (size, size) and not stretch:
        raise UnusableImage(
            f"{faces.where(row)} is {width}x{height}, an aligned {task.image} is {size}x{size}; align photographs "
            "first with gdrd prepare --align (or --config.data.align=true); gdrd evaluate takes other sizes with "
            "--stretch",
            "image-size",
        )
    return data


def prepare(
    faces: Faces, folder: Path, *, aligner: Aligner | None = None, skip_faceless: bool = False, skip_bad: bool = False
) -> Faces:
    """Converts faces into a store; stopped and called again, it goes on where it was.

    Aligned faces keep their bytes; those aligned here become PNG. Faces of one identity follow
    each other, in the order they had.

    Args:
      faces: of any format.
      folder: of the store, empty, missing, or holding this conversion's beginning.
      aligner: finds and aligns faces in photographs; None if they are aligned.
      skip_faceless: leave pictures without a face out and list them, instead of raising.
      skip_bad: the same for damaged ones.

    Returns:
      The store's faces, as `data.readers.open_faces` describes them.

    Raises:
      GdrdError: the folder holds other things, no face is usable, or one is not and must be.
    """
    faces = faces.take(np.argsort(faces.labels, kind="stable"))
    origin = {"files": faces.signature(), "aligned_by": aligner.fingerprint if aligner else None}
    with locked(folder):
        if not (folder / MANIFEST).exists():
            _convert(faces, folder, origin, aligner, skip_faceless, skip_bad)
        elif read_manifest(folder)["origin"] != origin:
            raise GdrdError(
                f"{folder} is a store of other faces, or was made with other settings; choose another folder",
                "store-other-faces",
            )
        return open_faces(folder)


def _convert(
    faces: Faces, folder: Path, origin: dict, aligner: Aligner | None, skip_faceless: bool, skip_bad: bool
) -> None:
    journal = _begin(folder, origin)
    with (folder / RECORDS).open("ab") as records, (folder / JOURNAL).open("a", encoding="utf-8") as lines:
        kept, done = sum("sha256" in entry for entry in journal), len(journal)
        people = {int(faces.labels[row]) for row, entry in enumerate(journal) if "sha256" in entry}
        if not done:
            records.write(recordio.pack_range(0, 0, 0))  # the header's place: its numbers are known at the end

        def save() -> None:
            nonlocal done
            with deferred(f"{len(journal)} of {len(faces)} faces are saved"):  # a line must not be written twice
                records.flush()
                os.fsync(records.fileno())
                lines.writelines(json.dumps(entry) + "\n" for entry in journal[done:])
                lines.flush()
                done = len(journal)

        try:
            for row, (data, problem) in enumerate(_fit_all(faces, aligner, False, "preparing faces", done), done):
                if problem is None:
                    kept += 1
                    people.add(int(faces.labels[row]))
                    records.write(recordio.pack_image(len(people) - 1, kept, data))
                    journal.append({"end": records.tell(), "sha256": hashlib.sha256(data).hexdigest()})
                elif skip_faceless if isinstance(problem, NoFace) else skip_bad:
                    journal.append({"end": records.tell(), "problem": str(problem)})
                else:
                    raise _with_remedy(problem)
                if len(journal) - done >= SAVE_EVERY:
                    save()
        finally:
            save()
    _finish(faces, folder, journal, origin)


def _begin(folder: Path, origin: dict) -> list[dict]:
    """What an interrupted call has done: one entry a face; both files end after the last of them."""
    path, records = folder / JOURNAL, folder / RECORDS
    if not path.exists():
        if any(entry.name not in (LOCK, JOURNAL + ".tmp") for entry in folder.iterdir()):
            raise GdrdError(f"{folder} is not empty; choose another folder for the store", "store-folder-not-empty")
        path.with_name(JOURNAL + ".tmp").write_text(json.dumps(origin) + "\n", encoding="utf-8")
        os.replace(path.with_name(JOURNAL + ".tmp"), path)
    records.touch()
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]  # the last line may be cut short
    os.truncate(path, len(whole))
    try:
        begun, *journal = [json.loads(line) for line in whole.splitlines()]
        if begun != origin:
            raise GdrdError(
                f"{folder} holds the beginning of another conversion; remove it or choose another folder",
                "store-other-conversion",
            )
        os.truncate(records, journal[-1]["end"] if journal else 0)
    except (ValueError, KeyError, TypeError) as error:
        raise GdrdError(f"{path} is damaged; remove {folder} and start again", "store-damaged") from error
    if journal:
        LOG.info("%s: continues after %d faces", folder, len(journal))
    return journal


def _finish(faces: Faces, folder: Path, journal: list[dict], origin: dict) -> None:
    """Writes what can be known only at the end; the manifest last."""
    kept = np.array([row for row, entry in enumerate(journal) if "sha256" in entry], int)
    skipped = [(faces.names[row], e["problem"]) for row, e in enumerate(journal) if "problem" in e]
    if not len(kept):
        raise GdrdError(
            f"none of the {len(journal)} faces can be used; the first: {skipped[0][1]}", "store-without-faces"
        )
    present, labels = np.unique(faces.labels[kept], return_inverse=True)
    starts = [0] + [len(recordio.pack_range(0, 0, 0)), *(journal[row]["end"] for row in kept)][: len(kept)]
    first = np.append(np.searchsorted(labels, np.arange(len(present))), len(kept)) + 1
    with (folder / RECORDS).open("r+b") as records:
        records.seek(0, os.SEEK_END)
        for person, (start, stop) in enumerate(zip(first[:-1], first[1:])):
            starts.append(records.tell())
            records.write(recordio.pack_range(int(start), int(stop), len(kept) + 1 + person))
        records.seek(0)
        records.write(recordio.pack_range(len(kept) + 1, len(kept) + 1 + len(present), 0))
    index = "".join(f"{key}\t{start}\n" for key, start in enumerate(starts))
    (folder / RECORDS).with_suffix(".idx").write_text(index, encoding="utf-8")
    (folder / "property").write_text(f"{len(present)},{FACE_SIZE},{FACE_SIZE}\n", encoding="utf-8")
    digests = [bytes.fromhex(journal[row]["sha256"]) for row in kept]
    manifest = {
        "names": [faces.names[row] for row in kept],
        "identities": [faces.identities[label] for label in present],
        "fingerprint": _fingerprint(labels, digests),
        "skipped": [*faces.skipped, *skipped],
        "source": str(faces.root),
        "origin": origin,
    }
    write_json(folder / MANIFEST, manifest)
    (folder / JOURNAL).unlink()
