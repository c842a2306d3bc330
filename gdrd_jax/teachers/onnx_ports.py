"""Input and output of an ONNX network: how it is to be fed with images, and which output is the embedding."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdrd_jax.utils.errors import GdrdError, did_you_mean, require

DISCRIMINATIVE = "config.discriminative.input_size, or SIZE in FILE:PREPROCESSING:SIZE,"
FEWEST = 8  # numbers of an embedding; fewer are more likely the output of a classifier
LOG = logging.getLogger(__name__)
TYPES = ("float32", "float16", "float64", "uint8", "int32", "int64")


class Input(NamedTuple):
    """Input format of an ONNX graph.

    Attributes:
      name: name of the graph's input.
      dtype: NumPy type of the pixels.
      last: whether the channels are the last axis, NHWC instead of NCHW.
      side: of the images in pixels.
      free: whether the graph takes other sides, too.
    """

    name: str
    dtype: type
    last: bool
    side: int
    free: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (1, self.side, self.side, 3) if self.last else (1, 3, self.side, self.side)

    def prepared(self, x: np.ndarray) -> np.ndarray:
        """Normalized images `[N, side, side, 3]` in the graph's order and type."""
        return np.ascontiguousarray(x if self.last else x.transpose(0, 3, 1, 2), self.dtype)


def check_input(path: Path, size: int, setting: str = DISCRIMINATIVE) -> Any:
    """Refuses a graph that cannot be fed with images, as `read_input` does, without its weights.

    Returns:
      The graph, an ONNX `ModelProto`, whose external data are not loaded.

    Raises:
      GdrdError: see `read_input`.
    """
    model = require("onnx", "teachers").load(path, load_external_data=False)
    # Some files declare their weights as inputs, too, or names that nothing reads.
    weights = {tensor.name for tensor in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    inputs = [value for value in model.graph.input if value.name in read - weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    read_input(model, path, size, setting)
    return model


def check_output(model, wanted: str, path: Path) -> None:
    """Refuses a graph without an embedding, as `choose_output` does, by the shapes that it declares, if it does.

    Warns of an embedding of very few numbers.

    Args:
      model: of `check_input`.
      wanted, path: as of `choose_output`.

    Raises:
      GdrdError: see `choose_output`.
    """
    from onnx import helper

    declared = {}
    for value in model.graph.output:
        tensor = value.type.tensor_type
        dims = [dim.dim_value for dim in tensor.shape.dim]
        dims = [1, *dims[1:]] if len(dims) > 1 else dims  # the batch
        if not dims or min(dims) < 1:
            return
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.float32
        declared[value.name] = np.broadcast_to(np.zeros((), dtype), dims)
    chosen = choose_output(declared, wanted, path)
    if declared[chosen].size < FEWEST:
        LOG.warning(
            "%s: the output %s has %d numbers, and embeddings of recognizers have 128 to 512; it looks like a "
            "classifier. Give a face recognizer", path, chosen, declared[chosen].size,
        )  # fmt: skip


def read_input(model, path: Path, size: int = 0, setting: str = DISCRIMINATIVE) -> list[Input]:
    """Possible formats of the graph's input, the most likely first; several if its shape is not declared.

    Args:
      model: an ONNX `ModelProto`, as `onnx_graph.make_batch_dynamic` returns it.
      path: of its file, for messages.
      size: side of the images, where the graph leaves it free; 0 is the graph's own.
      setting: that `size` comes from, for messages.

    Raises:
      GdrdError: it is not one input of square RGB images, or is one of another size, or of any and none is given.
    """
    from onnx import helper

    inputs = list(model.graph.input)
    if len(inputs) != 1:
        named = ", ".join(f"{value.name} {_shown(value)}" for value in inputs) or "none"
        raise GdrdError(
            f"{path} cannot be loaded as a network of images, which has one input; its inputs are {named}",
            "onnx-inputs",
        )
    (value,) = inputs
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.dtype("float32")
    if str(dtype) not in TYPES:
        raise GdrdError(
            f"{path} takes pixels of the type {dtype}; a network of images takes {', '.join(TYPES)}", "onnx-input-type"
        )
    dims = [dim.dim_value for dim in tensor.shape.dim] if tensor.HasField("shape") else [0] * 4
    sizes = [max(dim, 0) for dim in dims[1:]]  # 0 is free, or, from MXNet, -1
    layouts = ((False, sizes[:1], sizes[1:]), (True, sizes[2:], sizes[:2])) if len(sizes) == 3 else ()
    fitting = [
        (last, max(sides)) for last, channels, sides in layouts if channels[0] in (0, 3) and len({*sides} - {0}) < 2
    ]
    if not fitting:
        raise GdrdError(
            f"{path} takes images of {_shown(value)}; it must take [N, 3, S, S] or [N, S, S, 3], such as "
            "[N, 3, 112, 112]",
            "onnx-input-shape",
        )
    found = [
        Input(value.name, dtype.type, last, side or size, not side)
        for last, side in fitting if not size or side in (0, size)
    ]  # fmt: skip
    if not found or not all(each.side for each in found):
        shape = _shown(value) if tensor.HasField("shape") else "any shape"
        wrong = f"but {setting} is {size}; set it to 0"
        if not size:
            wrong = f"which leaves their size open; set {setting} to the side in pixels that it was trained on"
        raise GdrdError(f"{path} takes images of {shape}, {wrong}", "onnx-input-size")
    return found


def choose_output(found: dict[str, np.ndarray], wanted: str, path: Path) -> str:
    """Name of the output that is the embedding.

    Args:
      found: name to value of all outputs of one face; values other than arrays are no embeddings.
      wanted: the user's choice, or "".
      path: of the network's file, for messages.

    Raises:
      GdrdError: no output is an embedding (more than one number in one dimension), or several are and none is
        chosen, or the chosen one is not.
    """
    embeddings = [
        name for name, value in found.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and 1 < value.size == max(value.shape)
        and value.ndim != 3  # [N, BOXES, 1] is a detector's
    ]  # fmt: skip
    shown = ", ".join(f"{name} {list(getattr(value, 'shape', ['?']))}" for name, value in found.items())
    if wanted:
        if wanted not in found:
            raise GdrdError(
                f"{path} has no output {wanted!r}; {did_you_mean(wanted, found)}its outputs for one face are {shown}",
                "onnx-output-missing",
            )
        if wanted not in embeddings:
            raise GdrdError(
                f"{path}: the output {wanted!r} is not an embedding [N, D]; the outputs for one face are {shown}",
                "onnx-output-not-embedding",
            )
        return wanted
    if len(embeddings) == 1:
        return embeddings[0]
    if not embeddings:
        raise GdrdError(
            f"{path} looks like no face recognizer: no output is an embedding [N, D]; its outputs for one face are "
            f"{shown}. Give a recognizer, such as InsightFace's w600k_r50.onnx",
            "onnx-no-embedding",
        )
    raise GdrdError(
        f"{path} has several outputs that can be the embedding: {shown} (shapes for one face); choose one: "
        f"--output {embeddings[0]}, or --config.discriminative.output={embeddings[0]}",
        "onnx-outputs",
    )


def _shown(value) -> str:
    dims = [dim.dim_param or dim.dim_value or "?" for dim in value.type.tensor_type.shape.dim]
    return f"[{', '.join(map(str, dims))}]"
