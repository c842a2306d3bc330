"""InsightFace's `.bin` verification sets: a pickle of `([image bytes, ...], [is same, ...])`.

A pickle can call anything when it is loaded, so it never is: its instructions are read as
data (the standard library's `pickletools`), and only those that build bytes, lists, tuples
and booleans are followed. The images stay in the file.
"""

import mmap
import pickletools
from pathlib import Path

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.errors import GdrdError

HEADS = {"SHORT_BINBYTES": 2, "BINBYTES": 5, "BINBYTES8": 9, "SHORT_BINSTRING": 2, "BINSTRING": 5, "BYTEARRAY8": 9}
BOOLEANS = {"NEWTRUE": True, "NEWFALSE": False}
IGNORED = frozenset({"PROTO", "FRAME"})
REMEMBER, RECALL = frozenset({"BINPUT", "LONG_BINPUT", "PUT"}), frozenset({"BINGET", "LONG_BINGET", "GET"})
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


def read_bin(path: Path) -> tuple[Faces, np.ndarray]:
    """Describes the images of a `.bin` file.

    Args:
      path: such as InsightFace's `lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`.

    Returns:
      2P faces (pair i is faces 2i and 2i + 1; who they are is not in the file) and bool `[P]`,
      True for a genuine pair.

    Raises:
      GdrdError: not such a file, damaged, or its pickle wants more than bytes, lists and booleans.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            content = _follow(buffer, path)
    except FileNotFoundError:
        raise GdrdError(f"there is no file {path}") from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise GdrdError(f"{path} is damaged, or no pickle at all; copy it again") from error
    try:
        images, same = content
        spans = np.array([(image.start, image.stop - image.start) for image in images], np.int64).reshape(-1, 2)
        right = all(isinstance(value, bool) for value in same) and len(spans) == 2 * len(same) > 0
    except (TypeError, ValueError, AttributeError):
        right = False
    if not right:
        raise GdrdError(f"{path} is a pickle, but not InsightFace's ([2P images], [P booleans])")
    names = tuple(f"pair {i // 2} {'ab'[i % 2]}" for i in range(len(spans)))
    return Faces(path.resolve(), names, np.zeros(len(names), np.int32), ("",), spans), np.array(same)


def _follow(buffer: mmap.mmap, path: Path):
    """What the pickle builds; bytes as the `slice` of the file that they are."""
    stack, memo = [], {}
    for opcode, argument, position in pickletools.genops(buffer):
        name = opcode.name
        if name in HEADS:
            start = position + HEADS[name]
            stack.append(slice(start, start + len(argument)))
        elif name in BOOLEANS:
            stack.append(BOOLEANS[name])
        elif name == "INT" and isinstance(argument, bool):  # as protocol 0 writes booleans
            stack.append(argument)
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
            raise GdrdError(
                f"{path} is refused: its pickle asks for {name} ({str(argument)[:80]!r}) at byte {position}, and a "
                "verification set is nothing but bytes, lists, tuples and booleans; loading it could run a program. "
                "If it is your own: pickle.dump(([bytes, ...], [bool, ...]), file, protocol=4)"
            )
    raise ValueError("it does not end")


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
