"""Small things every part does with files."""

import codecs
import contextlib
import errno
import glob
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

import filelock

from gdrd_jax.utils.errors import GdrdError, first_line, no_file

LOCK = ".lock"
LOCKS = ".locks"  # a folder of locks, for work on folders that lock themselves
ORBAX_FORBIDDEN = "\\["  # in a path of trained weights: Orbax takes a bracket for a pattern
TRIES, SECONDS_BETWEEN_TRIES = 3, 0.1
# errno -> remedy. Errors of libraries may carry only the text of an errno.
REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within the disk quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another file system",
    errno.EACCES: "get write access there, or choose another place",
    errno.EPERM: "get write access there, or choose another place",
    errno.EROFS: "choose a file system that is not read-only",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "choose a path that does not lead through a file",
    errno.EISDIR: "choose another path, for a folder has this name",
    errno.EEXIST: "choose another path, for a file has this name",
    errno.ENOENT: "make the folder first, or choose another path",
    errno.ELOOP: "repair the symbolic links on the way",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "check the disk",
}


def user_path(text: str | os.PathLike) -> Path:
    """A path as a person types it: `~` at its beginning is the home folder, and `..` is resolved.

    A path that exists as it is written wins over an expansion of `~`.
    """
    path = Path(text)
    if path.parts[:1] and path.parts[0].startswith("~") and not path.exists():
        with contextlib.suppress(RuntimeError):  # there is no such user
            path = path.expanduser()
    return Path(os.path.realpath(path)) if ".." in path.parts else path


def storable(path: str | os.PathLike, unreadable: str = "\\") -> Path:
    """The absolute path without `..` and symbolic links, as TensorStore and Orbax need it.

    Args:
      path: any.
      unreadable: characters that the library cannot handle in a path.

    Raises:
      GdrdError: the path has one of these characters, or is not UTF-8.
    """
    path = Path(os.path.realpath(path))
    odd = next((character for character in unreadable if character in str(path)), None)
    if not odd and _is_utf8(str(path).encode("utf-8", "surrogatepass")):
        return path
    if odd or not _is_utf8(os.fsencode(path)):
        what = f"the character {odd!r}" if odd else "a name that is not UTF-8"
        raise GdrdError(
            f"{path} contains {what}, which the library that stores arrays cannot read; choose another path",
            "path-character",
        )
    raise GdrdError(
        f"{path} contains a name beyond ASCII, which the library that stores arrays cannot read in this locale; set "
        "PYTHONUTF8=1, or choose another path",
        "path-locale",
    )


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8; a file name of other bytes in the text is written with backslashes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file atomically; several processes, on several machines, may do so at once."""
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def not_written(path: Path | str, error: Exception) -> GdrdError:
    """The error for a path that could not be written: the cause, and what to do about this very cause."""
    # Before a library's cause stands each file on the way.
    cause = getattr(error, "strerror", None) or first_line(error).rsplit(": ", 1)[-1]
    number = getattr(error, "errno", None)
    if number not in REMEDIES:
        number = next((n for n in REMEDIES if os.strerror(n).lower() in str(error).lower()), None)
    remedy = f": {REMEDIES[number]}, and" if number in REMEDIES else "; fix that, and"
    return GdrdError(
        f"{path} could not be written: {cause}; what is there already stays valid{remedy} run the same command again",
        "not-written",
    )


@contextlib.contextmanager
def writing(directory: Path | str) -> Iterator[None]:
    """Says in one sentence why `directory`, a folder or a URL, could not be written.

    Raises:
      GdrdError: it could not, by an error of the system's, or of Orbax's or TensorStore's.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:  # TensorStore's, by the kind of failure
        raise not_written(directory, error) from error


def writable(path: Path) -> None:
    """Finds out, before long work, whether a file can be written there.

    Raises:
      GdrdError: it cannot.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise GdrdError(
            f"{path} cannot be written; choose a file in a folder that exists and that you may write to", "not-writable"
        )


def writable_folder(folder: Path) -> None:
    """As `writable`, of a folder, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise GdrdError(
            f"{folder} cannot be written, because {there} is not a folder that you may write to; choose another folder",
            "not-writable",
        )


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
    """Lines of a text file: UTF-8 with or without a byte order mark, or UTF-16 with one; any line endings.

    Raises:
      GdrdError: missing, or not such text.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise no_file(path) from None
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise GdrdError(f"{path} is not text in UTF-8: {error}; save it as UTF-8", "text-not-utf-8") from error
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
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` if it is missing, and keeps other processes from working in it for the duration.

    The operating system releases the lock when the process ends, however it ends.

    Args:
      folder: any.

    Raises:
      GdrdError: another process works in `folder`.
    """
    with locked_if_free(folder) as free:
        if not free:
            raise GdrdError(
                f"another run is working in {folder}; wait for it or choose another folder", "folder-in-use"
            )
        yield


@contextlib.contextmanager
def locked_if_free(folder: Path) -> Iterator[bool]:
    """As `locked`, but yields whether no other process works in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as lock:
        # More than once, because `is_locked` holds the lock for a moment.
        yield any(_taken(lock) or time.sleep(SECONDS_BETWEEN_TRIES) for _ in range(TRIES))


def is_locked(folder: Path) -> bool:
    """Whether a process works in `folder`."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("rb") as lock:
        return not _taken(lock)


def _taken(lock: BinaryIO) -> bool:
    return filelock.lock_descriptor(lock.fileno(), blocking=False)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` if nothing is raised; whatever happens, one of both is whole."""
    folder = folder.resolve()
    new, old = (folder.with_name(f"{folder.name}.{word}.{os.getpid()}") for word in ("new", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists() and (left := sorted(folder.parent.glob(f"{glob.escape(folder.name)}.old.*"))):
        left[-1].rename(folder)  # an earlier call was killed between its two renames
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


def listed_paths(text: str) -> list[Path]:
    """The paths of a setting that takes several: what is between two commas, or more where such a path exists."""
    paths, parts = [], text.split(",")
    while parts:
        count = next((n for n in range(len(parts), 0, -1) if Path(",".join(parts[:n])).exists()), 1)
        paths.append(",".join(parts[:count]))
        parts = parts[count:]
    return [Path(path) for path in paths if path]
