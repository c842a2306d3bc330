"""The faces of a gallery in a PostgreSQL database with pgvector, which several servers share.

A gallery is a schema with the tables `gallery`, of one row, and `face`. Every change is one transaction. Up to
`faiss_index.EXACT` faces are compared with every probe. In a larger gallery an HNSW index of the embeddings in half
precision (arXiv 1603.09320) proposes `CANDIDATES` faces, and the embeddings themselves decide among them.
"""

import collections
import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gdrd_jax.galleries import faiss_index
from gdrd_jax.galleries.address import PostgresAddress
from gdrd_jax.galleries.checks import UNIT, Row, damaged, replaced
from gdrd_jax.galleries.postgresql_connection import (
    Vector,
    connect,
    embeddings_of,
    escaped,
    explained,
    psycopg,
    unescaped,
)
from gdrd_jax.galleries.postgresql_schema import FORMAT, HAS_INDEX, build_index, insert
from gdrd_jax.utils.errors import GdrdError

BLOCK = 16_384  # faces read at once
CANDIDATES = 100  # faces taken from the index for a probe, at least
LARGEST = 1000  # candidates that an index gives at most (hnsw.ef_search)
READING, WRITING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "BEGIN"
DESCRIPTION = f"SELECT dim, fingerprint, {HAS_INDEX} FROM gallery"


class PostgresFaces:
    """Faces with person, path, metadata and embedding; any number of threads may use one object.

    Attributes:
      where: the address, without a password.
      dim: D of the embeddings.
      fingerprint: of the recognizer that they are from.
    """

    def __init__(self, address: PostgresAddress):
        """Opens the gallery at an address.

        Raises:
          GdrdError: "gallery-format", "gallery-damaged", or as `postgresql_connection.explained`.
        """
        self.where, self._address = str(address), address
        self._idle: collections.deque[Any] = collections.deque()
        self._thread = threading.local()  # the connection of the transaction that a thread is in
        self.close = weakref.finalize(self, _close, self._idle)
        with self._connected("SELECT format, dim, fingerprint FROM gallery") as cursor:
            described = cursor.fetchall()
        if len(described) != 1:
            raise damaged(self.where, "its description is missing")
        version, self.dim, self.fingerprint = described[0]
        if version != FORMAT:
            raise GdrdError(
                f"{self.where} has format {version} of galleries and this gdrd_jax reads {FORMAT}; install a newer one",
                "gallery-format",
            )

    def is_at(self, place: object) -> bool:
        """Whether this is the gallery at an address, so that there is nothing to save."""
        return place == self._address

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A context that sees one state of the database; it may be nested."""
        if getattr(self._thread, "connection", None):
            yield
            return
        with self._transaction(READING):
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction, which is undone if an exception is raised."""
        with self._transaction(WRITING):
            yield

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._connected(begin) as cursor:
            connection = self._thread.connection = cursor.connection
            try:
                *found, self._thread.has_index = connection.execute(DESCRIPTION).fetchone()
                if found != [self.dim, self.fingerprint]:
                    raise replaced(self.where)
                yield
                connection.execute("COMMIT")
            finally:
                self._thread.connection = None

    @contextlib.contextmanager
    def _connected(self, first: str) -> Iterator[Any]:
        """The cursor of a first command on a connection that no other thread uses meanwhile."""
        with explained(self.where):
            connection, cursor = self._begun(first)
            try:
                yield cursor
            except BaseException as error:
                with contextlib.suppress(psycopg.Error):  # a broken connection
                    connection.rollback() if isinstance(error, Exception) else connection.close()
                raise
            finally:
                if not connection.closed:
                    self._idle.append(connection)

    def _begun(self, first: str) -> tuple[Any, Any]:
        while self._idle:
            with contextlib.suppress(IndexError, psycopg.OperationalError):  # another thread; a server that restarted
                connection = self._idle.pop()
                return connection, connection.execute(first)
        connection = connect(self._address)
        return connection, connection.execute(first)

    def _run(self, query: str, values: Iterable[object] = ()) -> Any:
        return self._thread.connection.execute(query, values, binary=True)

    # Called within `reading` or `writing`:

    def count(self) -> int:
        """The number of faces."""
        return self._run("SELECT count(*) FROM face").fetchone()[0]

    def counts(self) -> dict[str, int]:
        """The number of faces of each person, in the order in which the people were added."""
        found = self._run("SELECT person, count(*) FROM face GROUP BY person ORDER BY min(id)")
        return {unescaped(person): count for person, count in found}

    def people(self) -> dict[int, str]:
        """The person of each face, by id."""
        return {number: unescaped(person) for number, person in self._run("SELECT id, person FROM face")}

    def values(self, column: str) -> list[str]:
        """The distinct values of a column, "person" or "path"."""
        return [unescaped(v) for (v,) in self._run(f"SELECT DISTINCT {column} FROM face WHERE {column} IS NOT NULL")]

    def face(self, number: int) -> tuple[str, dict]:
        """Person and metadata of the face with this id."""
        person, path, metadata = self._run(
            "SELECT person, path, metadata FROM face WHERE id = %s", (number,)
        ).fetchone()  # fmt: skip
        return unescaped(person), self._metadata(path, metadata)

    def _metadata(self, path: str | None, metadata: object) -> dict:
        if not isinstance(metadata, dict):
            raise damaged(self.where, "the metadata of a face cannot be read")
        return ({} if path is None else {"path": unescaped(path)}) | metadata

    def nearest(self, probes: np.ndarray, k: int) -> list[list[tuple[str, float, dict]]]:
        """For each probe, float32 `[N, D]`, person, cosine and metadata of the `k` most similar faces, best first."""
        faces = "face"
        if self._thread.has_index and 4 * k <= LARGEST:
            half, candidates = f"halfvec({self.dim})", max(CANDIDATES, 4 * k)
            faces = (
                f"(SELECT * FROM face ORDER BY embedding::{half} <#> %(probe)b::{half} LIMIT {candidates}) candidates"
            )
            self._run(f"SET LOCAL hnsw.ef_search = {candidates}")
        query = (
            f"SELECT person, path, metadata, -(embedding <#> %(probe)b) FROM {faces} "
            f"ORDER BY embedding <#> %(probe)b, id LIMIT {k}"
        )
        return [
            [
                (unescaped(person), similarity, self._metadata(path, metadata))
                for person, path, metadata, similarity in self._run(query, {"probe": Vector.of(probe)})
            ]
            for probe in probes
        ]

    def insert(self, rows: list[Row]) -> None:
        """Adds faces."""
        self._run("LOCK TABLE gallery IN ROW EXCLUSIVE MODE")  # several may add at once, but not beside `delete`
        insert(self._thread.connection, rows)

    def delete(self, column: str, value: str) -> int:
        """Deletes the faces with a value of "person" or "path", and returns their number; call `purge` afterwards."""
        self._run("LOCK TABLE gallery IN SHARE ROW EXCLUSIVE MODE")
        count = self._run(f"DELETE FROM face WHERE {column} = %s", (escaped(value),)).rowcount
        if count:
            self._run("UPDATE gallery SET removals = removals + 1")
        return count

    def blocks(self, after: int = -1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All faces above an id: ids int64 `[n]`, rising, and embeddings float32 `[n, D]`; with its own `reading`."""
        query = f"SELECT id, vector_send(embedding) FROM face WHERE id > %s ORDER BY id LIMIT {BLOCK}"
        while True:
            with self.reading():
                found = self._run(query, (after,)).fetchall()
            if not found:
                return
            after = found[-1][0]
            embeddings = embeddings_of([vector for _, vector in found], self.dim)
            if not (np.abs(np.linalg.norm(embeddings, axis=1) - 1) <= UNIT).all():
                raise damaged(self.where, "an embedding is not of unit length")
            yield np.array([number for number, _ in found], np.int64), embeddings

    def rows(self) -> Iterator[list[Row]]:
        """All faces, in the order in which they were added; with its own `reading`."""
        query = (
            "SELECT id, person, path, metadata::text, vector_send(embedding) FROM face WHERE id > %s "
            f"ORDER BY id LIMIT {BLOCK}"
        )
        with self.reading():
            after = -1
            while found := self._run(query, (after,)).fetchall():
                embeddings = embeddings_of([row[-1] for row in found], self.dim)
                yield [
                    Row(unescaped(person), path if path is None else unescaped(path), metadata, embedding)
                    for (_, person, path, metadata, _), embedding in zip(found, embeddings)
                ]
                after = found[-1][0]

    # With transactions of their own:

    def prepare_search(self) -> None:
        """Builds the HNSW index of a large gallery if it is missing, which may take minutes; others may work meanwhile.

        Nothing happens where another process builds it already, or where this user may not.
        """
        few = faiss_index.EXACT
        needs_index = (  # the first two conditions are cheap, and usually enough; ids are never used twice
            f"SELECT NOT {HAS_INDEX} AND (SELECT max(id) > {few} FROM face) "
            f"AND (SELECT count(*) > {few} FROM (SELECT FROM face LIMIT {few} + 1) counted)"
        )
        with self._connected(needs_index) as cursor:
            if cursor.fetchone()[0]:
                build_index(cursor.connection, self.dim, self._address.schema)

    def check_removable(self) -> None:
        """Nothing but the database holds faces."""

    def is_purged(self) -> bool:
        """Whether `purge` has run since the last removal."""
        with self.reading():
            return self._run("SELECT purged >= removals FROM gallery").fetchone()[0]

    def purge(self) -> None:
        """Lets PostgreSQL delete removed faces from the index, and use their place in the table for others (VACUUM).

        Raises:
          GdrdError: as `explained`, or this user may not.
        """
        with self._connected("SELECT removals FROM gallery") as cursor:
            connection, (removals,) = cursor.connection, cursor.fetchone()
            refusals: list[str] = []
            connection.add_notice_handler(note := lambda notice: refusals.append(notice.message_primary))
            try:
                connection.execute("VACUUM (INDEX_CLEANUP ON) face")
            finally:
                connection.remove_notice_handler(note)
            if refusals:  # only the owner may, and the server says so in a warning
                raise GdrdError("; ".join(refusals), "gallery-not-written")
            connection.execute("UPDATE gallery SET purged = greatest(purged, %s)", (removals,))


def _close(connections: collections.deque[Any]) -> None:
    for connection in connections:
        connection.close()
