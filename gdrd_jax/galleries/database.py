"""What a gallery needs of the database that holds its faces."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from gdrd_jax.galleries.address import Address
from gdrd_jax.galleries.checks import Row


class FaceDatabase(Protocol):
    """Faces with person, path, metadata and embedding; any number of threads may use one object.

    Attributes:
      where: as part of a sentence.
      dim: D of the embeddings.
      fingerprint: of the recognizer that they are from.
    """

    dim: int
    fingerprint: str

    @property
    def where(self) -> str: ...

    def is_at(self, place: Address) -> bool:
        """Whether this is the gallery at a place, so that there is nothing to save."""

    def reading(self) -> AbstractContextManager[None]:
        """A context that sees one state of the database; it may be nested."""

    def writing(self) -> AbstractContextManager[None]:
        """A transaction, which is undone if an exception is raised."""

    # Called within `reading` or `writing`:

    def count(self) -> int:
        """The number of faces."""

    def counts(self) -> dict[str, int]:
        """The number of faces of each person, in the order in which the people were added."""

    def people(self) -> dict[int, str]:
        """The person of each face, by id."""

    def values(self, column: str) -> list[str]:
        """The distinct values of a column, "person" or "path"."""

    def face(self, number: int) -> tuple[str, dict]:
        """Person and metadata of the face with this id."""

    def nearest(self, probes: np.ndarray, k: int) -> list[list[tuple[str, float, dict]]]:
        """For each probe, float32 `[N, D]`, person, cosine and metadata of the `k` most similar faces, best first."""

    def insert(self, rows: list[Row]) -> None:
        """Adds faces."""

    def delete(self, column: str, value: str) -> int:
        """Deletes the faces with a value of "person" or "path", and returns their number; call `purge` afterwards."""

    # With a transaction of their own, or within one:

    def blocks(self, after: int = -1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All faces above an id: ids int64 `[n]`, rising, and embeddings float32 `[n, D]`."""

    def rows(self) -> Iterator[list[Row]]:
        """All faces, in the order in which they were added."""

    # With a transaction of their own:

    def prepare_search(self) -> None:
        """Builds a missing index of a large gallery, which may take minutes; others may work meanwhile."""

    def check_removable(self) -> None:
        """Checks, before faces are removed, that no other copy of them is beside the database."""

    def is_purged(self) -> bool:
        """Whether nothing of removed faces is left that `purge` deletes."""

    def purge(self) -> None:
        """Deletes what the database still contains of removed faces."""
