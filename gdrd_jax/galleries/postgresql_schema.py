"""The tables and the index of a gallery in PostgreSQL."""

import logging
from typing import Any

from gdrd_jax.galleries.checks import Row
from gdrd_jax.galleries.postgresql_connection import Vector, escaped, psycopg

LOG = logging.getLogger(__name__)
FORMAT = 1  # version of the tables
LOCK = 0x67647264  # "gdrd": first number of the advisory locks; the second one is a hash of the schema's name
NEIGHBORS, BREADTH = 16, 128  # of each face in the index, and faces considered for them (m, ef_construction)
SCHEMA = """
CREATE TABLE gallery (format integer NOT NULL, dim integer NOT NULL, fingerprint text NOT NULL,
  removals bigint NOT NULL DEFAULT 0, purged bigint NOT NULL DEFAULT 0);
CREATE TABLE face (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, person text NOT NULL, path text,
  metadata json NOT NULL, embedding vector(%d) NOT NULL);
CREATE INDEX face_person ON face (person);
CREATE INDEX face_path ON face (path);
"""
HAS_INDEX = "EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('face_embedding') AND indisvalid)"


def contains_gallery(connection: Any, schema: str) -> bool:
    """Whether a schema contains the tables of a gallery."""
    found = columns(connection, schema, "gallery") >= {"format", "dim", "fingerprint", "removals", "purged"}
    return found and columns(connection, schema, "face") >= {"id", "person", "path", "metadata", "embedding"}


def columns(connection: Any, schema: str, table: str) -> set[str]:
    """The columns of a table; none if there is no such table."""
    query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0"
    return {name for (name,) in connection.execute(query, (f"{schema}.{table}",))}


def create(connection: Any, schema: str, dim: int, fingerprint: str) -> None:
    """Makes the tables of an empty gallery, instead of one that is there; within a transaction."""
    if contains_gallery(connection, schema):
        connection.execute(f"DROP TABLE {schema}.gallery, {schema}.face")
    connection.execute(SCHEMA % dim)
    connection.execute(
        "INSERT INTO gallery (format, dim, fingerprint) VALUES (%s, %s, %s)", (FORMAT, dim, fingerprint)
    )  # fmt: skip


def insert(connection: Any, rows: list[Row]) -> None:
    values = [
        (escaped(row.person), row.path and escaped(row.path), row.metadata, Vector.of(row.embedding)) for row in rows
    ]
    connection.cursor().executemany(
        "INSERT INTO face (person, path, metadata, embedding) VALUES (%s, %s, %s, %b)", values
    )


def build_index(connection: Any, dim: int, schema: str) -> None:
    """Builds the index, unless another process does."""
    lock = (LOCK, schema)
    if not connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", lock).fetchone()[0]:
        return
    try:
        connection.execute("DROP INDEX CONCURRENTLY IF EXISTS face_embedding")  # of a process that was killed
        connection.execute(
            f"CREATE INDEX CONCURRENTLY face_embedding ON face USING hnsw ((embedding::halfvec({dim})) halfvec_ip_ops) "
            f"WITH (m = {NEIGHBORS}, ef_construction = {BREADTH})"
        )
    except psycopg.errors.InsufficientPrivilege as error:
        LOG.warning("every search compares all faces, because the index could not be built: %s", error)
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", lock)
