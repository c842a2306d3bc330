"""The files that an ONNX network consists of: the graph, and the external data beside it.

Only `load_onnx` imports heavy packages, because every start of a run computes the fingerprint of these files.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import digest, sha256

LARGEST = 2**31 - 1  # bytes of a serialized network: protobuf's limit
# ONNX message -> {field number: message in that field}, for all fields that can contain a tensor.
GRAPH_TAG = 7 << 3 | 2
MODEL_TAGS = {1 << 3, 5 << 3, *(number << 3 | 2 for number in (2, 3, 4, 6, 7, 8, 14, 20, 25, 26))}
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
    """Sorted paths of an ONNX graph's external data files; empty if the graph contains all of its weights.

    Args:
      path: the ONNX file.

    Raises:
      GdrdError: one is missing or is outside of the graph's folder, or the graph is damaged.
    """
    path, folder = Path(path), Path(path).parent
    try:
        with path.open("rb") as file:
            locations = set(_locations(file, path.stat().st_size, MODEL))
    except (ValueError, IndexError, RecursionError) as error:
        raise GdrdError(
            f"{path} cannot be loaded as an ONNX network: it is damaged or cut short; get it again", "onnx-unloadable"
        ) from error
    for location in sorted(locations):
        if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
            raise GdrdError(
                f"{path} takes weights from {location!r}, outside its folder, which is never read; save the graph with "
                "its weights beside it",
                "onnx-data-outside",
            )
        if not (folder / location).is_file():
            raise GdrdError(
                f"{path} takes weights from {location!r}, which is not in {folder.resolve()}; copy it there",
                "onnx-data-missing",
            )
    return [folder / location for location in sorted(locations)]


def onnx_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a network, in hexadecimal: of the graph's file if it holds all weights, else of it and all data files.

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
        raise GdrdError(
            f"{path} has {size / 2**30:.1f} GiB of weights; networks of 2 GiB and more are not supported",
            "onnx-too-large",
        )
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
    entries = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / entries["location"]).open("rb") as file:
        file.seek(int(entries.get("offset", 0)))
        data = file.read(int(entries.get("length", -1)))
    if "length" in entries and len(data) != int(entries["length"]):
        raise GdrdError(
            f"{folder / entries['location']} is truncated inside {tensor.name}; download it again",
            "onnx-data-truncated",
        )
    tensor.raw_data = data
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def is_onnx(path: str | os.PathLike) -> bool:
    """Whether a file is a protobuf message with a graph and with no field that ONNX's `ModelProto` lacks."""
    path, found = Path(path), set()
    try:
        with path.open("rb") as file:
            while file.tell() < path.stat().st_size:
                tag = _varint(file)
                found.add(tag)
                value = _varint(file)
                if tag & 7 == 2:  # what follows is so many bytes long
                    file.seek(value, os.SEEK_CUR)
            return GRAPH_TAG in found and found <= MODEL_TAGS and file.tell() == path.stat().st_size
    except (ValueError, IndexError):
        return False


def _locations(file: BinaryIO, end: int, message: int) -> Iterator[str]:
    """Yields the external data locations in a protobuf message that ends at `end`; seeks past all other fields."""
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
