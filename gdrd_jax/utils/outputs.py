"""Protects existing output: no command overwrites what another command or a person made.

Each command that writes calls `claim_folder` or `claim_file` first, before it reads or computes anything.
"""

import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCK, LOCKS, writable, writable_folder

PICTURE_MARK = b"tEXtSoftware\0gdrd_jax"  # a chunk of a PNG file, see `marked`
PNG_HEAD = 33  # bytes before the second chunk
CACHE = re.compile("[0-9a-f]{16}")  # of embeddings
STEP_OUTPUT = re.compile(r"[a-z0-9_]+-[0-9a-f]{12}(\.unknown\d+)?|\.lock|\.workdirs")


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_run(folder: Path) -> bool:
    """Whether `folder` is the workdir of a training run; diffusers writes another `config.json`."""
    return {"name", "student", "views"} <= _json(folder / "config.json").keys()


def is_step_output(folder: Path) -> bool:
    """Whether a folder is the output of one step, or set aside because its record was lost."""
    return bool(STEP_OUTPUT.fullmatch(folder.name))


def _is_outputs(folder: Path) -> bool:
    names = _entries(folder)
    return bool(names) and all(map(STEP_OUTPUT.fullmatch, names))


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda folder: any((folder / name).exists() for name in names)


def _is_evaluation(folder: Path) -> bool:
    caches = (folder / "embeddings").iterdir() if (folder / "embeddings").is_dir() else ()
    return any(CACHE.fullmatch(cache.name) for cache in caches) or (
        {"protocol", "stand_in"} <= _json(folder / "metrics.json").keys()  # that of a training run has no "stand_in"
    )


def _is_rows(folder: Path) -> bool:
    return any(name.endswith(".people.json") for name in _entries(folder))


def _is_grid(folder: Path) -> bool:
    def may_be_run(entry: Path) -> bool:  # an empty one was interrupted
        return entry.is_dir() and (is_run(entry) or _is_outputs(entry) or _is_rows(entry) or not _entries(entry))

    entries = [folder / name for name in _entries(folder)]
    return (folder / "table.json").exists() or (any(map(is_run, entries)) and all(map(may_be_run, entries)))


# What a folder can be, and how that is recognized. The first one that fits counts.
KINDS: dict[str, Callable[[Path], bool]] = {
    "the workdir of a training run": is_run,
    "the output of the steps of runs": _is_outputs,
    "set aside from a training run": lambda folder: folder.parent.name == "previous" and is_run(folder.parent.parent),
    "an exported student": lambda folder: (folder / "student.safetensors").exists() and _has("manifest.json")(folder),
    "a gallery": _has("gallery.sqlite", "gallery.json"),
    "a store of faces": _has("faces.json", "journal.jsonl"),
    "an SR teacher": _has("training.json"),
    "a study of taps": _has("taps.json"),
    "an evaluation": _is_evaluation,
    "a stand-in": _has("STAND_IN.txt"),
    "a benchmark of an accelerator": _has("results.json"),
    "the rows of a grid": _is_rows,
    "a grid of runs": _is_grid,
}


def kind_of(folder: Path) -> str | None:
    """The kind of a folder, a key of `KINDS`; None if it is missing, empty or unrecognized."""
    if not folder.is_dir() or not _entries(folder):
        return None
    return next((kind for kind, fits in KINDS.items() if fits(folder)), None)


def _entries(folder: Path) -> list[str]:
    """Sorted names in a folder, without locks and the temporary files that an interrupted command leaves."""
    names = (entry.name for entry in folder.iterdir())
    return sorted(name for name in names if name not in (LOCK, LOCKS) and not name.endswith(".tmp"))


def claim_folder(folder: Path, kind: str, option: str) -> None:
    """Makes sure, before any work, that results of a kind can be written into `folder`.

    Args:
      folder: missing, empty, or made by the same command.
      kind: one of `KINDS`.
      option: how the folder is given on the command line, for the error.

    Raises:
      GdrdError: the folder is something else, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise GdrdError(f"{folder} is a file; choose a folder with {option}", "output-is-a-file")
    writable_folder(folder)
    if not folder.is_dir() or not (entries := _entries(folder)):
        return
    found = kind_of(folder)
    if found != kind:
        what = f"is {found}" if found else f"holds other things, such as {entries[0]}"
        raise GdrdError(f"{folder} {what}; choose an empty or new folder for {kind} with {option}", "output-not-ours")


def claim_file(path: Path, is_ours: Callable[[Path], bool], option: str) -> None:
    """Checks that a file can be written: it is missing, empty, or made by the same command, see `is_ours`."""
    writable(path)
    if path.exists() and path.stat().st_size and not is_ours(path):
        raise GdrdError(
            f"{path} exists and was not made by this command; choose another file with {option}", "output-not-ours"
        )


def is_report(path: Path) -> bool:
    """Whether a file is the JSON that a benchmark writes."""
    return "command" in _json(path)


def is_embeddings(path: Path) -> bool:
    """Whether a file is the `.npz` that gdrd writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"paths.npy", "embeddings.npy"} == set(archive.namelist()) - {"quality.npy"}


def marked(png: bytes) -> bytes:
    """A PNG file with a text chunk by which `is_picture` recognizes it."""
    chunk = struct.pack(">I", len(PICTURE_MARK) - 4) + PICTURE_MARK + struct.pack(">I", zlib.crc32(PICTURE_MARK))
    return png[:PNG_HEAD] + chunk + png[PNG_HEAD:]


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG image with the text chunk that `marked` adds."""
    with path.open("rb") as file:
        return PICTURE_MARK in file.read(200)
