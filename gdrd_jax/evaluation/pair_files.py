"""Lists of verification pairs as the benchmarks and their users write them.

LFW's own `pairs.txt` (XQLFW's, too) and Kaggle's `pairs.csv` of LFW; CALFW's and CPLFW's two lines `IMAGE FLAG` a
pair; and lines `PATH1 PATH2 LABEL`, or with the label first, separated by blanks, tabs or commas.
"""

import csv
import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from gdrd_jax.data.faces import same_name
from gdrd_jax.data.file_tree import IMAGE_SUFFIXES
from gdrd_jax.utils.errors import GdrdError, nothing_at
from gdrd_jax.utils.files import read_lines

LOG = logging.getLogger(__name__)
FOLDS = 10  # where a list gives none; at most the number of genuine or of impostor pairs
KAGGLE_HEADER = ["name", "imagenum1", "imagenum2"]
LABELS = {
    "1": True, "1.0": True, "true": True, "same": True,
    "0": False, "0.0": False, "-1": False, "false": False, "different": False,
}  # fmt: skip
LABEL_COLUMNS = {"label", "issame", "is_same", "match", "target"}  # column names of a header, in lower case
FORMS = (
    "LFW's pairs.txt (a header `FOLDS N`, such as `10 300`, then `NAME N1 N2` and `NAME1 N1 NAME2 N2`), Kaggle's "
    "pairs.csv, two lines `IMAGE FLAG` a pair (CALFW, CPLFW), or `PATH1 PATH2 LABEL` with the label 1 or 0"
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images.

    Attributes:
      images: paths or names, without the suffix of an image.
      people: names of the people in the two images, or two times the pair's number where the list does not tell them.
      same: whether both images are of one person.
      fold: number of the fold of cross-validation, from 0.
    """

    images: tuple[str, str]
    people: tuple[str, str]
    same: bool
    fold: int


def read_pairs(path: str | os.PathLike) -> list[Pair]:
    """Reads a list of pairs in any of the module's formats.

    Folds that a list does not give are made as LFW's are: genuine and impostor pairs, each in the order of the list,
    are cut into ten equal parts.

    Raises:
      GdrdError: missing, malformed (with the number of the line), or two images are listed as one person and as two.
    """
    path = Path(path)
    if not path.is_file():
        raise GdrdError(nothing_at(path, "there is no list of pairs"), "pairs-missing")
    pairs = _read(path)
    labels: dict[frozenset[str], bool] = {}
    for pair in pairs:
        if labels.setdefault(frozenset(pair.images), pair.same) != pair.same:
            raise GdrdError(
                f"{path} lists {' and '.join(pair.images)} as one person and as two; remove one of them",
                "pair-contradiction",
            )
    alone = sum(len(set(pair.images)) == 1 for pair in pairs)
    if alone or len(labels) < len(pairs):
        LOG.warning(
            "%s: pairs that are listed more than once: %d; that compare an image with itself: %d", path,
            len(pairs) - len(labels), alone,
        )  # fmt: skip
    return pairs


def _read(path: Path) -> list[Pair]:
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    rows = [_fields(path, number, line) for number, line in enumerate(lines, 1)]
    if not rows or not 0 < len(rows[0]) <= 4 or _is_numbered(rows[0]):
        raise GdrdError(
            f"{path} does not begin with LFW's header, nor as another list of pairs does; give {FORMS}", "pairs-format"
        )
    if [field.lower() for field in rows[0][:3]] == KAGGLE_HEADER:
        return without_folds([_numbered(path, n, fields) for n, fields in enumerate(rows[1:], 2)])
    if len(rows[0]) <= 2 and all(map(_is_count, rows[0])):
        return _lfw(path, rows)
    if len(rows[0]) == 2:
        return _paths(_two_lines_each(path, rows))
    header = bool(LABEL_COLUMNS & {field.lower() for field in rows[0]})
    return _paths([_one_line(path, n, fields) for n, fields in enumerate(rows, 1) if not header or n > 1])


def _fields(path: Path, number: int, line: str) -> list[str]:
    """Fields between tabs or commas, which may hold blanks, or else between blanks."""
    separator = next((mark for mark in "\t,;" if mark in line), None)
    try:
        fields = line.split() if separator is None else next(csv.reader([line], delimiter=separator))
    except csv.Error as error:
        raise GdrdError(f"{path}, line {number} cannot be read: {error}", "pairs-unreadable-line") from error
    fields = [field.strip() for field in fields]
    while fields and not fields[-1]:  # Kaggle's lines end with a comma
        fields.pop()
    return fields


def _is_count(field: str) -> bool:
    return field.isdecimal() and len(field) < 10


def _is_numbered(fields: list[str]) -> bool:
    """Whether a line is `NAME N1 N2` or `NAME1 N1 NAME2 N2`."""
    return len(fields) in (3, 4) and all(map(_is_count, fields[1:] if len(fields) == 3 else fields[1::2]))


def _lfw(path: Path, rows: list[list[str]]) -> list[Pair]:
    """A header `FOLDS N` (or `N`: one fold), then N genuine and N impostor pairs a fold."""
    folds, count = (1, int(rows[0][0])) if len(rows[0]) == 1 else map(int, rows[0])
    if len(rows) - 1 != 2 * folds * count:
        raise GdrdError(
            f"{path} promises {folds} folds of {count} genuine and {count} impostor pairs, "
            f"{2 * folds * count} lines; {len(rows) - 1} follow",
            "pairs-count",
        )
    pairs = []
    for number, fields in enumerate(rows[1:]):
        pair = _numbered(path, number + 2, fields, number % (2 * count) < count)
        pairs.append(dataclasses.replace(pair, fold=number // (2 * count)))
    return pairs


def _numbered(path: Path, line: int, fields: list[str], genuine: bool | None = None) -> Pair:
    """LFW's `NAME N1 N2` or `NAME1 N1 NAME2 N2`; `genuine` is the kind that has to stand there, None takes both."""
    is_genuine = len(fields) == 3
    if not _is_numbered(fields) or genuine not in (None, is_genuine) or (not is_genuine and fields[0] == fields[2]):
        kinds = {True: "the genuine pair `NAME N1 N2`", False: "the impostor pair `NAME1 N1 NAME2 N2`"}
        wanted = " or ".join(kinds.values()) if genuine is None else kinds[genuine]
        raise GdrdError(f"{path}, line {line}: {' '.join(fields)!r} is not {wanted} that should be here", "pairs-line")
    a, i, b, j = (fields[0], fields[1], fields[0], fields[2]) if is_genuine else fields
    a, b = same_name(a), same_name(b)
    return Pair((f"{a}_{int(i):04d}", f"{b}_{int(j):04d}"), (a, b), is_genuine, 0)


def _two_lines_each(path: Path, rows: list[list[str]]) -> list[tuple[str, str, bool]]:
    """CALFW's and CPLFW's: the flag, on both lines of a pair, is 0 for impostors and above 0 (1, or the fold) else."""
    for number, fields in enumerate(rows, 1):
        if len(fields) != 2 or not re.fullmatch(r"-?\d{1,9}", fields[1]):
            raise GdrdError(
                f"{path}, line {number}: {' '.join(fields)!r} is not `IMAGE FLAG`; give {FORMS}", "pairs-line-flag"
            )
    if len(rows) % 2:
        raise GdrdError(f"{path} has {len(rows)} lines `IMAGE FLAG`, two a pair; the last one is alone", "pairs-odd")
    for number, (first, second) in enumerate(zip(rows[::2], rows[1::2])):
        if first[1] != second[1]:
            raise GdrdError(
                f"{path}, lines {2 * number + 1} and {2 * number + 2}: the flags of one pair differ",
                "pairs-flags-differ",
            )
    return [(first[0], second[0], int(first[1]) > 0) for first, second in zip(rows[::2], rows[1::2])]


def _one_line(path: Path, number: int, fields: list[str]) -> tuple[str, str, bool]:
    """`PATH1 PATH2 LABEL`, or with the label first."""
    if len(fields) == 3:
        last, first = fields[2].lower() in LABELS, fields[0].lower() in LABELS
        if last and not first:
            return fields[0], fields[1], LABELS[fields[2].lower()]
        if first and not last:
            return fields[1], fields[2], LABELS[fields[0].lower()]
    raise GdrdError(
        f"{path}, line {number}: {' '.join(fields)!r} is not `PATH1 PATH2 LABEL` with the label 1 or 0",
        "pairs-line-label",
    )


def _paths(listed: Sequence[tuple[str, str, bool]]) -> list[Pair]:
    """Pairs of image paths, whose people are taken from LFW's names, NAME_NUMBER, where all labels agree with them."""
    images = [(image_name(first), image_name(second)) for first, second, _ in listed]
    found = [(_person(first), _person(second)) for first, second in images]
    people = [
        (a, b) for (a, b), (_, _, same) in zip(found, listed) if a is not None and b is not None and (a == b) == same
    ]
    if len(people) < len(listed):
        people = [(str(number), str(number)) for number in range(len(listed))]
    return without_folds([Pair(i, p, same, 0) for i, p, (_, _, same) in zip(images, people, listed)])


def image_name(name: str) -> str:
    """The path of an image in one form: "/" between folders, accents in one Unicode form, no suffix of an image."""
    path = PurePosixPath(same_name(name.replace("\\", "/")))
    return str(path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path)


def _person(image: str) -> str | None:
    found = re.fullmatch(r"(.+)_\d+", PurePosixPath(image).name)
    return found and found[1]


def without_folds(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in folds, as LFW's are: genuine and impostor pairs, each in order, are cut into ten equal parts."""
    kinds = [np.flatnonzero([pair.same == same for pair in pairs]) for same in (True, False)]
    count = min(FOLDS, *map(len, kinds)) or 1
    folds = np.zeros(len(pairs), int)
    for rows in kinds:
        for fold, part in enumerate(np.array_split(rows, count)):
            folds[part] = fold
    return [dataclasses.replace(pair, fold=int(fold)) for pair, fold in zip(pairs, folds)]


def _may_ignore_folders(wanted: Iterable[tuple[str, ...]], files: Iterable[tuple[str, ...]]) -> bool:
    flat = all(len(parts) == 1 for parts in wanted) or all(len(parts) == 1 for parts in files)
    return flat or all(_person(parts[-1]) for parts in wanted)


def find_images(names: Sequence[str], wanted: set[str]) -> dict[str, list[int]]:
    """Rows of the files that pairs name.

    A list may give paths with more or fewer folders than the files have: both are compared by as many of their last
    parts as find a file, most parts first, as long as all wanted names differ in these parts. File names alone are
    compared only if they name the person (NAME_NUMBER), or if the list or the files have no folders.

    Args:
      names: of all files, with "/".
      wanted: `Pair.images`.

    Returns:
      Wanted name to rows, of those that are there; more than one row for a name that fits several files.
    """
    forms = [PurePosixPath(image_name(name)).parts for name in names]
    split = {name: PurePosixPath(name).parts for name in wanted}
    for depth in range(max(map(len, split.values()), default=1), 0, -1):
        ends = {name: parts[-depth:] for name, parts in split.items()}
        if len(set(ends.values())) < len(ends):
            continue
        if depth == 1 and not _may_ignore_folders(split.values(), forms):
            return {}
        rows: dict[tuple[str, ...], list[int]] = {}
        for row, parts in enumerate(forms):
            rows.setdefault(parts[-depth:], []).append(row)
        found = {name: rows[end] for name, end in ends.items() if end in rows}
        if found:
            return found
    return {}
