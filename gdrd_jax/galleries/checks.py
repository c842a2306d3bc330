"""What every gallery checks before faces are stored, and the errors that all databases share."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdrd_jax.inference.pretrained import known_as
from gdrd_jax.utils.errors import GdrdError

UNIT = 0.01  # how far from 1 the length of an embedding may be: float16 is


class Row(NamedTuple):
    """A face to be stored.

    Attributes:
      person: its id.
      path: the metadata's `path`, if that is text.
      metadata: the rest, as JSON.
      embedding: float32 `[D]`.
    """

    person: str
    path: str | None
    metadata: str
    embedding: np.ndarray


def rows(embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict]) -> list[Row]:
    """Faces as a database takes them; `embeddings` are float32 `[N, D]`, as `unit_embeddings` gives them.

    Raises:
      GdrdError: "gallery-face" or "gallery-metadata": a name or metadata that cannot be stored.
    """
    return [_row(number, *face) for number, face in enumerate(zip(ids, metadata, embeddings))]


def _row(number: int, name: str, metadata: dict, embedding: np.ndarray) -> Row:
    if not isinstance(name, str) or not isinstance(metadata, dict):
        raise GdrdError(
            f"face {number} has the id {name!r} and the metadata {metadata!r}; give text as id and a dict as metadata",
            "gallery-face",
        )
    path = metadata.get("path") if isinstance(metadata.get("path"), str) else None
    try:
        text = json.dumps({key: value for key, value in metadata.items() if path is None or key != "path"})
    except (TypeError, ValueError) as error:
        raise GdrdError(
            f"the metadata of face {number} ({name}) cannot be written as JSON: {error}", "gallery-metadata"
        ) from error
    return Row(name, path, text, embedding)


def unit_embeddings(embeddings: np.ndarray, dim: int) -> np.ndarray:
    """float32 `[N, D]`, of unit length to the last digit.

    Raises:
      GdrdError: "gallery-shape" or "gallery-length".
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or embeddings.dtype.kind != "f":
        raise GdrdError(
            f"embeddings are {embeddings.dtype} {list(embeddings.shape)}; give float [N, {dim}]", "gallery-shape"
        )
    embeddings = embeddings.astype(np.float32)
    lengths = np.linalg.norm(embeddings, axis=1)
    odd = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT))  # NaN, too
    if len(odd):
        raise GdrdError(
            f"embedding {odd[0]} has length {lengths[odd[0]]:.3g}; give embeddings of unit length", "gallery-length"
        )
    return embeddings / lengths[:, None]


def check_space(where: object, fingerprint: str, accepted: Sequence[str] | None) -> None:
    """Refuses a gallery, at `where`, whose recognizer's fingerprint is not among `accepted`; None accepts all.

    Raises:
      GdrdError: "gallery-space".
    """
    if accepted is not None and fingerprint not in accepted:
        raise GdrdError(
            f"the gallery {where} is of another recognizer ({known_as(fingerprint)}, not "
            f"{' or '.join(map(known_as, accepted))}), whose embeddings cannot be compared; enroll its faces with "
            "this one",
            "gallery-space",
        )


def damaged(where: object, what: str) -> GdrdError:
    """The error for a gallery that cannot be relied on."""
    return GdrdError(
        f"the gallery {where} is damaged: {what}; restore it from a backup or enroll its people again elsewhere",
        "gallery-damaged",
    )


def missing(where: object) -> GdrdError:
    """The error for a place at which there is no gallery."""
    return GdrdError(f"there is no gallery in {where}; gdrd enroll, or Gallery.save, makes one", "gallery-missing")


def replaced(where: object) -> GdrdError:
    """The error for a gallery in whose place another one was saved meanwhile."""
    return GdrdError(
        f"the gallery {where} was replaced by one of another recognizer; load it again", "gallery-replaced"
    )
