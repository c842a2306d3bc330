"""The student in formats that others run: ONNX, StableHLO and safetensors."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax.export import jaxpr_onnx
from gdrd_jax.export.graph import Graph
from gdrd_jax.export.reduction import reduced
from gdrd_jax.inference.quality import Quality
from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.models.residual import BasicBlock, Head, ResidualBackbone
from gdrd_jax.models.student import Student, embed
from gdrd_jax.utils.errors import GdrdError, require

OUTPUT, QUALITY = "embedding", "quality"
# By layout; Frigate calls ArcFace's input "data".
INPUTS = {"nhwc": "faces", "nchw": "faces", "nchw_112": "data", "nchw_112_bgr": "data"}
INPUT = INPUTS["nhwc"]
FULL_SIZE = 112  # side of the faces of "nchw_112" and "nchw_112_bgr"
# The oldest pair with all operators used here: old runtimes read it, too.
OPSET, IR_VERSION = 17, 8
PLATFORMS = ("cpu", "cuda")
CALIBRATION_BATCH = 64


def onnx_model(
    student: Student, *, layout: str, metadata: dict[str, str], kernel: str = "area", quality: Quality | None = None
):
    """`models.student.embed` as an ONNX graph, batch normalization folded into the weights.

    Its output "embedding" is float32 `[N, D]`, unit length, for any N. It computes in float32 even if the student
    does not, but has weights as the student rounds them where it is written from a jaxpr.

    Args:
      student: trained; of its running statistics, not of a batch's.
      layout: of the input. "nhwc": "faces", uint8 `[N, R, R, C]`. "nchw": "faces", float32 `[N, C, R, R]`,
        (x - 127.5) / 127.5, as InsightFace's tools feed recognizers. "nchw_112": "data", the same of faces of 112
        pixels, `[N, C, 112, 112]`, which the graph reduces; "nchw_112_bgr": of BGR faces.
      metadata: becomes the model's `metadata_props`.
      kernel: by which the latter two reduce faces, see `data.degradation.resize`.
      quality: its score of each face is a second output "quality", float32 `[N]`.

    Returns:
      An `onnx.ModelProto` that onnx's checker has passed.

    Raises:
      GdrdError: onnx is not installed.
    """
    onnx = require("onnx", "export")
    helper, types = onnx.helper, onnx.TensorProto
    graph, side, channels = Graph(onnx), student.resolution, student.shape.channels
    sizes, kind = (side, side, channels), types.UINT8
    if layout != "nhwc":
        side = side if layout == "nchw" else FULL_SIZE
        sizes, kind = (channels, side, side), types.FLOAT
    given = helper.make_tensor_value_info(INPUTS[layout], kind, ["N", *sizes])
    write = _residual if is_residual(student) else _traced
    length = _embed(graph, student, write(graph, student, layout, kernel))
    wanted = [helper.make_tensor_value_info(OUTPUT, types.FLOAT, ["N", student.shape.embedding_dim])]
    if quality:
        _score(graph, length, quality)
        wanted.append(helper.make_tensor_value_info(QUALITY, types.FLOAT, ["N"]))
    model = helper.make_model(
        helper.make_graph(graph.nodes, "student", [given], wanted, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="gdrd_jax",
    )  # fmt: skip
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def is_residual(student: Student) -> bool:
    """Whether a student's graph can be written node by node, which is faster than from its jaxpr."""
    own = type(student).__call__ is Student.__call__
    if not (own and type(student.backbone) is ResidualBackbone and type(student.head) is Head):
        return False
    parts = (student.backbone, *student.backbone.blocks, *student.head.blocks)
    return all(part.downsampling is None for part in parts)


def _residual(graph: Graph, student: Student, layout: str, kernel: str) -> str:
    """Embeddings `[2 N, D]` of all faces and then of their mirror images, if there are any, not normalized."""
    x = INPUTS[layout]
    if layout == "nhwc":
        x = graph.add("Transpose", graph.add("Cast", x, to=graph.onnx.TensorProto.FLOAT), perm=[0, 3, 1, 2])
    elif layout != "nchw":
        x = _reduced_pixels(graph, student, layout, kernel)
    if layout != "nchw":
        x = graph.add("Sub", graph.add("Div", x, np.float32(127.5)), np.float32(1))
    return _head(graph, student, _backbone(graph, student, _with_mirrored(graph, student, x, 3)))


def _traced(graph: Graph, student: Student, layout: str, kernel: str) -> str:
    """As `_residual`, for any student."""
    x = INPUTS[layout]
    if layout != "nhwc":  # back to what the student takes
        x = _pixels(graph, x) if layout == "nchw" else _reduced_pixels(graph, student, layout, kernel)
        x = graph.add("Cast", graph.add("Transpose", x, perm=[0, 2, 3, 1]), to=graph.onnx.TensorProto.UINT8)
    side, channels = student.resolution, student.shape.channels
    return jaxpr_onnx.write(graph, student, _with_mirrored(graph, student, x, 2), (side, side, channels))


def _pixels(graph: Graph, x: str) -> str:
    """(x - 127.5) / 127.5 -> whole numbers from 0 to 255, as float32."""
    x = graph.add("Add", graph.add("Mul", x, np.float32(127.5)), np.float32(127.5))
    return graph.add("Clip", graph.add("Round", x), np.float32(0), np.float32(255))


def _reduced_pixels(graph: Graph, student: Student, layout: str, kernel: str) -> str:
    """RGB `[N, 3, R, R]` from the input of 112 pixels."""
    x = reduced(graph, _pixels(graph, INPUTS[layout]), FULL_SIZE, student.resolution, kernel)
    return graph.add("Gather", x, np.array([2, 1, 0], np.int64), axis=1) if layout == "nchw_112_bgr" else x


def _with_mirrored(graph: Graph, student: Student, x: str, axis: int) -> str:
    """Faces and then their mirror images along an axis, if these show the same."""
    if not student.shape.mirror:
        return x
    # One pass over both takes 1.07 ms against 1.16 in two for one face; for 64 they differ less than two runs of one
    # (width 0.25, one core of an AMD EPYC, ONNX Runtime 1.32).
    lowest = np.iinfo(np.int64).min
    mirrored = graph.add("Slice", x, *(np.array([value], np.int64) for value in (-1, lowest, axis, -1)))
    return graph.add("Concat", x, mirrored, axis=0)


def _embed(graph: Graph, student: Student, x: str) -> str:
    """`[2 N, D]`, or `[N, D]` without mirror images -> `[N, D]`, unit length; returns the lengths before, `[N, 1]`."""
    both = x
    if student.shape.mirror:
        pairs = graph.add("Reshape", x, np.array([2, -1, student.shape.embedding_dim], np.int64))
        both = graph.add("ReduceSum", pairs, np.array([0], np.int64), keepdims=0)
    length = graph.add("ReduceL2", both, axes=[1], keepdims=1)
    length = graph.add("Max", length, np.float32(1e-12))
    graph.add("Div", both, length, output=OUTPUT)
    return length


def _score(graph: Graph, length: str, quality: Quality) -> None:
    """Lengths `[N, 1]` -> quality, `[N]`."""
    logit = graph.add("Mul", graph.add("Log", length), np.float32(quality.slope))
    score = graph.add("Sigmoid", graph.add("Add", logit, np.float32(quality.intercept)))
    graph.add("Squeeze", score, np.array([1], np.int64), output=QUALITY)


def _backbone(graph: Graph, student: Student, x: str) -> str:
    x = graph.add("Relu", _conv(graph, x, student.backbone.stem, student.backbone.norm))
    for block in student.backbone.blocks:
        x = _block(graph, x, block)
    return x


def _block(graph: Graph, x: str, block: BasicBlock) -> str:
    y = graph.add("Relu", _conv(graph, x, block.conv1, block.norm1))
    y = _conv(graph, y, block.conv2, block.norm2)
    y = graph.add("Add", y, x if block.shortcut is None else _conv(graph, x, *block.shortcut.layers))
    return graph.add("Relu", y) if block.final_relu else y


def _conv(graph: Graph, x: str, conv: nnx.Conv, norm: BatchNorm) -> str:
    scale, shift = _affine(norm)
    kernel = np.transpose(_exact(conv.kernel) * scale, (3, 2, 0, 1))
    size = kernel.shape[2]
    return graph.add(
        "Conv", x, np.float32(kernel), np.float32(shift),
        kernel_shape=[size] * 2, strides=[conv.strides] * 2, pads=[size // 2] * 4,
    )  # fmt: skip


def _head(graph: Graph, student: Student, x: str) -> str:
    """-> `[N, D]`, not normalized."""
    head = student.head
    for block in head.blocks:
        x = _block(graph, x, block)
    channels = [*student.backbone.blocks, *head.blocks][-1].norm2.scale.shape[0]
    x = graph.add("Flatten", x)
    for number, layer in enumerate(head.layers):
        kernel, bias = _exact(layer.kernel), _exact(layer.bias)
        if number == 0:
            scale, shift = _affine(head.norm)
            bias = bias + shift @ kernel
            kernel = _channels_first(scale[:, None] * kernel, channels)
        else:
            x = graph.add("Relu", x)
        x = graph.add("Gemm", x, np.float32(kernel), np.float32(bias))
    return x


def _channels_first(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Rows for features flattened from `[h, w, C]` -> for those flattened from `[C, h, w]`, h = w."""
    size, outputs = math.isqrt(len(kernel) // channels), kernel.shape[1]
    return kernel.reshape(size, size, channels, outputs).transpose(2, 0, 1, 3).reshape(-1, outputs)


def _affine(norm: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """What it multiplies by and adds in evaluation mode, float64 `[C]` each."""
    scale = _exact(norm.scale) / np.sqrt(_exact(norm.var) + norm.epsilon)
    return scale, _exact(norm.bias) - _exact(norm.mean) * scale


def _exact(variable: nnx.Variable) -> np.ndarray:
    return np.asarray(variable[...], np.float64)


def quantized(model, faces: np.ndarray):
    """The same graph with weights and activations of 8 bits: a quarter of the size, and faster on CPUs.

    Args:
      model: an `onnx.ModelProto` of `onnx_model` with the layout "nhwc"; unchanged.
      faces: uint8 RGB `[N, R, R, 3]`, some hundred that are like those to come: the ranges of activations are theirs.

    Returns:
      An `onnx.ModelProto` with the same inputs, outputs and metadata; of the same faces always the same.

    Raises:
      GdrdError: onnx or onnxruntime is not installed, or there are no faces.
    """
    onnx, quantization = require("onnx", "export"), require("onnxruntime.quantization", "export")
    if not len(faces):
        raise GdrdError("the 8-bit network needs faces to calibrate on; there are none", "calibration-missing")
    batches = ({INPUT: faces[i : i + CALIBRATION_BATCH]} for i in range(0, len(faces), CALIBRATION_BATCH))

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    # ONNX Runtime's own mark: there is nothing to fold any more, and it need not warn of that.
    onnx.helper.set_model_props(copy, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        quantization.quantize_static(
            copy, path, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            # The rest would cost more to convert than it wins.
            op_types_to_quantize=["Conv", "Gemm", "Add"],
            # Three times as fast as signed ones on x86.
            activation_type=quantization.QuantType.QUInt8,
            # CPUs without VNNI add up products of full 8 bits in 16, which overflow.
            reduce_range=True,
        )  # fmt: skip
        small = onnx.load(path)
    onnx.helper.set_model_props(small, {entry.key: entry.value for entry in model.metadata_props})
    return small


def stablehlo(student: Student) -> bytes:
    """`models.student.embed` with its weights, as JAX serializes it (`jax.export`), for any N, on CPUs and CUDA.

    uint8 RGB `[N, R, R, 3]` -> float32 `[N, D]`, unit length.

    Args:
      student: in evaluation mode (`student.eval()`).
    """
    side, channels = student.resolution, student.shape.channels
    # One face at a time: the layers ask for sizes as integers, which a symbolic N is not.
    faces = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("N"), side, side, channels), jnp.uint8)
    function = jax.jit(jax.vmap(lambda face: embed(student, face[None])[0]))
    return bytes(jax.export.export(function, platforms=PLATFORMS)(faces).serialize())


def stablehlo_function(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """What `stablehlo` gave, as a function of uint8 RGB `[N, R, R, 3]`, compiled once for each N."""
    function = jax.jit(jax.export.deserialize(bytearray(data)).call)
    return lambda faces: np.asarray(function(faces))
