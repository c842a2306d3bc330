"""The files under a folder or in a tar, without those of other programs."""

import errno
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from gdrd_jax.data.decoding import image_format
from gdrd_jax.data.faces import Faces, natural
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.outputs import kind_of

# Of formats that `data.decoding` decodes, or names in its errors.
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .pgm .ppm .pbm .pnm .webp .tif .tiff .gif .jp2 .avif .heic .heif .jxl".split()
)
# Files and folders of other programs, besides all whose names begin with a dot; in lower case.
CLUTTER = frozenset(
    {
        "@eadir", "#recycle", "@recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found",
        "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
    }
)  # fmt: skip
UNFINISHED = ("~", ".crdownload", ".part", ".download", ".bak", ".tmp")
# Files by which a folder may be an output of this program.
OUTPUTS = frozenset(
    {"config.json", "step.json", "metrics.json", "gallery.json", "gallery.sqlite", "faces.json", "manifest.json"}
)
UNREADABLE_ERRNOS = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG})


def scan(path: Path) -> tuple[Faces, dict[str, int]]:
    """Every file under a folder or in an uncompressed tar, in natural order of names, all of one identity.

    Returns:
      The files, their names relative to `path`, with "/"; and the ignored ones, those of other programs
      (`is_clutter`): the name of each, or of the folder that they lie in (ending in "/"), and their number.

    Raises:
      GdrdError: not an uncompressed tar, or a damaged one.
    """
    clutter: Counter[str] = Counter()
    if path.is_dir():
        found = dict.fromkeys(_walk(path, clutter), (0, 0))
    else:
        found = {}
        for name, span in _tar(path).items():
            above = _clutter_above(name)
            if above is None:
                found[name] = span
            else:
                clutter[above] += 1
    names = sorted(found, key=natural)
    spans = None if path.is_dir() else np.array([found[name] for name in names], np.int64).reshape(-1, 2)
    return Faces(path.resolve(), tuple(names), np.zeros(len(names), np.int32), ("",), spans), dict(clutter)


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name (without folders) belongs to another program.

    It is hidden, in `CLUTTER`, or what an editor or an unfinished download leaves.
    """
    return name.startswith((".", "~$")) or name.endswith(UNFINISHED) or name.lower() in CLUTTER


def is_image(files: Faces, row: int) -> bool:
    """Whether a file is an image: by the suffix of its name or, where that is none of an image, by its first bytes."""
    if PurePosixPath(files.names[row]).suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        return image_format(files.head(row)) is not None
    except OSError:
        return False


def why_unreadable(path: str | os.PathLike) -> str | None:
    """Why a path cannot be read as a file, or None if it can be: a dangling link, a pipe or a folder cannot."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a NUL in the name
        return "it is not a valid file name"
    except OSError as error:
        if error.errno not in UNREADABLE_ERRNOS:
            raise
        return "it is a link to a file that does not exist" if os.path.islink(path) else f"{error.strerror}".lower()
    return None if stat.S_ISREG(mode) else "it is not a regular file"


def check_unique(faces: Faces, rows: Iterable[int], key: Callable[[str], object]) -> None:
    """Raises GdrdError if two of the rows' names have one `key`: a protocol would count a face twice."""
    seen: dict[object, str] = {}
    for row in rows:
        name = faces.names[row]
        other = seen.setdefault(key(name), name)
        if other != name:
            raise GdrdError(f"{faces.root} holds a face twice: {other} and {name}; remove one of them", "face-twice")


def _clutter_above(name: str) -> str | None:
    """The file or folder of another program that a path is, or lies in; None if there is none."""
    parts = PurePosixPath(name).parts
    at = next((i for i, part in enumerate(parts) if is_clutter(part)), None)
    if at is None:
        return None
    return name if at == len(parts) - 1 else "/".join(parts[: at + 1]) + "/"


def _walk(root: Path, clutter: Counter[str]) -> Iterator[str]:
    """Every file under a folder, through links too, except those to a folder around them."""

    def unreadable(error: OSError):
        raise error

    # The real paths of the folders on the way to each folder, by which a circle of links is recognized.
    ways = {os.fspath(root): (os.path.realpath(root),)}
    for folder, inside, files in os.walk(root, followlinks=True, onerror=unreadable):
        above, way = PurePosixPath(os.path.relpath(folder, root)), ways.pop(folder)
        if not OUTPUTS.isdisjoint(files) and above != PurePosixPath() and kind_of(Path(folder)):
            clutter[f"{above}/"] += sum(len(names) for _, _, names in os.walk(folder))
            inside.clear()
            continue
        for name in filter(is_clutter, inside):
            clutter[f"{above / name}/"] += sum(len(names) for _, _, names in os.walk(os.path.join(folder, name)))
        clutter.update(str(above / name) for name in files if is_clutter(name))
        inside[:] = [name for name in inside if not is_clutter(name)]
        for path in [os.path.join(folder, name) for name in inside]:
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(way[-1], os.path.basename(path))
            if any(passed == real or passed.startswith(f"{real.rstrip('/')}/") for passed in way):
                inside.remove(os.path.basename(path))
            else:
                ways[path] = (*way, real)
        yield from (str(above / name) for name in files if not is_clutter(name))


def _tar(path: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = os.path.normpath(member.name).lstrip("/")
                if member.islnk() or member.issym():
                    beside = "" if member.islnk() else os.path.dirname(member.name)
                    found[name] = found[os.path.normpath(os.path.join(beside, member.linkname)).lstrip("/")]
                elif member.issparse():
                    raise GdrdError(
                        f"{path}: {name} is stored as a sparse file; unpack the archive and give the folder",
                        "tar-sparse",
                    )
                elif member.isreg():
                    found[name] = (member.offset_data, member.size)
            end = archive.offset
    except tarfile.TarError as error:
        raise GdrdError(
            f"{path} is not an uncompressed tar, or is damaged ({error}); unpack it, or copy it again", "tar-damaged"
        ) from error
    except KeyError as error:
        raise GdrdError(
            f"{path}: {name} is a link to {error}, which is not in the archive, or not before the link; remove the "
            "link, or unpack the archive and give the folder",
            "tar-link",
        ) from error
    with path.open("rb") as file:  # tarfile takes a damaged head, or none, for the end
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise GdrdError(
                f"{path} is damaged or truncated at byte {end}, after {len(found)} files; copy it again", "tar-damaged"
            )
    return found
