"""Lists of faces as other programs write them: text, CSV, and the `.lst` of mxnet and of InsightFace."""

import csv
import fnmatch
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from gdrd_jax.data.faces import Faces, labeled
from gdrd_jax.data.file_tree import why_unreadable
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import read_lines

LOG = logging.getLogger(__name__)
# Column names of a CSV header, in lower case; of several the first one here counts.
PATH_COLUMNS = ("path", "image_path", "img_path", "filename", "file_name", "file", "image", "img", "image_id")
PERSON_COLUMN = re.compile(r"(identity|person|subject|label|celebrity)([ _]?(id|name|idx|index))?")
MAYBE_PERSON = frozenset({"class", "class_id", "target", "name"})  # where there is no other column
ROW_NUMBERS = frozenset({"", "id", "index", "idx", "no", "number", "row"})
NO_PERSON = frozenset({"", "nan", "none", "null", "inf", "-inf"})
FORMS = (
    "`PATH IDENTITY`; in a .csv or .tsv two columns, or a header that names them (path, identity); in a .lst, "
    "separated by tabs, INDEX, LABEL, PATH (mxnet) or ALIGNED, PATH, LABEL (InsightFace)"
)


class Entry(NamedTuple):
    """One line: its number, the path and the identity, and whether the list says that the face is aligned."""

    number: int
    path: str
    person: str
    aligned: bool = True


def read_list(path: Path, pattern: str, skip_bad: bool) -> Faces:
    """The faces that a list names, by paths relative to the list.

    Args:
      path: `.txt`, `.csv`, `.tsv` or `.lst`, in UTF-8 or UTF-16.
      pattern: only files whose name matches it, as in a shell.
      skip_bad: leave out lines whose file is missing, listed in `Faces.skipped`, instead of raising.

    Raises:
      GdrdError: a malformed line, a missing file, or a face that is listed under two identities.
    """
    entries: dict[str, Entry] = {}
    skipped, unaligned = [], 0
    for entry in _entries(path):
        if not fnmatch.fnmatch(PurePosixPath(entry.path.replace("\\", "/")).name, pattern):
            continue
        name = _find(path.parent, entry.path)
        if entry.person.lower() in NO_PERSON:
            raise GdrdError(
                f"{path}, line {entry.number}: {name} has {entry.person!r} in place of an identity; give one",
                "list-identity",
            )
        problem = why_unreadable(path.parent / name)
        if problem and not skip_bad:
            file = path.parent / name
            what = f"{file} cannot be read: {problem}" if file.exists() else f"there is no file {file}"
            remedy = (
                "--skip-bad leaves such lines out"
                if entries
                else f"lines are {FORMS}; a header must begin with # or name its columns (path, identity)"
            )
            raise GdrdError(f"{path}, line {entry.number}: {what}; {remedy}", "list-file-missing")
        if problem:
            skipped.append((name, problem))
            continue
        other = entries.setdefault(os.path.normpath(path.parent / name), entry._replace(path=name))
        if other.person != entry.person:
            raise GdrdError(
                f"{path}, line {entry.number}: {name} is listed as {entry.person!r} here and as {other.person!r} in "
                f"line {other.number}; keep one of the lines",
                "list-face-twice",
            )
        unaligned += not entry.aligned
    if not entries:
        raise GdrdError(f"{path} lists no faces that can be read; lines are {FORMS}", "list-empty")
    if unaligned:
        LOG.warning("%s marks %d faces as not aligned; align them: gdrd prepare --align", path, unaligned)
    names = tuple(entry.path for entry in entries.values())
    faces = Faces(path.parent.resolve(), names, np.zeros(len(names), np.int32), ("",), skipped=tuple(skipped))
    return labeled(faces, (entry.person for entry in entries.values()))


def _entries(path: Path) -> Iterator[Entry]:
    lines = read_lines(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        yield from _table(path, lines)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = _lst_line(number, line) if path.suffix.lower() == ".lst" else _text_line(number, line)
        if entry is None:
            raise GdrdError(f"{path}, line {number}: {line!r} is not of the form {FORMS}", "list-line")
        yield entry


def _text_line(number: int, line: str) -> Entry | None:
    line = line.strip()
    fields = [field.strip() for field in line.rsplit("\t" if "\t" in line else None, 1)]
    return Entry(number, *fields) if len(fields) == 2 else None


def _lst_line(number: int, line: str) -> Entry | None:
    """mxnet's INDEX, LABEL(S), PATH, or InsightFace's ALIGNED, PATH, LABEL and, for photographs, box and landmarks."""
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) < 3:
        return None
    if fields[0] in ("0", "1") and not _is_number(fields[1]) and _is_number(fields[2]):
        return Entry(number, fields[1], _label(fields[2]), fields[0] == "1")
    return Entry(number, fields[-1], _label(fields[1])) if _is_number(fields[1]) else None


def _table(path: Path, lines: list[str]) -> Iterator[Entry]:
    """Rows of a CSV of commas, semicolons or tabs, quoted or not."""
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not kept:
        return
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=kept[0][1].count)
    # Quoted fields with line breaks inside are no paths, so each line is a row of its own.
    rows = [(number, _cells(path, number, line, separator)) for number, line in kept]
    columns = _columns(path, *rows[0])
    for number, fields in rows[1:] if columns else rows:
        at = columns or (0, 1)
        if len(fields) <= max(at) or (not columns and len(fields) != 2):
            raise GdrdError(
                f"{path}, line {number}: {separator.join(fields)!r} is not of the form {FORMS}", "list-line"
            )
        yield Entry(number, fields[at[0]], fields[at[1]])


def _cells(path: Path, number: int, line: str, separator: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator))]
    except csv.Error as error:
        raise GdrdError(
            f"{path}, line {number} cannot be read as CSV: {error}; correct the line", "list-csv"
        ) from error


def _columns(path: Path, number: int, fields: list[str]) -> tuple[int, int] | None:
    """Where the columns of paths and identities are, if this row is a header, which names the paths.

    Raises:
      GdrdError: it is not certain which column holds the identities.
    """
    names = [field.lower() for field in fields]
    paths = [names.index(name) for name in PATH_COLUMNS if name in names]
    if not paths:
        return None
    others = [i for i, name in enumerate(names) if i != paths[0] and name not in ROW_NUMBERS]
    people = [i for i in others if PERSON_COLUMN.fullmatch(names[i])]
    if not people and len(others) == 1 and names[others[0]] in MAYBE_PERSON:
        people = others
    if len(people) != 1:
        raise GdrdError(
            f"{path}, line {number}: it is unclear which of the columns {', '.join(fields)} is the identity; name one "
            "of them 'identity', or keep two columns, path and identity",
            "list-columns",
        )
    return paths[0], people[0]


def _find(folder: Path, name: str) -> str:
    """The name as the file system has it: accents in either Unicode form, Windows' backslashes; as given if missing."""
    slashes = name.replace("\\", "/")
    forms = (name, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD")))
    return next((form for form in forms if (folder / form).exists()), name)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label(text: str) -> str:
    """A numeric label by its value: 3 and 3.000000 are one identity."""
    if re.fullmatch(r"[+-]?\d+", text):  # not through float, in which long numbers are not exact
        return str(int(text)) if len(text) < 1000 else text
    value = float(text)
    return str(int(value)) if value.is_integer() else text
