"""Connections to a gallery's SQLite database, how it stores names, and what its errors mean for a gallery."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from gdrd_jax.galleries.checks import damaged
from gdrd_jax.utils.errors import GdrdError

DATABASE = "gallery.sqlite"
TIMEOUT = 60.0  # seconds to wait for another process's transaction
APPLICATION, FORMAT = 0x67647264, 1  # "gdrd", and the version of the schema, in the header of the database


def encoded(text: str) -> bytes:
    """Bytes for `CAST(? AS TEXT)`: names of files may not be Unicode, which SQLite's own conversion refuses."""
    return text.encode("utf-8", "surrogatepass")


def connect(file: Path | str) -> sqlite3.Connection:
    uri = file if isinstance(file, str) else f"{file.as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, TIMEOUT, isolation_level=None, check_same_thread=False, uri=True)
    connection.text_factory = lambda text: text.decode("utf-8", "surrogatepass")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def checked(file: Path) -> sqlite3.Connection:
    """A connection to a database that is a gallery's."""
    connection = connect(file)
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if (application, version) != (APPLICATION, FORMAT):
        connection.close()
        newer = f"has format {version} of galleries and this gdrd_jax reads {FORMAT}; install a newer one"
        other = "is not the database of a gallery; choose another folder"
        raise GdrdError(f"{file} {newer if application == APPLICATION else other}", "gallery-format")
    return connection


@contextlib.contextmanager
def explained(folder: Path | None) -> Iterator[None]:
    """Turns SQLite's errors into a `GdrdError`: "gallery-busy", "gallery-not-written" or "gallery-damaged"."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        where = folder / DATABASE if folder else "the gallery in memory"
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise GdrdError(
                f"another process has been changing {where} for {TIMEOUT:g} seconds; wait for it and run the same "
                "command again",
                "gallery-busy",
            ) from error
        if name.startswith(("SQLITE_READONLY", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise GdrdError(
                f"{where} could not be read or written: {error}; what is there already stays valid; correct that and "
                "run the same command again",
                "gallery-not-written",
            ) from error
        raise damaged(folder or "in memory", str(error)) from error
