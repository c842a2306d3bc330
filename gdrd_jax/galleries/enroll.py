"""Enrolls folders of pictures in galleries, and shows matches."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gdrd_jax.galleries.address import Address
from gdrd_jax.galleries.gallery import Gallery, Match, is_gallery
from gdrd_jax.inference import preprocess
from gdrd_jax.inference.folders import Embedded, embed_files
from gdrd_jax.inference.native import NativeRecognizer
from gdrd_jax.inference.preprocess import Image
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.outputs import claim_folder
from gdrd_jax.utils.pictures import grid

LOG = logging.getLogger(__name__)
SHOWN = 12  # probes in a picture


def enroll(
    recognizer: Recognizer | NativeRecognizer,
    path: Path,
    place: Address,
    *,
    align: bool,
    add: bool = False,
    update: bool = False,
) -> tuple[Gallery, Embedded]:
    """Puts the people of `path` into the gallery at `place`, in one transaction at the end; see `add_people`.

    Args:
      recognizer: a student, or its teacher for full-size faces.
      add: to a gallery that exists; otherwise a new one is made.
      update: as `add`, and the faces of people who are in it already are replaced.

    Raises:
      GdrdError: no usable picture, or `place` holds no gallery, or one of another student.
    """
    if isinstance(place, Path):
        claim_folder(place, "a gallery", "--gallery")
    fingerprint = recognizer.fingerprint()
    if add or update:
        gallery = Gallery.load(place, fingerprint)
    elif is_gallery(place):
        raise GdrdError(
            f"{place} exists already; add to it with --add, replace people's faces with --update, or choose another "
            "place",
            "gallery-exists",
        )
    else:
        gallery = Gallery(recognizer.dim, fingerprint)
    found = add_people(gallery, recognizer, path, align=align, update=update)
    gallery.save(place, new=not (add or update))
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
    found = embed_files(recognizer, files, align=align)
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


def picture(recognizer: Recognizer, probes: Sequence[Image], matches: list[list[Match]], *, align: bool) -> np.ndarray:
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
