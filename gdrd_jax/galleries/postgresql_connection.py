"""Connections to PostgreSQL, how it stores names and embeddings, and what its errors mean for a gallery."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from gdrd_jax.galleries.address import PostgresAddress
from gdrd_jax.galleries.checks import damaged, missing
from gdrd_jax.utils.errors import GdrdError, require

psycopg = require("psycopg", "postgres")

OLDEST = (0, 8)  # pgvector with iterative scans, which find enough faces among many that were removed
TIMEOUT = 60.0  # seconds to wait for another process's transaction
CONNECT_TIMEOUT = 10  # seconds to wait for a server, unless the URL has another number
ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{4})")
# A scan goes on until it has as many faces as the query asks for, although removed ones are still in the index.
SETTINGS = {"hnsw.iterative_scan": "relaxed_order", "lock_timeout": f"{TIMEOUT:g}s"}
# Classes and codes of SQLSTATE (appendix A of PostgreSQL's documentation), the longest prefix first.
BUSY = ("40", "55P03")
NOT_WRITTEN = ("25006", "42501", "53")
UNREACHABLE = ("08", "28", "3D", "57P")
MISSING = ("3F000", "42P01")


class Vector(bytes):
    """An embedding in the binary form of pgvector: the dimension and 0 as int16, and float32 numbers, big endian."""

    @classmethod
    def of(cls, embedding: np.ndarray) -> "Vector":
        """Of float `[D]`."""
        return cls(np.array([len(embedding), 0], ">i2").tobytes() + embedding.astype(">f4").tobytes())


def embeddings_of(vectors: list[bytes], dim: int) -> np.ndarray:
    """float32 `[n, D]` of what the function `vector_send` of pgvector returns."""
    return np.frombuffer(b"".join(vectors), f">i2, >i2, ({dim},)>f4")["f2"].astype(np.float32)


def escaped(text: str) -> str:
    """Text as PostgreSQL stores it, which refuses NUL and what is not Unicode: these, and backslashes, are escaped."""
    return text.replace("\\", "\\\\").replace("\0", "\\u0000").encode("utf-8", "backslashreplace").decode()


def unescaped(text: str) -> str:
    """The inverse of `escaped`."""
    return ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), text)


def connect(address: PostgresAddress) -> Any:
    """An open connection outside of any transaction, with the gallery's schema and pgvector in its search path.

    Raises:
      GdrdError: "gallery-unreachable", or "gallery-extension": pgvector is missing or too old.
    """
    with explained(address):
        try:
            timeout = {} if "connect_timeout" in address.url else {"connect_timeout": CONNECT_TIMEOUT}
            connection = psycopg.connect(
                address.url, autocommit=True, prepare_threshold=None, application_name="gdrd", client_encoding="utf8",
                **timeout,
            )  # fmt: skip
        except psycopg.ProgrammingError as error:  # an unknown parameter of the URL
            raise GdrdError(
                f"the URL of the gallery {address} has a parameter that PostgreSQL's client does not know; correct it",
                "gallery-url",
            ) from error
        try:
            _prepare(connection, address)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: Any, address: PostgresAddress) -> None:
    found = connection.execute(
        "SELECT extversion, extnamespace::regnamespace::text, to_regtype(format('%I.vector', nspname))::oid "
        "FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'"
    ).fetchone()
    version = tuple(map(int, found[0].split(".")[:2])) if found else None
    if version is None or version < OLDEST:
        there = f"has pgvector {found[0]}, which is too old" if found else "does not have the extension pgvector"
        raise GdrdError(
            f"the database of the gallery {address} {there}; install pgvector {'.'.join(map(str, OLDEST))} or later on "
            f"the server, and let an administrator run {'ALTER' if found else 'CREATE'} EXTENSION vector"
            f"{' UPDATE' if found else ''} in the database",
            "gallery-extension",
        )
    dumper = type("VectorDumper", (_VectorDumper,), {"oid": found[2]})
    connection.adapters.register_dumper(Vector, dumper)
    settings = SETTINGS | {"search_path": f"{address.schema}, {found[1]}"}
    calls = ", ".join(["set_config(%s, %s, false)"] * len(settings))
    connection.execute(f"SELECT {calls}", [text for setting in settings.items() for text in setting])


class _VectorDumper(psycopg.adapt.Dumper):  # type: ignore[name-defined]
    format = psycopg.pq.Format.BINARY

    def dump(self, obj: Vector) -> bytes:
        return obj


@contextlib.contextmanager
def explained(where: object) -> Iterator[None]:
    """Turns psycopg's errors into a `GdrdError`.

    "gallery-unreachable", "gallery-busy", "gallery-not-written", "gallery-missing" or "gallery-damaged".
    """
    try:
        yield
    except psycopg.Error as error:
        state, said = error.sqlstate or "", " ".join(str(error).split())
        if isinstance(error, psycopg.OperationalError) and not state or state.startswith(UNREACHABLE):
            raise GdrdError(
                f"the PostgreSQL server of the gallery {where} cannot be used: {said}; correct that and run the same "
                "command again",
                "gallery-unreachable",
            ) from error
        if state.startswith(BUSY):
            raise GdrdError(
                f"others have been changing the gallery {where} for {TIMEOUT:g} seconds; wait for them and run the "
                "same command again",
                "gallery-busy",
            ) from error
        if state.startswith(NOT_WRITTEN):
            raise GdrdError(
                f"the gallery {where} could not be read or written: {said}; what is there already stays valid; correct "
                "that and run the same command again",
                "gallery-not-written",
            ) from error
        if state.startswith(MISSING):
            raise missing(where) from error
        raise damaged(where, said) from error
