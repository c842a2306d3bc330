"""The files that a student is exported as: writing one, and running it as it will run elsewhere."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from gdrd_jax.data.degradation import resize_all
from gdrd_jax.export import networks
from gdrd_jax.inference import bundle
from gdrd_jax.inference.embedders import Embedder, student_embedder
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.models import weights
from gdrd_jax.models.arguments import RGB
from gdrd_jax.models.student import abstract_student
from gdrd_jax.utils.errors import GdrdError, require

FORMATS = {
    "safetensors": bundle.WEIGHTS, "onnx": "student.onnx", "onnx_nchw": "student.nchw.onnx",
    "onnx_112": "student.112.onnx", "onnx_112_bgr": "student.112.bgr.onnx", "onnx_quality": "student.quality.onnx",
    "int8": "student.int8.onnx", "stablehlo": "student.stablehlo",
}  # fmt: skip
# Layouts of ONNX files.
LAYOUTS = {
    "onnx": "nhwc", "onnx_nchw": "nchw", "onnx_112": "nchw_112", "onnx_112_bgr": "nchw_112_bgr",
    "onnx_quality": "nhwc", "int8": "nhwc",
}  # fmt: skip
FULL_SIZE = ("onnx_112", "onnx_112_bgr")
COLORS = {1: "gray", 2: "gray and one more", 3: "RGB", 4: "RGB and one more"}  # by number of channels
INEXACT = ("int8",)
CALIBRATED = 256  # faces to quantize on, at most


def write(
    name: str, path: Path, recognizer: Recognizer, remarks: dict[str, str], faces: np.ndarray, half: bool
) -> None:
    """Writes a student in a format, with remarks; an 8-bit file is quantized on these faces, uint8 `[N, S, S, C]`."""
    if name == "safetensors":
        weights.save_safetensors(recognizer.student, path, remarks, half=half)
    elif name == "stablehlo":
        path.write_bytes(networks.stablehlo(recognizer.student))
    else:
        quality = recognizer.require_quality() if name == "onnx_quality" else None
        model = networks.onnx_model(
            recognizer.student, layout=LAYOUTS[name], metadata=remarks, kernel=recognizer.kernel, quality=quality
        )  # fmt: skip
        if name == "int8":
            low = resize_all(faces[:CALIBRATED], recognizer.resolution, recognizer.kernel)
            model = networks.quantized(model, low)
        path.write_bytes(model.SerializeToString())


def opened(name: str, path: Path, recognizer: Recognizer, arguments: dict) -> Embedder:
    """The written file, run by what will run it elsewhere."""
    if name == "safetensors":
        student = abstract_student(arguments)
        weights.restore(student, weights.load_safetensors(path)[0])
        student.eval()
        return student_embedder(name, dataclasses.replace(recognizer, student=student))
    side, scored = networks.FULL_SIZE if name in FULL_SIZE else recognizer.resolution, None
    if name == "stablehlo":
        forward = networks.stablehlo_function(path.read_bytes())
    elif name == "onnx_quality":
        scored = session(path)
        forward = lambda faces: scored(faces)[:, :-1]  # noqa: E731
    else:
        run = session(path)
        colors = -1 if name == "onnx_112_bgr" else 1
        forward = run if LAYOUTS[name] == "nhwc" else lambda faces: run(_for_insightface(faces[..., ::colors]))
    return Embedder(name, side, forward, recognizer.kernel, scored=scored)


def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What an ONNX file computes of the faces that it takes: embeddings, float32 `[N, D]`, and if it also has their
    quality, that as one more column."""
    opened = require("onnxruntime", "export").InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = opened.get_inputs()
    return lambda faces: np.column_stack(opened.run(None, {given.name: faces}))


def _for_insightface(faces: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((faces.transpose(0, 3, 1, 2) - np.float32(127.5)) / np.float32(127.5))


def check(names: Iterable[str], recognizer: Recognizer) -> None:
    """Refuses formats that a student does not have.

    Raises:
      GdrdError: files of 112 pixels are for recognizers of aligned RGB faces only.
    """
    task, channels, side = recognizer.task, recognizer.student.shape.channels, recognizer.task.image_size
    given = next((name for name in names if name in FULL_SIZE), None)
    if given and not (task.aligned and side == networks.FULL_SIZE and channels == RGB):
        raise GdrdError(
            f"--format {given} takes the place of a recognizer of aligned RGB faces of 112x112 pixels, and this "
            f"student takes {COLORS[channels]} {task.images} of {side}x{side}; leave it out",
            "format-task",
        )
