"""Input and output of an ONNX recognizer: how it is to be fed with faces, and which output is the embedding."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.utils.errors import GdrdError

TYPES = ("float32", "float16", "float64", "uint8", "int32", "int64")


class Input(NamedTuple):
    """Input format of an ONNX graph.

    Attributes:
      name: name of the graph's input.
      dtype: NumPy type of the pixels.
      last: whether the channels are the last axis, NHWC instead of NCHW.
    """

    name: str
    dtype: type
    last: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one face."""
        return (1, FACE_SIZE, FACE_SIZE, 3) if self.last else (1, 3, FACE_SIZE, FACE_SIZE)

    def prepared(self, x: np.ndarray) -> np.ndarray:
        """Normalized faces `[N, 112, 112, 3]` in the graph's order and type."""
        return np.ascontiguousarray(x if self.last else x.transpose(0, 3, 1, 2), self.dtype)


def read_input(model, path: Path) -> list[Input]:
    """Possible formats of the graph's input, the most likely first; several if its shape is not declared.

    Args:
      model: an ONNX `ModelProto`, as `onnx_graph.make_batch_dynamic` returns it.
      path: of its file, for messages.

    Raises:
      GdrdError: it is not one input of 112x112 RGB faces.
    """
    from onnx import helper

    inputs = list(model.graph.input)
    if len(inputs) != 1:
        named = ", ".join(f"{value.name} {_shown(value)}" for value in inputs) or "none"
        raise GdrdError(
            f"{path} cannot be loaded as a face recognizer, which has one input; its inputs are {named}", "onnx-inputs"
        )
    (value,) = inputs
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.dtype("float32")
    if str(dtype) not in TYPES:
        raise GdrdError(
            f"{path} takes pixels of the type {dtype}; a face recognizer takes {', '.join(TYPES)}", "onnx-input-type"
        )
    dims = [dim.dim_value for dim in tensor.shape.dim] if tensor.HasField("shape") else [0] * 4
    sizes = [max(dim, 0) for dim in dims[1:]]  # 0 is free, or, from MXNet, -1
    found = []
    for last, wanted in ((False, [3, FACE_SIZE, FACE_SIZE]), (True, [FACE_SIZE, FACE_SIZE, 3])):
        if len(sizes) == 3 and all(size in (0, want) for size, want in zip(sizes, wanted)):
            found.append(Input(value.name, dtype.type, last))
    if not found:
        raise GdrdError(
            f"{path} takes faces of {_shown(value)}; a face recognizer takes [N, 3, {FACE_SIZE}, {FACE_SIZE}] or "
            f"[N, {FACE_SIZE}, {FACE_SIZE}, 3]",
            "onnx-input-shape",
        )
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
    ]  # fmt: skip
    shown = ", ".join(f"{name} {list(getattr(value, 'shape', ['?']))}" for name, value in found.items())
    if wanted:
        if wanted not in found:
            raise GdrdError(
                f"{path} has no output {wanted!r}; its outputs for one face are {shown}", "onnx-output-missing"
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
            f"{path} has no output that is an embedding [N, D]; its outputs for one face are {shown}",
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
