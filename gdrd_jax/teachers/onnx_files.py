"""The files that an ONNX network consists of: the graph, and the external data beside it.

Nothing heavy is imported before `load_onnx` is called: a run's fingerprint is taken of these files each time.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gdrd_jax.errors import GdrdError, require
from gdrd_jax.files import digest, sha256

LARGEST = 2**31 - 1  # bytes of a serialized network: protobuf's limit
# Numbers of the fields of ONNX's messages below which a tensor may be: a model's graph and functions; a graph's nodes,
# initializers and sparse ones (whose values and indices are tensors); a node's attributes; an attribute's tensors,
# graphs and sparse tensors.
MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, FUNCTION, ENTRY = range(8)
BELOW = {
    MODEL: {7: GRAPH, 25: FUNCTION},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    FUNCTION: {7: NODE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    TENSOR: {13: ENTRY},
}


def external_files(path: str | os.PathLike) -> list[Path]:
    """The files beside an ONNX graph that hold its weights, sorted; none where the graph holds them itself.

    Args:
      path: of the graph.

    Raises:
      GdrdError: one is missing or is outside of the graph's folder, or the graph is damaged.
    """
    path, folder = Path(path), Path(path).parent
    try:
        with path.open("rb") as file:
            locations = set(_locations(file, path.stat().st_size, MODEL))
    except (ValueError, IndexError) as error:
        raise GdrdError(
            f"{path} cannot be loaded as an ONNX network: it is damaged or cut short; get it again"
        ) from error
    for location in sorted(locations):
        if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
            raise GdrdError(f"{path} takes weights from {location!r}, outside of its folder, which is not read")
        if not (folder / location).is_file():
            raise GdrdError(
                f"{path} takes weights from {location!r}, which is not in {folder.resolve()}; copy it there"
            )
    return [folder / location for location in sorted(locations)]


def onnx_sha256(path: str | os.PathLike) -> str:
    """Of all the contents: of the graph's file alone if it holds its weights, else of each file by its location.

    Raises:
      GdrdError: see `external_files`.
    """
    path = Path(path)
    beside = external_files(path)
    if not beside:
        return sha256(path)
    return digest({"": sha256(path), **{str(file.relative_to(path.parent)): sha256(file) for file in beside}})


def load_onnx(path: str | os.PathLike):
    """The network as an ONNX `ModelProto` with all its weights, from any working directory.

    External data may be a symbolic link, as in the cache of Hugging Face, which onnx's own loader refuses.

    Raises:
      GdrdError: see `external_files`; or there are 2 GiB of weights, more than protobuf can serialize.
      Exception: protobuf's, of a damaged file.
    """
    path, onnx = Path(path), require("onnx", "teachers")
    beside = external_files(path)
    size = sum(file.stat().st_size for file in (path, *beside))
    if size > LARGEST:
        raise GdrdError(f"{path} has {size / 2**30:.1f} GiB of weights; networks of 2 GiB and more are not supported")
    model = onnx.load(path, load_external_data=False)
    if beside:
        for tensor in _tensors(model.graph):
            if tensor.data_location == tensor.EXTERNAL:
                _fill(tensor, path.parent)
    return model


def _tensors(graph) -> Iterator:
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for below in (attribute.g, *attribute.graphs):
            yield from _tensors(below)


def _fill(tensor, folder: Path) -> None:
    told = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / told["location"]).open("rb") as file:
        file.seek(int(told.get("offset", 0)))
        data = file.read(int(told.get("length", -1)))
    if "length" in told and len(data) != int(told["length"]):
        raise GdrdError(f"{folder / told['location']} is cut short: {tensor.name} is not all there; get it again")
    tensor.raw_data = data
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def _locations(file: BinaryIO, end: int, message: int) -> Iterator[str]:
    """Locations of external data in a protobuf message that ends at `end`; skips all else unread."""
    while file.tell() < end:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _varint(file)
            continue
        length = {1: 8, 2: None, 5: 4}[kind] if kind in (1, 2, 5) else -1
        length = _varint(file) if length is None else length
        stop = file.tell() + length
        if not 0 <= length <= end - file.tell() or not number:
            raise ValueError("no protobuf message")
        below = BELOW[message].get(number) if kind == 2 else None
        if below == ENTRY:
            key, value = _entry(file.read(length))
            if key == "location":
                yield value
        elif below is not None:
            yield from _locations(file, stop, below)
        file.seek(stop)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)[0]  # an IndexError at the file's end
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("no protobuf message")


def _entry(data: bytes) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto, both shorter than 16,384 bytes."""
    found, at = {}, 0
    while at < len(data):
        number, length, at = data[at] >> 3, data[at + 1], at + 2
        if length > 127:
            length, at = (length & 127) | data[at] << 7, at + 1
        found[number], at = data[at : at + length].decode(), at + length
    return found.get(1, ""), found.get(2, "")
