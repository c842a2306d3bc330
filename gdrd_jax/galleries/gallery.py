"""A set of known faces, and which of them a face is most like."""

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
    """A face of the gallery; `similarity` is its cosine with the probe."""

    id: str
    similarity: float
    metadata: dict


class Gallery:
    """Known faces to search in.

    A new gallery is in memory until it is saved. The changes of a gallery that was loaded or saved are on disk when the
    method returns, and every process that has it open sees them. Any number of threads and processes may search and
    change it at the same time; after a fork the child has to load it again.

    Attributes:
      dim: D of its embeddings.
      fingerprint: of the recognizer that they are from.

    Examples:
      >>> gallery = Gallery(128, recognizer.fingerprint())
      >>> gallery.add(recognizer.embed(faces), ["ann", "bob"])
      >>> gallery.save("people")
      >>> Gallery.load("people", recognizer.fingerprint()).search(recognizer.embed(probes))[0][0].id
    """

    def __init__(self, dim: int, fingerprint: str):
        """Makes an empty one, in memory."""
        self._use(SqliteFaces.create(dim, fingerprint))

    def _use(self, faces: FaceDatabase) -> None:
        self._faces, self.dim, self.fingerprint = faces, faces.dim, faces.fingerprint

    def __len__(self) -> int:
        with self._faces.reading():
            return self._faces.count()

    def add(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None = None) -> None:
        """Adds faces, all or none.

        Args:
          embeddings: float `[N, D]`, unit length.
          ids: N names of people, who may have any number of faces.
          metadata: N dicts of what JSON can hold, such as the picture's `path`; empty ones if None.

        Raises:
          GdrdError: another shape, type, length or count, or the gallery cannot be written.
        """
        rows = self._rows(embeddings, ids, metadata)
        with self._faces.writing():
            self._faces.insert(rows)

    def update(self, embeddings: np.ndarray, ids: Sequence[str], metadata: Sequence[dict] | None = None) -> int:
        """Replaces all faces of the people in `ids` by these; people who are not in the gallery are added.

        As with `remove`, nothing of the replaced faces stays on disk.

        Args:
          embeddings, ids, metadata: as of `add`.

        Returns:
          How many faces were replaced.

        Raises:
          GdrdError: as `add`; "gallery-old-files" or "gallery-not-purged", see `remove`.
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
        """Removes people with all their faces, or single faces, all or none.

        When it returns, no file of the gallery contains their embeddings, names or paths any more.

        Args:
          people: ids.
          paths: the metadata `path` of faces.

        Returns:
          How many faces were removed.

        Raises:
          GdrdError: "gallery-person-unknown" or "gallery-path-unknown", with the nearest name;
            "gallery-old-files": the folder still contains the gallery of version 0.4 that this one was made from;
            "gallery-not-purged": the faces are removed but their bytes may still be on disk.
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
        """The distinct ids, in the order in which they were added."""
        return list(self.counts())

    def counts(self) -> dict[str, int]:
        """The number of faces of each person, in the order in which the people were added."""
        with self._faces.reading():
            return self._faces.counts()

    def templates(self) -> "Gallery":
        """A gallery with one entry for each id, in memory.

        Returns:
          The mean of each one's embeddings, of unit length again, with the metadata of the first of them and, under
          "faces", their number.
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
        """The faces most like each probe.

        Which ones they are is exact in a gallery of up to `faiss_index.EXACT` faces, and nearly so otherwise.
        Similarities always are.

        Args:
          embeddings: of the probes, float `[N, D]`, unit length.
          k: how many faces for each; all if there are fewer.

        Returns:
          For each probe its matches, the most similar first; of equal ones the first added.

        Raises:
          GdrdError: another shape, type or length, `k` below 1, no face to search in, or damage.
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
        """All faces above an id of the database: ids int64 `[n]`, rising, and embeddings float32 `[n, D]`."""
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
        """Writes the gallery to a place, instead of one that is there already, and goes on in it.

        Whenever it is killed, the place holds the old gallery or the new one. Other files in a folder are left alone,
        and so are other tables of a schema. A gallery that was loaded from this place is there already.

        Args:
          place: a folder, which is made if it is missing, or the URL of a schema in a PostgreSQL database,
            `postgresql://USER@HOST/DATABASE?schema=NAME`, see `galleries.address`.
          new: there must be no gallery yet.

        Raises:
          GdrdError: it is empty, "gallery-exists", or the place cannot be written or reached.
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

        A gallery of version 0.4 is converted: a database is made beside its files, which stay. In a folder that cannot
        be written it is read into memory, for searching only.

        Args:
          place: where it was saved.
          fingerprint: of the recognizer that the probes are from, or of all whose galleries they can be compared with
            (`Recognizer.comparable`), its own first; None takes a gallery of any.

        Raises:
          GdrdError: "gallery-missing", "gallery-space" (of another recognizer), "gallery-format", "gallery-damaged",
            and of one in PostgreSQL "gallery-url", "gallery-unreachable" or "gallery-extension".
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
