"""Small things every part does with files."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from gdrd_jax.errors import GdrdError

LOCK = ".lock"


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(settings: dict) -> str:
    """sha256 of what JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` if it is missing, and keeps other processes from working in it for the duration.

    Raises:
      GdrdError: one is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GdrdError(f"another run is working in {folder}; wait for it or choose another folder") from None
        yield
