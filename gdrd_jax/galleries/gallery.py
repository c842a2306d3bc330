"""Galleries of known faces, and the search for the faces in them that are most similar to a probe."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gdrd_jax.galleries import folder
from gdrd_jax.galleries.address import Address, PostgresAddress, parse_address
from gdrd_jax.galleries.checks import Row, rows, unit_embeddings
from gdrd_jax.galleries.database import FaceDatabase
from gdrd_jax.galleries.sqlite import SqliteFaces
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.errors import GdrdError, did_you_mean

LOG = logging.getLogger(__name__)


class Match(NamedTuple):
    """A face in the gallery that a search found; `similarity` is its cosine with the probe."""

    id: str
    similarity: float
    metadata: dict


class Gallery:
    """A gallery of known faces.

    A new gallery is in memory until it is saved. Once a gallery was loaded or saved, each change is on disk when the
    method returns, and every process that has the gallery open sees it. Any number of threads and processes may search
    and change it at the same time; after a fork, the child has to load it again.

    Attributes:
      dim: dimension D of the embeddings.
      fingerprint: fingerprint of the recognizer that computed the embeddings.

    Examples:
      >>> gallery = Gallery(128, recognizer.fingerprint())
      >>> gallery.add(recognizer.embed(faces), ["ann", "bob"])
      >>> gallery.save("people")
      >>> Gallery.load("people", recognizer.fingerprint()).search(recognizer.embed(probes))[0][0].id
    """

    def __init__(self, dim: int, fingerprint: str):
        """Makes an empty gallery in memory."""
        self._use(SqliteFaces.create(dim, fingerprint))

    def _use(self, faces: FaceDatabase) -> None:
        self._faces, self.dim, self.fingerprint = faces, faces.dim, faces.fingerprint

    def __len__(self) -> int:
        with self._faces.reading():
            return self._faces.count()

    def add(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None = None) -> None:
        """Adds faces; either all of them or none.

        Args:
          embeddings: float `[N, D]`, unit length.
          ids: the name of the person in each of the N faces; a person may have any number of faces.
          metadata: N JSON-serializable dicts, such as the `path` of each picture; None means empty dicts.

        Raises:
          GdrdError: the embeddings have another shape, type or length, the numbers of embeddings, ids and metadata
            differ, or the gallery cannot be written.
        """
        rows = self._rows(embeddings, ids, metadata)
        with self._faces.writing():
            self._faces.insert(rows)

    def update(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None = None) -> int:
        """Replaces all faces of the people in `ids` with the given ones; people who are not in the gallery are added.

        As with `remove`, nothing of the replaced faces remains on disk.

        Args:
          embeddings, ids, metadata: as in `add`.

        Returns:
          Number of faces that were replaced.

        Raises:
          GdrdError: as in `add`; "gallery-old-files" or "gallery-not-purged", see `remove`.
        """
        rows = self._rows(embeddings, ids, metadata)
        self._faces.check_removable()
        with self._faces.writing():
            replaced = sum(self._faces.delete("person", name) for name in dict.fromkeys(ids))
            self._faces.insert(rows)
        if replaced:
            self._purge()
        return replaced

    def remove(self, *people: str, paths: Iterable[str | os.PathLike] = ()) -> int:
        """Removes people with all their faces, or single faces; either everything that is given or nothing.

        When the method returns, no file of the gallery contains the embeddings, names or paths of these faces.

        Args:
          people: ids of the people.
          paths: paths of single faces, as in the `path` of their metadata.

        Returns:
          Number of faces that were removed.

        Raises:
          GdrdError: "gallery-person-unknown" or "gallery-path-unknown"; the message suggests the nearest name.
            "gallery-old-files": the folder still contains the gallery of version 0.4 that this one was made from.
            "gallery-not-purged": the faces are removed, but their bytes may still be on disk.
        """
        self._faces.check_removable()
        removed = 0
        with self._faces.writing():
            for column, names in (("person", people), ("path", [os.fspath(path) for path in paths])):
                for name in dict.fromkeys(names):
                    count = self._faces.delete(column, name)
                    if not count:
                        raise self._unknown(column, name)
                    removed += count
        if removed:
            self._purge()
        return removed

    def _unknown(self, column: str, name: str) -> GdrdError:
        lists = {"person": "gdrd gallery", "path": "gdrd search --json"}[column]
        hint = f"{did_you_mean(name, self._faces.values(column))}{lists} lists those that are"
        if column == "person":
            return GdrdError(f"there is no person {name!r} in the gallery; {hint}", "gallery-person-unknown")
        return GdrdError(f"there is no face of {name!r} in the gallery; {hint}", "gallery-path-unknown")

    def _purge(self) -> None:
        try:
            self._faces.purge()
        except (GdrdError, OSError) as error:
            raise GdrdError(
                f"the faces are removed from the gallery {self._faces.where}, but its files may still contain them: "
                f"{error}; correct that, and the next command that opens the gallery finishes the removal",
                "gallery-not-purged",
            ) from error

    def people(self) -> list[str]:
        """The ids of all people, in the order in which they were added."""
        return list(self.counts())

    def counts(self) -> dict[str, int]:
        """The number of faces of each person, in the order in which the people were added."""
        with self._faces.reading():
            return self._faces.counts()

    def templates(self) -> "Gallery":
        """Makes a gallery in memory with one entry per person.

        Returns:
          A gallery with the mean of each person's embeddings, scaled to unit length. Its metadata are those of the
          person's first face, and "faces", the number of the person's faces.
        """
        with self._faces.reading():
            owners, counts = self._faces.people(), self._faces.counts()
            numbers = {name: number for number, name in enumerate(counts)}
            sums = np.zeros((len(counts), self.dim), np.float32)
            for ids, block in self.blocks():
                np.add.at(sums, [numbers[owners[one]] for one in ids.tolist()], block)
            firsts = {owners[one]: one for one in sorted(owners, reverse=True)}
            metadata = [self._faces.face(firsts[name])[1] for name in counts]
        gallery = Gallery(self.dim, self.fingerprint)
        gallery.add(unit(sums), list(counts), [one | {"faces": n} for one, n in zip(metadata, counts.values())])
        return gallery

    def search(self, embeddings: np.ndarray, k: int = 5) -> list[list[Match]]:
        """Finds the faces that are most similar to each probe.

        The search is exhaustive in a gallery of up to `faiss_index.EXACT` faces. In a larger one an index proposes
        candidates, so that a face can be missed. Similarities are always exact.

        Args:
          embeddings: embeddings of the probes, float `[N, D]`, unit length.
          k: number of matches per probe; if the gallery has fewer faces, all of them are returned.

        Returns:
          The matches of each probe, most similar first; among equally similar faces, the one added first.

        Raises:
          GdrdError: the embeddings have another shape, type or length, `k` is below 1, or the gallery is empty or
            damaged.
        """
        probes = unit_embeddings(embeddings, self.dim)
        if k < 1:
            raise GdrdError(f"k is {k}; ask for at least 1 match", "gallery-k")
        self._faces.prepare_search()
        with self._faces.reading():
            found = self._faces.nearest(probes, k)
        if not all(found):
            raise GdrdError("the gallery is empty; add faces before searching", "gallery-empty")
        return [[Match(*match) for match in line] for line in found]

    def blocks(self, after: int = -1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All faces with database ids above `after`: ids, int64 `[n]`, increasing, and embeddings, float32 `[n, D]`."""
        return self._faces.blocks(after)

    def _rows(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None) -> list[Row]:
        embeddings = unit_embeddings(embeddings, self.dim)
        metadata = [{}] * len(ids) if metadata is None else metadata
        if not len(embeddings) == len(ids) == len(metadata):
            raise GdrdError(
                f"there are {len(embeddings)} embeddings, {len(ids)} ids and {len(metadata)} dicts of metadata; "
                "give one of each for each face",
                "gallery-counts",
            )
        return rows(embeddings, ids, metadata)

    def save(self, place: str | os.PathLike | Address, *, new: bool = False) -> None:
        """Writes the gallery to a place, replacing a gallery that is already there; later changes are made there, too.

        If the process is killed, the place holds either the old gallery or the new one. Other files in the folder, and
        other tables in the schema, are left alone. Saving to the place that the gallery was loaded from does nothing.

        Args:
          place: a folder, which is created if it is missing, or the URL of a schema in a PostgreSQL database,
            `postgresql://USER@HOST/DATABASE?schema=NAME`, see `galleries.address`.
          new: refuse to replace an existing gallery.

        Raises:
          GdrdError: the gallery is empty, or the place cannot be written or reached. "gallery-exists": there is a
            gallery, and `new` is set.
        """
        place = parse_address(place)
        if self._faces.is_at(place) and not new:
            return
        if not len(self):
            raise GdrdError(f"the gallery is empty; add faces before saving it in {place}", "gallery-empty")
        self._use(_module(place).save(self._faces, place, new=new))

    @classmethod
    def load(cls, place: str | os.PathLike | Address, fingerprint: str | Sequence[str] | None = None) -> "Gallery":
        """Opens a saved gallery.

        A gallery of version 0.4 is converted: a database is made next to its files, which are kept. In a read-only
        folder such a gallery is read into memory, and can only be searched.

        Args:
          place: the place where the gallery was saved.
          fingerprint: fingerprint of the recognizer that embeds the probes, or the fingerprints of all recognizers
            whose galleries its probes can be compared with, its own first (`Recognizer.comparable`). None accepts the
            gallery of any recognizer.

        Raises:
          GdrdError: "gallery-missing", "gallery-space" (of another recognizer), "gallery-format", "gallery-damaged";
            for PostgreSQL also "gallery-url", "gallery-unreachable" or "gallery-extension".
        """
        place = parse_address(place)
        accepted = [fingerprint] if isinstance(fingerprint, str) else fingerprint
        gallery = cls.__new__(cls)
        gallery._use(_module(place).load(place, accepted))
        if not gallery._faces.is_purged():  # a process was killed while it removed faces
            try:
                gallery._purge()
            except GdrdError as error:  # such as in a folder that only others may write
                LOG.warning("%s", error)
        return gallery


def is_gallery(place: Address) -> bool:
    """Whether there is a gallery at a place.

    Raises:
      GdrdError: "gallery-unreachable" or "gallery-extension", of one in PostgreSQL.
    """
    return _module(place).is_gallery(place)


def _module(place: Address) -> Any:
    """The module that loads and saves galleries at such a place."""
    if isinstance(place, PostgresAddress):
        from gdrd_jax.galleries import postgresql_place  # psycopg, which no other gallery needs

        return postgresql_place
    return folder
