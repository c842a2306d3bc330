"""The faces of a gallery in a SQLite database, in memory or in a folder."""

import contextlib
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gdrd_jax.galleries import version_04
from gdrd_jax.galleries.address import Address
from gdrd_jax.galleries.checks import UNIT, Row, damaged, replaced
from gdrd_jax.galleries.faiss_search import INDEX, FaissSearch
from gdrd_jax.galleries.sqlite_connection import APPLICATION, DATABASE, FORMAT, checked, connect, encoded, explained
from gdrd_jax.utils.errors import GdrdError

BLOCK = 16_384  # faces read at once
# The triggers keep the count right, and an index from being used for other faces, also if another program changes the
# database. Where `purged` is 0, the file may still contain bytes of deleted faces.
SCHEMA = f"""
PRAGMA page_size = 16384;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
CREATE TABLE gallery (dim INTEGER, fingerprint TEXT, generation TEXT, faces INTEGER, purged INTEGER);
CREATE TABLE face (id INTEGER PRIMARY KEY, person TEXT NOT NULL, path TEXT, metadata TEXT NOT NULL, embedding BLOB);
CREATE INDEX face_person ON face (person);
CREATE INDEX face_path ON face (path);
CREATE TRIGGER face_added AFTER INSERT ON face BEGIN UPDATE gallery SET faces = faces + 1; END;
CREATE TRIGGER face_deleted AFTER DELETE ON face BEGIN
  UPDATE gallery SET faces = faces - 1, generation = lower(hex(randomblob(16))), purged = 0; END;
CREATE TRIGGER face_changed AFTER UPDATE ON face BEGIN
  UPDATE gallery SET generation = lower(hex(randomblob(16))), purged = 0; END;
"""
NEW_GENERATION = "UPDATE gallery SET generation = lower(hex(randomblob(16)))"


class SqliteFaces:
    """Faces with person, path, metadata and embedding.

    Attributes:
      folder: where its file is; None of one in memory.
      dim: D of the embeddings.
      fingerprint: of the recognizer that they are from.
    """

    def __init__(self, connection: sqlite3.Connection, folder: Path | None):
        """Takes a connection to a database with the tables of `SCHEMA`; see `create` and `open`."""
        self.folder, self._connection, self._lock = folder, connection, threading.RLock()
        self.close = weakref.finalize(self, connection.close)
        self._index = FaissSearch()
        with explained(folder):
            row = connection.execute("SELECT dim, fingerprint FROM gallery").fetchone()
        if row is None:
            raise damaged(self.where, "its description is missing")
        self.dim, self.fingerprint = row

    @property
    def where(self) -> str:
        """The folder, as part of a sentence."""
        return str(self.folder) if self.folder else "in memory"

    @classmethod
    def create(cls, dim: int, fingerprint: str) -> "SqliteFaces":
        """Makes an empty one, in memory."""
        connection = connect(":memory:")
        connection.executescript(SCHEMA)
        connection.execute("INSERT INTO gallery VALUES (?, ?, '', 0, 1)", (dim, fingerprint))
        connection.execute(NEW_GENERATION)
        return cls(connection, None)

    @classmethod
    def open(cls, folder: Path) -> "SqliteFaces":
        """Opens the one in a folder.

        Raises:
          GdrdError: "gallery-format": another program's or a later version's; "gallery-damaged".
        """
        with explained(folder):
            return cls(checked(folder / DATABASE), folder)

    def save(self, folder: Path) -> "SqliteFaces":
        """Writes a copy into a folder, atomically, and opens it; one that is there already is replaced.

        Only one process may do so at a time.
        """
        file, temporary = folder / DATABASE, folder / f"{DATABASE}.tmp"
        with self._lock, explained(folder):
            temporary.unlink(missing_ok=True)
            temporary.touch()
            with contextlib.closing(connect(temporary)) as copy:
                copy.execute("PRAGMA journal_mode = MEMORY")  # a killed process leaves one file, not two
                self._connection.backup(copy)
                copy.execute(NEW_GENERATION)
                if file.exists():  # in place, because other processes may have it open
                    with contextlib.closing(checked(file)) as old:
                        copy.backup(old)
            if not file.exists():
                os.replace(temporary, file)
            _delete_leftovers(folder)
        return SqliteFaces.open(folder)

    def is_at(self, place: Address) -> bool:
        """Whether this is the gallery in a folder, so that there is nothing to save."""
        return isinstance(place, Path) and place.resolve() == self.folder and (self.folder / DATABASE).exists()

    def forbid_changes(self) -> None:
        """Makes every later change fail with "gallery-not-written"."""
        self._connection.execute("PRAGMA query_only = ON")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A context that sees one state of the database; it may be nested."""
        with self._lock, explained(self.folder):
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                self._check_recognizer()
                yield
            finally:
                self._connection.rollback()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction, which is undone if an exception is raised."""
        with self._lock, explained(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._check_recognizer()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.rollback()
                raise

    def _check_recognizer(self) -> None:
        found = self._connection.execute("SELECT dim, fingerprint FROM gallery").fetchone()
        if found != (self.dim, self.fingerprint):
            raise replaced(self.where)

    # Called within `reading` or `writing`:

    def count(self) -> int:
        """The number of faces."""
        return self.state()[1]

    def state(self) -> tuple[str, int]:
        """The generation, which is another one after each deletion, and the number of faces."""
        return self._connection.execute("SELECT generation, faces FROM gallery").fetchone()

    def counts(self) -> dict[str, int]:
        """The number of faces of each person, in the order in which the people were added."""
        return dict(self._connection.execute("SELECT person, count(*) FROM face GROUP BY person ORDER BY min(id)"))

    def people(self) -> dict[int, str]:
        """The person of each face, by id."""
        return dict(self._connection.execute("SELECT id, person FROM face"))

    def values(self, column: str) -> list[str]:
        """The distinct values of a column, "person" or "path"."""
        query = f"SELECT DISTINCT {column} FROM face WHERE {column} NOT NULL"
        return [value for (value,) in self._connection.execute(query)]

    def blocks(self, after: int = -1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All faces above an id: ids int64 `[n]`, rising, and embeddings float32 `[n, D]`; with its own `reading`."""
        query = "SELECT id, embedding FROM face WHERE id > ? ORDER BY id LIMIT ?"
        while True:
            with self.reading():
                rows = self._connection.execute(query, (after, BLOCK)).fetchall()
                embeddings = self._decoded([row[1] for row in rows])
            if not rows:
                return
            after = rows[-1][0]
            yield np.array([row[0] for row in rows], np.int64), embeddings

    def rows(self) -> Iterator[list[Row]]:
        """All faces, in the order in which they were added."""
        query = "SELECT id, person, path, metadata, embedding FROM face WHERE id > ? ORDER BY id LIMIT ?"
        with self.reading():
            after = -1
            while found := self._connection.execute(query, (after, BLOCK)).fetchall():
                after = found[-1][0]
                embeddings = self._decoded([row[-1] for row in found])
                yield [
                    Row(person, path, metadata, embedding)
                    for (_, person, path, metadata, _), embedding in zip(found, embeddings)
                ]

    def nearest(self, probes: np.ndarray, k: int) -> list[list[tuple[str, float, dict]]]:
        """For each probe, float32 `[N, D]`, person, cosine and metadata of the `k` most similar faces, best first."""
        return [self._nearest(*pair, k) for pair in zip(probes, self._index.candidates(self, probes, k))]

    def _nearest(self, probe: np.ndarray, candidates: np.ndarray, k: int) -> list[tuple[str, float, dict]]:
        query = "SELECT id, embedding FROM face WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
        found = self._connection.execute(query, (json.dumps(candidates.tolist()),)).fetchall()
        similarities = self._decoded([row[1] for row in found]) @ probe
        best = [int(i) for i in np.argsort(-similarities, kind="stable")[:k]]
        known = [self.face(found[i][0]) for i in best]
        return [(person, float(similarities[i]), metadata) for i, (person, metadata) in zip(best, known)]

    def face(self, number: int) -> tuple[str, dict]:
        """Person and metadata of the face with this id."""
        query = "SELECT person, path, metadata FROM face WHERE id = ?"
        person, path, text = self._connection.execute(query, (number,)).fetchone()
        try:
            return person, ({} if path is None else {"path": path}) | json.loads(text)
        except (ValueError, TypeError) as error:
            raise damaged(self.where, "the metadata of a face cannot be read") from error

    def _decoded(self, embeddings: list[bytes]) -> np.ndarray:
        if any(not isinstance(one, bytes) or len(one) != 4 * self.dim for one in embeddings):
            raise damaged(self.where, f"an embedding does not have {self.dim} numbers")
        values = np.frombuffer(b"".join(embeddings), "<f4").reshape(-1, self.dim)
        if not (np.abs(np.linalg.norm(values, axis=1) - 1) <= UNIT).all():
            raise damaged(self.where, "an embedding is not of unit length")
        return values

    def insert(self, rows: list[Row]) -> None:
        """Adds faces."""
        self._connection.executemany(
            "INSERT INTO face (person, path, metadata, embedding) VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?, ?)",
            [
                (encoded(row.person), None if row.path is None else encoded(row.path), row.metadata,
                 row.embedding.astype("<f4").tobytes())
                for row in rows
            ],
        )  # fmt: skip

    def delete(self, column: str, value: str) -> int:
        """Deletes the faces with a value of "person" or "path", and returns their number; call `purge` afterwards."""
        query = f"DELETE FROM face WHERE {column} = CAST(? AS TEXT)"
        return self._connection.execute(query, (encoded(value),)).rowcount

    # With transactions of their own:

    def prepare_search(self) -> None:
        """Builds the index of a large gallery if it is missing, which may take minutes; others may work meanwhile."""
        self._index.build_ahead(self)

    def check_removable(self) -> None:
        """Checks, before faces are removed, that no other copy of them is in the folder.

        Raises:
          GdrdError: "gallery-old-files".
        """
        if self.folder and (old := version_04.files(self.folder)):
            raise GdrdError(
                f"{self.folder} still contains the gallery of version 0.4 from which this one was made, with the faces "
                f"of everybody in it; delete {', '.join(file.name for file in old)}, then run the same command again",
                "gallery-old-files",
            )

    def is_purged(self) -> bool:
        """Whether nothing of deleted faces is left in the files."""
        with explained(self.folder):
            return bool(self._connection.execute("SELECT purged FROM gallery").fetchone()[0])

    def purge(self) -> None:
        """Deletes what the database and the files beside it still contain of deleted faces."""
        self._index.forget()
        with self._lock, explained(self.folder):
            (generation,) = self._connection.execute("SELECT generation FROM gallery").fetchone()
            if self.folder:
                _delete_leftovers(self.folder)
            # `secure_delete` leaves copies that SQLite made when it moved rows between pages: 3 of 600 in a trial.
            self._connection.execute("VACUUM")
            self._connection.execute("UPDATE gallery SET purged = 1 WHERE generation = ?", (generation,))


def _delete_leftovers(folder: Path) -> None:
    """Deletes the index, and what killed processes have left, for these contain embeddings."""
    for file in [*folder.glob(f"{INDEX}*"), *folder.glob(f"{DATABASE}.tmp*")]:
        file.unlink(missing_ok=True)
