"""Galleries in folders: opening and saving them, and converting those of version 0.4.

A gallery's folder contains

  gallery.sqlite   a SQLite database: the recognizer's fingerprint and, for each face, person, path, other metadata
                   and embedding (float32, little endian)
  gallery.faiss    of large galleries: an index that is rebuilt from the database when missing, damaged or outdated

Every change is one SQLite transaction. The index proposes faces; matches and similarities come from the database.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from gdrd_jax.galleries import version_04
from gdrd_jax.galleries.checks import check_space, missing, rows
from gdrd_jax.galleries.database import FaceDatabase
from gdrd_jax.galleries.sqlite import SqliteFaces
from gdrd_jax.galleries.sqlite_connection import DATABASE
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import locked, writing

LOG = logging.getLogger(__name__)


def is_gallery(folder: Path) -> bool:
    """Whether a folder contains a gallery, of this version or of 0.4."""
    return (folder / DATABASE).exists() or (folder / version_04.MANIFEST).exists()


def load(folder: Path, accepted: Sequence[str] | None) -> SqliteFaces:
    """Opens the gallery in a folder, see `Gallery.load`; `accepted` are fingerprints of recognizers, None all."""
    folder = folder.resolve()
    if not is_gallery(folder):
        raise missing(folder)
    faces = SqliteFaces.open(folder) if (folder / DATABASE).exists() else _convert(folder, accepted)
    check_space(folder, faces.fingerprint, accepted)
    return faces


def save(faces: FaceDatabase, folder: Path, *, new: bool) -> SqliteFaces:
    """Writes a gallery into a folder and opens it, see `Gallery.save`."""
    folder = folder.resolve()
    with writing(folder), locked(folder):
        if new and is_gallery(folder):
            raise GdrdError(f"{folder} contains a gallery already; load it and add to it", "gallery-exists")
        return (faces if isinstance(faces, SqliteFaces) else _in_memory(faces)).save(folder)


def _in_memory(faces: FaceDatabase) -> SqliteFaces:
    copy = SqliteFaces.create(faces.dim, faces.fingerprint)
    with copy.writing():
        for block in faces.rows():
            copy.insert(block)
    return copy


def _convert(folder: Path, accepted: Sequence[str] | None) -> SqliteFaces:
    """Opens a gallery of version 0.4, see `Gallery.load`."""
    manifest = version_04.read_manifest(folder)
    check_space(folder, manifest["fingerprint"], accepted)
    faces = SqliteFaces.create(manifest["dim"], manifest["fingerprint"])
    with faces.writing():
        for ids, metadata, embeddings in version_04.read(folder, manifest):
            faces.insert(rows(embeddings, ids, metadata))
    if not os.access(folder, os.W_OK):
        faces.forbid_changes()
        return faces
    with writing(folder), locked(folder):
        if (folder / DATABASE).exists():  # another process converted it meanwhile, and may have added faces
            return SqliteFaces.open(folder)
        LOG.info("%s: converted from version 0.4; its old files stay, and are not used any more", folder)
        return faces.save(folder)
