"""InsightFace's RecordIO (`.rec` with or without `.idx`), read and written without mxnet.

A record is `magic u32 | lrec u32 | data | padding to 4 bytes`, where the upper three bits of
lrec say whether it is whole (0) or the first, a middle or the last part (1, 2, 3) of a split
one, and the others how long the data is. Data that hold the magic at a multiple of four bytes
are split there, the magic left out: so a magic at such an offset always begins a record, and
reading can go on after damage. Data are `flag u32, label f32, id u64, id2 u64`, then `flag`
labels f32 when flag > 0, then an image. Record 0 may be a header: no image, and label 0 is
one past the last image's key; the records after the images then say which images are whose.
"""

import dataclasses
import mmap
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gdrd_jax.data.faces import JOINT
from gdrd_jax.utils.errors import GdrdError, no_file

MAGIC = int.from_bytes(JOINT, "little")
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH = (1 << 29) - 1
HEAD = struct.Struct("<II")
FLAG, LABEL = struct.Struct("<I"), struct.Struct("<f")
DATA = struct.Struct("<IfQQ")
BLOCK = 1 << 18  # records looked at together, to bound memory
MOST_PARTS = 64  # of one record; an image holds the magic at such a place once in billions
EXACT = 1 << 24  # float32, in which ranges are written, has no exact whole numbers beyond


class Damaged(Exception):
    """A record that cannot be read; the message says why."""


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the images of a `.rec` file lie.

    Attributes:
      keys: of the images, as text.
      labels: float64 `[N]`, the first label of each.
      spans: int64 `[N, 2]`, first byte and size of each encoded image.
      parts: the spans of images in several parts, by row.
      skipped: `(name, reason)` of records left out.
    """

    keys: tuple[str, ...]
    labels: np.ndarray
    spans: np.ndarray
    parts: dict[int, list[tuple[int, int]]]
    skipped: tuple[tuple[str, str], ...]


def read_index(path: str | os.PathLike, *, skip_bad: bool = False) -> Index:
    """Finds the images of a `.rec` file, reading only the heads of its records.

    The `.idx` beside it, if there is one, must agree with it.

    Args:
      path: the `.rec` file.
      skip_bad: leave damaged records out and list them, instead of raising.

    Raises:
      GdrdError: no such file, no record in it, an `.idx` of another file, or damage.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _read_index(path, buffer, skip_bad)
    except FileNotFoundError:
        raise no_file(path) from None
    except ValueError as error:  # an empty file cannot be mapped
        raise GdrdError(f"{path} is empty; copy it again", "rec-empty") from error


def _read_index(path: Path, buffer: mmap.mmap, skip_bad: bool) -> Index:
    index = path.with_suffix(".idx")
    if index.exists():
        keys, starts = _read_idx(index)
        spans, split, skipped = _from_idx(buffer, keys, starts, path)
    else:
        spans, split, skipped = _scan(buffer)
        keys = np.arange(len(spans))
        if not len(spans):
            raise GdrdError(f"{path} holds no records; give an InsightFace RecordIO file", "rec-format")
    labels, promised, images = _read_heads(buffer, keys, spans, split, skipped, index.exists())
    found = len(images)
    if promised is not None and promised <= EXACT and promised - 1 != found:
        skipped = {"record 0": f"it promises {promised - 1:.0f} images, {found} can be read", **skipped}
    if skipped and not skip_bad:
        name, reason = next(iter(skipped.items()))
        raise GdrdError(
            f"{path} is damaged ({len(skipped)} records; first {name}: {reason}); copy it again, or leave the damaged "
            "records out with --skip-bad (gdrd prepare, gdrd evaluate)",
            "rec-damaged",
        )
    if not found:
        raise GdrdError(f"{path} holds no images; give an InsightFace RecordIO file", "rec-no-image")
    return Index(
        tuple(map(str, keys[images].tolist())), labels[images], spans[images],
        {row: split[old] for row, old in enumerate(images.tolist()) if old in split}, tuple(skipped.items()),
    )  # fmt: skip


def _read_idx(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty index is reported below
            table = np.loadtxt(path, dtype=np.int64, ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise GdrdError(
            f"{path} has a line that is not `key<TAB>offset` ({error}); copy the index again, or remove it",
            "rec-index-damaged",
        ) from error
    if table.shape[1] != 2 or not len(table) or len(np.unique(table[:, 0])) < len(table):
        raise GdrdError(
            f"{path} is not an index (lines `key<TAB>offset`, each key once); copy it again, or remove it",
            "rec-index-damaged",
        )
    order = np.argsort(table[:, 1], kind="stable")
    return table[order, 0], table[order, 1]


def _from_idx(buffer: mmap.mmap, keys: np.ndarray, starts: np.ndarray, path: Path):
    """Spans of the data of all entries; what is damaged has size -1."""
    size = len(buffer)
    inside = (starts >= 0) & (starts <= size - HEAD.size) & (starts % 4 == 0)
    magic, lrec = _gather(buffer, np.where(inside, starts, 0) if size >= HEAD.size else starts[:0], "<u4", 2).T
    if size < HEAD.size or np.mean(inside & (magic == MAGIC)) < 0.5:
        raise GdrdError(
            f"{path.with_suffix('.idx')} does not belong to {path}; remove the index, which is not needed",
            "rec-index-mismatch",
        )
    kind, length = lrec >> 29, (lrec & LENGTH).astype(np.int64)
    ends = starts + HEAD.size + (length + 3) // 4 * 4
    after = np.append(starts[1:], size)
    fits = inside & (magic == MAGIC) & (kind == WHOLE) & (ends == after) & (ends <= size)
    spans = np.stack([starts + HEAD.size, np.where(fits, length, -1)], axis=1)
    split, skipped = {}, {}
    for row in np.flatnonzero(~fits).tolist():
        try:
            if not inside[row]:
                raise Damaged(f"offset {starts[row]} is not inside the file")
            pieces, end = _record(buffer, int(starts[row]))
            if end != after[row]:
                raise Damaged(f"it ends at byte {end}, but the next entry of the .idx begins at {after[row]}")
            split[row] = pieces
            spans[row] = pieces[0]
        except Damaged as error:
            skipped[f"record {keys[row]}"] = str(error)
    if len(skipped) > max(len(keys) / 2, 1):
        raise GdrdError(
            f"{path.with_suffix('.idx')} does not belong to {path} ({len(skipped)} of {len(keys)} entries do not "
            "fit); remove the index, which is not needed",
            "rec-index-mismatch",
        )
    return spans, split, skipped


def _scan(buffer: mmap.mmap):
    """Spans of the data of all records, one after the other; damage is stepped over."""
    spans, split, skipped, position = [], {}, {}, 0
    while position < len(buffer):
        try:
            pieces, end = _record(buffer, position)
            if len(pieces) > 1:
                split[len(spans)] = pieces
            spans.append(pieces[0])
        except Damaged as error:
            skipped[f"at byte {position}"] = str(error)
            end = _next_magic(buffer, position + 4)
        position = end
    return np.array(spans, np.int64).reshape(-1, 2), split, skipped


def _next_magic(buffer: mmap.mmap, position: int) -> int:
    """Offset of the next record that is not the rest of a split one."""
    while (position := buffer.find(JOINT, position)) >= 0:
        if position % 4 == 0 and position + HEAD.size <= len(buffer):
            if HEAD.unpack_from(buffer, position)[1] >> 29 in (WHOLE, FIRST):
                return position
        position += 1
    return len(buffer)


def _record(buffer: mmap.mmap, position: int) -> tuple[list[tuple[int, int]], int]:
    """Spans of the data of the record at `position`, and where the next record begins."""
    pieces, expected = [], (WHOLE, FIRST)
    while True:
        if position + HEAD.size > len(buffer):
            raise Damaged("the file ends inside it")
        magic, lrec = HEAD.unpack_from(buffer, position)
        kind, length = lrec >> 29, lrec & LENGTH
        if magic != MAGIC:
            raise Damaged(f"no record begins at byte {position}")
        if kind not in expected:
            raise Damaged(f"part {kind} of a split record where {' or '.join(map(str, expected))} should be")
        if len(pieces) == MOST_PARTS:
            raise Damaged(f"it has more than {MOST_PARTS} parts")
        pieces.append((position + HEAD.size, length))
        position += HEAD.size + (length + 3) // 4 * 4
        if position > len(buffer):
            raise Damaged("the file ends inside it")
        if kind in (WHOLE, LAST):
            return pieces, position
        expected = (MIDDLE, LAST)


def _gather(buffer: mmap.mmap, starts: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """`count` values at each start, `[len(starts), count]`."""
    data = np.frombuffer(buffer, np.uint8)
    width = np.arange(np.dtype(dtype).itemsize * count)
    blocks = [data[starts[i : i + BLOCK, None] + width] for i in range(0, len(starts), BLOCK)]
    return np.concatenate(blocks or [np.zeros((0, len(width)), np.uint8)]).view(dtype)


def _floats(buffer: mmap.mmap, starts: np.ndarray, count: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a signalling NaN; what is no number is refused later
        return _gather(buffer, starts, "<f4", count).astype(np.float64)


def _read_heads(buffer, keys, spans, split, skipped, trusted: bool):
    """Moves `spans` (and `split`) on to the images; first labels, what a header promises, rows of images.

    Without an .idx the keys are positions, which are not to be trusted (`trusted`) after damage.
    """
    for row in np.flatnonzero((spans[:, 1] >= 0) & (spans[:, 1] < DATA.size)).tolist():
        skipped[f"record {keys[row]}"] = "it is too short to hold labels"
        spans[row, 1] = -1
    there = np.flatnonzero(spans[:, 1] >= 0)
    flags = np.zeros(len(keys), np.int64)
    labels = np.full(len(keys), np.nan)
    flags[there] = _gather(buffer, spans[there, 0], "<u4", 1)[:, 0]
    labels[there] = _floats(buffer, spans[there, 0] + FLAG.size, 1)[:, 0]
    heads = DATA.size + LABEL.size * flags
    for row in there[heads[there] > spans[there, 1]].tolist():
        skipped[f"record {keys[row]}"] = f"it is too short for its {flags[row]} labels"
        spans[row, 1] = -1
    several = np.flatnonzero((spans[:, 1] >= 0) & (flags > 0))
    labels[several] = _floats(buffer, spans[several, 0] + DATA.size, 1)[:, 0]
    spans[:, 0] += heads
    spans[:, 1] -= heads
    for row, pieces in split.items():
        pieces[0] = (int(spans[row, 0]), int(spans[row, 1]))
    first = int(np.flatnonzero(keys == 0)[0]) if (keys == 0).any() else -1
    header = first >= 0 and flags[first] > 0 and spans[first, 1] == 0
    promised = float(labels[first]) if header else None
    if header and not (1 <= promised <= 1e9 and promised.is_integer()):
        skipped["record 0"] = f"the header says that {promised} is one past the last image"
        promised = None
    with_image = spans[:, 1] > 0
    with_image[[row for row in split if spans[row, 1] == 0]] = True  # all in the parts that follow
    images = np.flatnonzero(with_image)
    if header and (trusted or not skipped):
        _check_ranges(buffer, keys, labels, images, np.flatnonzero((flags == 2) & (spans[:, 1] == 0)), spans, skipped)
    whole = np.isfinite(labels) & (np.abs(labels) <= 1e9) & (np.nan_to_num(labels, posinf=0, neginf=0) % 1 == 0)
    for row in images[~whole[images]].tolist():
        skipped[f"record {keys[row]}"] = f"its label is {labels[row]}, not a whole number"
        spans[row, 1] = -1
    return labels, promised, images[spans[images, 1] >= 0]


def _check_ranges(buffer, keys, labels, images, ranges, spans, skipped) -> None:
    """An identity's range record says which keys are its own: their labels are the same.

    The label is the one thing in a record that damage can change without a trace elsewhere.
    """
    ends = _floats(buffer, spans[ranges, 0] - 2 * LABEL.size, 2)
    order = images[np.argsort(keys[images], kind="stable")]
    own = keys[order]
    for (start, stop), row in zip(ends, ranges.tolist()):
        if keys[row] == 0 or stop > EXACT:
            continue
        if not (0 < start < stop and stop <= own[-1] + 1 if len(own) else False):
            skipped[f"record {keys[row]}"] = f"it says that the keys {start:.0f} to {stop:.0f} belong to one identity"
            continue
        group = order[np.searchsorted(own, start) : np.searchsorted(own, stop)]
        odd = group[labels[group] != np.median(labels[group])] if len(group) else group
        for image in odd.tolist():
            skipped[f"record {keys[image]}"] = (
                f"its label is {labels[image]}, but that of its identity is {np.median(labels[group])}"
            )
            spans[image, 1] = -1


def pack(data: bytes) -> bytes:
    """The record, or the parts of it, that hold `data`."""
    cuts = [i for i in _find_all(data, JOINT) if i % 4 == 0]
    pieces = [data[a:b] for a, b in zip([0, *(i + 4 for i in cuts)], [*cuts, len(data)])]
    kinds = [WHOLE] if len(pieces) == 1 else [FIRST, *[MIDDLE] * (len(pieces) - 2), LAST]
    return b"".join(
        HEAD.pack(MAGIC, kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4) for kind, piece in zip(kinds, pieces)
    )


def _find_all(data: bytes, what: bytes) -> Iterator[int]:
    position = data.find(what)
    while position >= 0:
        yield position
        position = data.find(what, position + 1)


def pack_image(label: int, key: int, image: bytes) -> bytes:
    """The record of an encoded image."""
    return pack(DATA.pack(0, float(label), key, 0) + image)


def pack_range(start: int, stop: int, key: int) -> bytes:
    """A record without an image: the header (`stop` is then one past the last key), or an identity's keys."""
    return pack(DATA.pack(2, 0.0, key, 0) + LABEL.pack(start) + LABEL.pack(stop))
