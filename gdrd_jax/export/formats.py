"""The files that a student is exported as: writing one, and running it as it will run elsewhere."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gdrd_jax.export import networks
from gdrd_jax.inference import bundle
from gdrd_jax.inference.embedders import Embedder, student_embedder
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.models import weights
from gdrd_jax.models.student import abstract_student
from gdrd_jax.utils.errors import require

FORMATS = {
    "safetensors": bundle.WEIGHTS, "onnx": "student.onnx", "onnx_nchw": "student.nchw.onnx",
    "int8": "student.int8.onnx", "stablehlo": "student.stablehlo", "onnx_quality": "student.quality.onnx",
}  # fmt: skip
INEXACT = ("int8",)
CALIBRATED = 256  # faces to quantize on, at most


def write(
    name: str, path: Path, recognizer: Recognizer, remarks: dict[str, str], faces: np.ndarray, half: bool
) -> None:
    """Writes a student in a format, with remarks; an 8-bit file is quantized on these faces."""
    if name == "safetensors":
        weights.save_safetensors(recognizer.student, path, remarks, half=half)
    elif name == "stablehlo":
        path.write_bytes(networks.stablehlo(recognizer.student))
    else:
        layout = "nchw" if name == "onnx_nchw" else "nhwc"
        quality = recognizer.require_quality() if name == "onnx_quality" else None
        model = networks.onnx_model(recognizer.student, layout=layout, metadata=remarks, quality=quality)
        if name == "int8":
            model = networks.quantized(model, faces[:CALIBRATED])
        path.write_bytes(model.SerializeToString())


def opened(name: str, path: Path, recognizer: Recognizer, arguments: dict) -> Embedder:
    """The written file, run by what will run it elsewhere."""
    if name == "safetensors":
        student = abstract_student(arguments)
        weights.restore(student, weights.load_safetensors(path)[0])
        student.eval()
        return student_embedder(name, dataclasses.replace(recognizer, student=student))
    if name == "stablehlo":
        return Embedder(name, recognizer.resolution, networks.stablehlo_function(path.read_bytes()))
    run = session(path)
    forward = (lambda faces: run(_for_insightface(faces))) if name == "onnx_nchw" else run
    return Embedder(name, recognizer.resolution, forward)


def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What an ONNX file computes of uint8 faces `[N, R, R, C]`: float32 `[N, D]`."""
    opened = require("onnxruntime", "export").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda faces: opened.run(None, {networks.INPUT: faces})[0]


def _for_insightface(faces: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((faces.transpose(0, 3, 1, 2) - np.float32(127.5)) / np.float32(127.5))
