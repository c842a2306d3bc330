"""Small things every part does with files."""

import codecs
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gdrd_jax.errors import GdrdError, first_line

LOCK = ".lock"
TRIES, SECONDS_BETWEEN_TRIES = 3, 0.1


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file atomically; several processes, on several machines, may do so at once."""
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Tells in one sentence why `directory` could not be written.

    Raises:
      GdrdError: it could not, by an error of the system's, or of Orbax's or TensorStore's.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:  # TensorStore's, by the kind of failure
        # Before a library's cause stands each file on the way.
        cause = getattr(error, "strerror", None) or first_line(error).rsplit(": ", 1)[-1]
        raise GdrdError(
            f"{directory} could not be written: {cause}; what is there already stays valid: make room if the disk is "
            "full, and run the same command again"
        ) from error


def writable(path: Path) -> None:
    """Finds out, before long work, whether a file can be written there.

    Raises:
      GdrdError: it cannot.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise GdrdError(f"{path} cannot be written; choose a file in a folder that exists and is yours")


def writable_folder(folder: Path) -> None:
    """As `writable`, of a folder, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise GdrdError(f"{folder} cannot be written, because {there} is no folder of yours; choose another one")


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` if nothing is raised; whatever happens, one of both is whole.

    Raises:
      GdrdError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with temporary.open("wb") as file:
                yield file
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(path: Path) -> list[str]:
    """Lines of a text file of any editor: UTF-8, with or without a byte order mark, or UTF-16 with one; any line ends.

    Raises:
      GdrdError: missing, or not such text.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise GdrdError(f"there is no file {str(path)!r}") from None
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise GdrdError(f"{path} is not text in UTF-8: {error}; save it as UTF-8") from error
    # Not `splitlines`, which would also cut names at rarer characters.
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n") if text else []


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(settings: dict) -> str:
    """sha256 of what JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Makes `folder` if it is missing, and keeps other processes from working in it for the duration.

    Args:
      folder: any.
      shared: only read there, which others may do, too.

    Raises:
      GdrdError: one is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A folder that is only read may be somebody else's.
    with (folder / LOCK).open("r" if shared and (folder / LOCK).exists() else "w") as lock:
        # More than once, for `is_locked` holds the lock for a moment.
        if not any(_taken(lock, shared) or time.sleep(SECONDS_BETWEEN_TRIES) for _ in range(TRIES)):
            raise GdrdError(f"another run is working in {folder}; wait for it or choose another folder")
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process works in `folder`."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open() as lock:
        return not _taken(lock)


def _taken(lock, shared: bool = False) -> bool:
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` if nothing is raised; whatever happens, one of both is whole."""
    folder = folder.resolve()
    new, old = (folder.with_name(f"{folder.name}.{word}.{os.getpid()}") for word in ("new", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(new, ignore_errors=True)
    try:
        with writing(folder):
            new.mkdir()
        yield new
        with writing(folder):
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
