"""InsightFace's `.bin` verification sets: a pickle of `([image bytes, ...], [is same, ...])`.

A pickle can call anything when it is loaded, so it never is: its instructions are read as
data (the standard library's `pickletools`), and only those that build bytes, lists, tuples,
booleans and integers are followed. The images stay in the file, except those that are escaped there: Python 2's
protocol 0 writes bytes as a quoted string, and Python 3's protocols 0 to 2 as text that `_codecs.encode` turns back.
"""

import codecs
import mmap
import os
import pickletools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.utils.errors import GdrdError, no_file

HEADS = {"SHORT_BINBYTES": 2, "BINBYTES": 5, "BINBYTES8": 9, "SHORT_BINSTRING": 2, "BINSTRING": 5, "BYTEARRAY8": 9}
BOOLEANS = {"NEWTRUE": True, "NEWFALSE": False}
VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
)
ENCODE, BYTES = "_codecs encode", "__builtin__ bytes"  # what bytes of Python 3 are built with up to protocol 2
IGNORED = frozenset({"PROTO", "FRAME"})
REMEMBER, RECALL = frozenset({"BINPUT", "LONG_BINPUT", "PUT"}), frozenset({"BINGET", "LONG_BINGET", "GET"})
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


def read_bin(path: str | os.PathLike) -> tuple[Faces, np.ndarray]:
    """Describes the images of a `.bin` file.

    Args:
      path: such as InsightFace's `lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`.

    Returns:
      2P faces (pair i is faces 2i and 2i + 1; who they are is not in the file) and bool `[P]`,
      True for a genuine pair.

    Raises:
      GdrdError: not such a file, damaged, or its pickle wants more than bytes, lists and booleans.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            content = _follow(buffer, path)
    except FileNotFoundError:
        raise no_file(path) from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise GdrdError(f"{path} is damaged, or is not a pickle; copy it again", "bin-damaged") from error
    try:
        images, same = content
        right = all(isinstance(v, int) and v in (0, 1) for v in same) and len(images) == 2 * len(same) > 0
        right = right and all(isinstance(image, slice | bytes) for image in images)
    except (TypeError, ValueError):
        right = False
    if not right:
        raise GdrdError(
            f"{path} is a pickle, but not InsightFace's ([2P images], [P booleans]); give a verification set",
            "bin-content",
        )
    names = tuple(f"pair {i // 2} {'ab'[i % 2]}" for i in range(len(images)))
    in_file = [image if isinstance(image, slice) else slice(0, 0) for image in images]
    spans = np.array([(image.start, image.stop - image.start) for image in in_file], np.int64).reshape(-1, 2)
    in_memory = {row: image for row, image in enumerate(images) if isinstance(image, bytes)}
    faces = Faces(path.resolve(), names, np.zeros(len(names), np.int32), ("",), spans, in_memory=in_memory)
    return faces, np.array(same, bool)


def _instructions(buffer: mmap.mmap) -> Iterator[tuple[str, object, int]]:
    """Name, argument and position of each instruction, as `pickletools.genops`, which takes strings for ASCII."""
    while True:
        position = buffer.tell()
        opcode = pickletools.code2op.get(buffer.read(1).decode("latin-1"))
        if opcode is None:
            raise ValueError("no instruction")
        if opcode.name == "STRING":
            argument = _unescaped(buffer.readline())
        else:
            argument = None if opcode.arg is None else opcode.arg.reader(buffer)
        yield opcode.name, argument, position
        if opcode.name == "STOP":
            return


def _unescaped(line: bytes) -> bytes:
    """The bytes of a quoted string of Python 2."""
    quoted = line.rstrip(b"\n").strip()
    if len(quoted) < 2 or quoted[:1] not in (b"'", b'"') or quoted[:1] != quoted[-1:]:
        raise ValueError("a string is not quoted")
    return codecs.escape_decode(quoted[1:-1])[0]


def _built(function: object, arguments: object) -> bytes | None:
    """The bytes that a call means, None if it means anything else."""
    if function == ENCODE and isinstance(arguments, tuple) and len(arguments) == 2:
        text, encoding = arguments
        if isinstance(text, str) and encoding == "latin1":
            return text.encode("latin-1")
    return b"" if function == BYTES and arguments == () else None


def _follow(buffer: mmap.mmap, path: Path):
    """What the pickle builds; bytes as the `slice` of the file that they are."""
    stack, memo = [], {}
    for name, argument, position in _instructions(buffer):
        if name in HEADS:
            start = position + HEADS[name]
            stack.append(slice(start, start + len(argument)))
        elif name in BOOLEANS:
            stack.append(BOOLEANS[name])
        elif name in VALUES or (name == "GLOBAL" and argument in (ENCODE, BYTES)):
            stack.append(argument)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if (built := _built(function, arguments)) is None:
                raise _refusal(path, name, f"{function}{arguments}", position)
            stack.append(built)
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            stack.append(MARK)
        elif name == "LIST":
            stack.append(_since_mark(stack))
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in TUPLES:
            count = TUPLES[name]
            items = tuple(stack[len(stack) - count :])
            if len(items) < count:
                raise ValueError("the stack is too short")
            stack[len(stack) - count :] = [items]
        elif name == "APPEND":
            item = stack.pop()
            _as_list(stack[-1]).append(item)
        elif name == "APPENDS":
            items = _since_mark(stack)
            _as_list(stack[-1]).extend(items)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in REMEMBER:
            memo[argument] = stack[-1]
        elif name in RECALL:
            stack.append(memo[argument])
        elif name == "STOP":
            return stack.pop()
        elif name not in IGNORED:
            raise _refusal(path, name, argument, position)
    raise ValueError("it does not end")


def _refusal(path: Path, name: str, argument: object, position: int) -> GdrdError:
    return GdrdError(
        f"{path} is refused: its pickle asks for {name} ({str(argument)[:80]!r}) at byte {position}, which could run a "
        "program; a verification set needs only bytes, lists, tuples, booleans and integers. To write one: "
        "pickle.dump(([bytes, ...], [bool, ...]), file, protocol=4)",
        "bin-unsafe",
    )


def _since_mark(stack: list) -> list:
    at = len(stack) - 1
    while stack[at] is not MARK:
        at -= 1
        if at < 0:
            raise ValueError("it closes a list that it has not opened")
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _as_list(value) -> list:
    if not isinstance(value, list):
        raise ValueError("something is appended to what is no list")
    return value
