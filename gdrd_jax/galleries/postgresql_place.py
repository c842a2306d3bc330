"""Galleries in PostgreSQL: opening and saving them; `galleries.folder` is the same for folders."""

import contextlib
from collections.abc import Sequence

from gdrd_jax.galleries.address import PostgresAddress
from gdrd_jax.galleries.checks import check_space, missing
from gdrd_jax.galleries.database import FaceDatabase
from gdrd_jax.galleries.postgresql import PostgresFaces
from gdrd_jax.galleries.postgresql_connection import connect, explained
from gdrd_jax.galleries.postgresql_schema import LOCK, columns, contains_gallery, create, insert
from gdrd_jax.utils.errors import GdrdError


def is_gallery(address: PostgresAddress) -> bool:
    """Whether there is a gallery at an address."""
    with explained(address), contextlib.closing(connect(address)) as connection:
        return contains_gallery(connection, address.schema)


def load(address: PostgresAddress, accepted: Sequence[str] | None) -> PostgresFaces:
    """Opens the gallery at an address, see `Gallery.load`; `accepted` are fingerprints of recognizers, None all."""
    if not is_gallery(address):
        raise missing(address)
    faces = PostgresFaces(address)
    check_space(address, faces.fingerprint, accepted)
    return faces


def save(faces: FaceDatabase, address: PostgresAddress, *, new: bool) -> PostgresFaces:
    """Writes a gallery into a schema and opens it, see `Gallery.save`; the schema is made if it is missing."""
    schema = address.schema
    with explained(address), contextlib.closing(connect(address)) as connection, connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (LOCK, schema))
        if not connection.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone()[0]:
            connection.execute(f"CREATE SCHEMA {schema}")
        if contains_gallery(connection, schema):
            if new:
                raise GdrdError(f"{address} contains a gallery already; load it and add to it", "gallery-exists")
        elif any(columns(connection, schema, table) for table in ("gallery", "face")):
            raise GdrdError(f"{address} has tables of another program; choose another schema", "gallery-format")
        create(connection, schema, faces.dim, faces.fingerprint)
        for block in faces.rows():
            insert(connection, block)
    return PostgresFaces(address)
