"""Embeds and enrolls folders of pictures; unusable ones are reported, not fatal."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gdrd_jax.inference import preprocess
from gdrd_jax.inference.gallery import Gallery, Match, is_gallery
from gdrd_jax.inference.native import NativeRecognizer
from gdrd_jax.inference.recognizer import BATCH, Recognizer
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import replacing_file
from gdrd_jax.utils.outputs import claim_folder
from gdrd_jax.utils.pictures import grid

LOG = logging.getLogger(__name__)
SHOWN = 12  # probes in a picture


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of some pictures.

    Attributes:
      paths: the N usable pictures.
      embeddings: float32 `[N, D]`, unit length.
      bad: `(path, reason)` of the others.
      replaced_people, replaced_faces: numbers of people, and of their earlier faces, that these replaced in a gallery.
    """

    paths: list[Path]
    embeddings: np.ndarray
    bad: list[tuple[Path, str]]
    replaced_people: int = 0
    replaced_faces: int = 0


def embed(recognizer: Recognizer, path: Path, *, align: bool) -> Embedded:
    """Embeds the pictures in a folder, or a single one.

    Raises:
      GdrdError: there are no pictures, or none is usable.
    """
    return _embed(recognizer, preprocess.find(path), align=align)


def _embed(recognizer: Recognizer | NativeRecognizer, found: list[Path], *, align: bool) -> Embedded:
    used, bad, embeddings = [], [], []
    if align:
        recognizer.require_aligner()
    one = lambda file: recognizer.preprocess(file, align=align)  # noqa: E731
    with tqdm(total=len(found), desc="embedding", unit="face", disable=len(found) == 1) as progress:
        for start in range(0, len(found), BATCH):
            files = found[start : start + BATCH]
            faces = list(preprocess.map_images(one, files))
            bad += [(file, face) for file, face in zip(files, faces) if isinstance(face, GdrdError)]
            good = [(file, face) for file, face in zip(files, faces) if not isinstance(face, GdrdError)]
            used += [file for file, _ in good]
            if good:
                embeddings.append(recognizer.embed(np.stack([face for _, face in good])))
            progress.update(len(files))
    if not used:
        first = bad[0][1]
        if len(bad) == 1:
            raise first
        raise GdrdError(f"none of the {len(bad)} pictures is usable; the first: {first}", "images-unusable")
    return Embedded(used, np.concatenate(embeddings), [(file, str(error)) for file, error in bad])


def enroll(
    recognizer: Recognizer | NativeRecognizer,
    path: Path,
    folder: Path,
    *,
    align: bool,
    add: bool = False,
    update: bool = False,
) -> tuple[Gallery, Embedded]:
    """Puts the people of `path` into the gallery `folder`, in one transaction at the end; see `add_people`.

    Args:
      recognizer: a student, or its teacher for full-size faces.
      add: to a gallery that exists; otherwise a new one is made.
      update: as `add`, and the faces of people who are in it already are replaced.

    Raises:
      GdrdError: no usable picture, or `folder` is no gallery, or of another student.
    """
    claim_folder(folder, "a gallery", "--gallery")
    fingerprint = recognizer.fingerprint()
    if add or update:
        gallery = Gallery.load(folder, fingerprint)
    elif is_gallery(folder):
        raise GdrdError(
            f"{folder} exists already; add to it with --add, replace people's faces with --update, or choose another "
            "folder",
            "gallery-exists",
        )
    else:
        gallery = Gallery(recognizer.dim, fingerprint)
    found = add_people(gallery, recognizer, path, align=align, update=update)
    gallery.save(folder, new=not (add or update))
    gallery.search(found.embeddings[:1], 1)  # builds the index, which searchers may not be allowed to write
    return gallery, found


def add_people(
    gallery: Gallery, recognizer: Recognizer | NativeRecognizer, path: Path, *, align: bool, update: bool = False
) -> Embedded:
    """Adds the people of a folder, FOLDER/PERSON/IMAGE or FOLDER/PERSON.jpg, with metadata `path` and `align`.

    Args:
      update: replace the faces of people who are in the gallery already; those without a usable picture keep theirs.

    Raises:
      GdrdError: no usable picture, or faiss is not installed.
    """
    require("faiss")  # the search's, but before the long work
    files, root = preprocess.find(path), path if path.is_dir() else path.parent
    found = _embed(recognizer, files, align=align)
    people = [preprocess.person(file, root) for file in found.paths]
    if len(people) > 1 and path.is_dir() and all(file.parent == path for file in found.paths):
        LOG.warning(
            "%s has no folders: each of its %d pictures is a person of its own, named by the file; if they are of one "
            "person, give a folder FOLDER/PERSON/IMAGE", path, len(people),
        )  # fmt: skip
    metadata = [{"path": str(file.resolve()), "align": align} for file in found.paths]
    if not update:
        gallery.add(found.embeddings, people, metadata)
        return found
    replaced = set(gallery.people()) & set(people)
    faces = gallery.update(found.embeddings, people, metadata)
    return dataclasses.replace(found, replaced_people=len(replaced), replaced_faces=faces)


def save(found: Embedded, path: Path) -> None:
    """Writes `paths` (text) and `embeddings` to an `.npz` file.

    Raises:
      GdrdError: the file cannot be written.
    """
    with replacing_file(path) as file:  # np.savez would add a suffix to a name
        np.savez(file, paths=np.array([*map(str, found.paths)]), embeddings=found.embeddings)


def picture(recognizer: Recognizer, probes: list[Path], matches: list[list[Match]], *, align: bool) -> np.ndarray:
    """One line for each probe: the student's input, the face itself, and its matches; uint8 RGB `[H, W, 3]`."""
    lines = []
    for probe, found in zip(probes[:SHOWN], matches):
        known = [enrolled(recognizer, match) for match in found]
        gone = np.full((8, 8, 3), 255, np.uint8)
        faces = [recognizer.preprocess(probe, align=align), recognizer.face(probe, align=align)]
        lines.append([*faces, *(gone if face is None else face for face in known)])
    return grid(lines)


def enrolled(recognizer: Recognizer, match: Match) -> np.ndarray | None:
    """The face of a match, in its own size, uint8 RGB `[S, S, 3]`; None if its file is gone."""
    path = match.metadata.get("path")
    try:
        return recognizer.face(path, align=match.metadata.get("align", False)) if isinstance(path, str) else None
    except GdrdError:
        return None
