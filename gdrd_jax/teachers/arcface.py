"""The discriminative teacher T_d: a face recogniser as an ONNX file."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.errors import GdrdError, first_line, require

BATCH = 64
LOG = logging.getLogger(__name__)
# Mean and standard deviation of x, RGB in 0..255; the network is fed with (x - mean) / std.
PREPROCESSING = {
    "arcface": "127.5/127.5",
    "imagenet": "123.675,116.28,103.53/58.395,57.12,57.375",
    "inside": "0/1",  # the graph begins with it
}


def parse_preprocessing(text: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation, float32 `[1]` or `[3]`; None for "auto".

    Args:
      text: "auto", a name in `PREPROCESSING`, or "MEAN/STD", each one number or three, R,G,B.

    Raises:
      GdrdError: none of these.
    """
    if text == "auto":
        return None
    try:
        mean, std = (np.array(part.split(","), np.float32) for part in PREPROCESSING.get(text, text).split("/"))
        if mean.size in (1, 3) and std.size in (1, 3) and np.isfinite(mean).all() and (std > 0).all():
            return mean, std
    except ValueError:
        pass
    raise GdrdError(
        f"the preprocessing {text!r} is not known; it can be auto, {', '.join(PREPROCESSING)}, or MEAN/STD such as "
        "127.5/128 or 123.7,116.3,103.5/58.4,57.1,57.4 (R,G,B)"
    )


def check_file(path: Path) -> None:
    """Raises GdrdError unless the teacher's file is there; imports nothing heavy."""
    if not path.is_file():
        raise GdrdError(
            f"config.discriminative.path: there is no file {str(path)!r}; give an ONNX face recogniser, an "
            "iresnet's weights, or 'sface' for the one of the extra 'quickstart'"
        )


class ArcFace:
    """T_d, run by ONNX Runtime.

    Files that declare their initialisers as inputs, carry block-quantised weights or fix the
    batch at 1 are mended in memory: OpenCV's `face_recognition_sface_2021dec_int8bq.onnx` is
    all three.

    Args:
      path: ONNX file with one input `[N, 3, 112, 112]` and one output `[N, D]`.
      preprocessing: see `parse_preprocessing`. "auto" is "inside" where the graph subtracts and scales
        before its first convolution, else "arcface".

    Attributes:
      dim: D.
      preprocessing: the one in use, "auto" resolved.
      fingerprint: of the file and the preprocessing.

    Raises:
      GdrdError: no such file, or not such a network.
    """

    def __init__(self, path: Path, *, preprocessing: str = "auto"):
        parse_preprocessing(preprocessing)
        check_file(path)
        onnx, runtime = require("onnx", "teachers"), require("onnxruntime", "teachers")
        data = path.read_bytes()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what fails here is told below
        try:
            model = runnable(onnx.load_from_string(data))
            self._session = runtime.InferenceSession(model.SerializeToString(), options)
            self._input, output = self._session.get_inputs()[0], self._session.get_outputs()[0]
        except Exception as error:  # protobuf and ONNX Runtime share no base class of their errors
            raise GdrdError(f"{path} cannot be loaded as an ONNX network: {first_line(error)}") from error
        if self._input.shape[1:] != [3, FACE_SIZE, FACE_SIZE] or len(output.shape) != 2:
            raise GdrdError(
                f"{path} maps {self._input.shape} to {output.shape}; a face recogniser maps "
                f"[N, 3, {FACE_SIZE}, {FACE_SIZE}] to [N, D]"
            )
        if preprocessing == "auto":
            preprocessing = "inside" if _normalises(model) else "arcface"
        self.preprocessing = preprocessing
        self._mean, self._std = parse_preprocessing(preprocessing)
        self._batch = BATCH
        self.dim = self._try_out(path)
        self.fingerprint = hashlib.sha256(data + f"{self._mean}:{self._std}".encode()).hexdigest()

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """uint8 RGB `[N, 112, 112, 3]` -> float32 `[N, D]`, not normalised."""
        starts = range(0, len(faces), self._batch)
        return np.concatenate([self._run(faces[start : start + self._batch]) for start in starts])

    def _try_out(self, path: Path) -> int:
        """Runs two faces, together and one by one; returns D."""
        faces = np.random.default_rng(0).integers(256, size=(2, FACE_SIZE, FACE_SIZE, 3), dtype=np.uint8)
        try:
            singly = np.concatenate([self._run(faces[:1]), self._run(faces[1:])])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise GdrdError(f"{path} cannot be run: {first_line(error)}") from error
        if not np.isfinite(singly).all():
            raise GdrdError(
                f"{path} gives values that are not finite; look at its preprocessing ({self.preprocessing})"
            )
        try:
            together = self._run(faces)
        except Exception:
            together = np.zeros(())
        if together.shape != singly.shape or not np.allclose(together, singly, rtol=1e-2, atol=1e-3):
            LOG.warning("%s computes batches wrongly (its batch is fixed inside); faces are run one by one", path)
            self._batch = 1
        return singly.shape[1]

    def _run(self, faces: np.ndarray) -> np.ndarray:
        x = (faces.astype(np.float32) - self._mean) / self._std
        return self._session.run(None, {self._input.name: x.transpose(0, 3, 1, 2)})[0]


def _normalises(model) -> bool:
    """Whether the first things the graph does to its input are to subtract and to scale."""
    value, done = model.graph.input[0].name, set()
    while True:
        users = [node for node in model.graph.node if value in node.input]
        if len(users) != 1 or users[0].op_type not in ("Sub", "Mul", "Div", "Cast", "Transpose"):
            return "Sub" in done and bool(done & {"Mul", "Div"})
        done.add(users[0].op_type)
        value = users[0].output[0]


def runnable(model):
    """Makes an ONNX `ModelProto` of a recogniser acceptable to ONNX Runtime, for any batch size.

    Folds `DequantizeLinear` (and a following `Reshape`) of constants to float32, removes graph
    inputs that are constants or used by no node, and frees the batch dimension.

    Args:
      model: changed in place.

    Returns:
      `model`.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if all(name in constants for name in node.input) and node.op_type == "DequantizeLinear":
            constants[node.output[0]] = _dequantise(node, *(constants[name] for name in node.input))
        elif all(name in constants for name in node.input) and node.op_type == "Reshape":
            constants[node.output[0]] = constants[node.input[0]].reshape(constants[node.input[1]])
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    inputs = [value for value in graph.input if value.name in used and value.name not in constants]
    for field, kept in (
        (graph.node, nodes),
        (graph.initializer, [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used]),
        (graph.input, inputs),
    ):
        del field[:]
        field.extend(kept)
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def _dequantise(node, quantised: np.ndarray, scale: np.ndarray, zero: np.ndarray | int = 0) -> np.ndarray:
    """ONNX `DequantizeLinear`: one scale a tensor, a slice of `axis`, or `block_size` elements of it."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)

    def spread(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        if block:
            return np.take(np.repeat(x, block, axis), range(quantised.shape[axis]), axis)
        if x.size == 1:
            return x.reshape(())
        return x.reshape([-1 if i == axis % quantised.ndim else 1 for i in range(quantised.ndim)])

    return ((quantised.astype(np.float32) - spread(zero)) * spread(scale)).astype(np.float32)
