"""ONNX Runtime's side of the teachers: sessions, and how their graphs are fed."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.onnx_front import read_front
from gdrd_jax.teachers.onnx_ports import Input
from gdrd_jax.teachers.preprocessing import CHOICES, current_preprocessing, parse_preprocessing
from gdrd_jax.utils.errors import GdrdError, first_line, require

LOG = logging.getLogger(__name__)


def open_session(model):
    """ONNX Runtime's session of a `ModelProto`, on a GPU if this installation of it can use one."""
    runtime = require("onnxruntime", "teachers")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # failures are reported as errors
    providers = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in runtime.get_available_providers():
        gpu = torch_network.device().index if torch_network.may_have_gpu() else 0
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu or 0}))
    return runtime.InferenceSession(model.SerializeToString(), options, providers=providers)


@contextlib.contextmanager
def unloadable(path: Path) -> Iterator[None]:
    """Turns what a damaged ONNX file raises into a `GdrdError`."""
    try:
        yield
    except GdrdError:
        raise
    except Exception as error:  # protobuf and ONNX Runtime share no base class of their errors
        raise GdrdError(
            f"{path} cannot be loaded as an ONNX network: {first_line(error)}; get it or export it again",
            "onnx-unloadable",
        ) from error


def computes_batches(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, singly: np.ndarray) -> bool:
    """Whether a graph gives for a batch of images what it gives for each; its batch may be fixed inside.

    Args:
      run: of the graph, on a batch.
      images: `[N, S, S, 3]`.
      singly: its output for them, one by one, `[N, ...]`.
    """
    try:
        together = run(images)
    except Exception:  # ONNX Runtime's errors have no common base
        return False
    return together.shape == singly.shape and np.allclose(together, singly, rtol=1e-2, atol=1e-3)


def fed_with(model, into: Input, asked: str, path: Path) -> tuple[str, tuple[str, ...]]:
    """The preprocessing of a graph, "auto" resolved, and warnings about it, which are logged.

    Args:
      model: a `ModelProto`.
      into: its input.
      asked: see `parse_preprocessing`.
      path: of its file, for messages.

    Raises:
      GdrdError: it has to be given, or does not fit integer pixels.
    """
    preprocessing, warnings = _fed_with(model, into, current_preprocessing(asked), path)
    for warning in warnings:
        LOG.warning(warning)
    mean, std = parse_preprocessing(preprocessing)
    if np.issubdtype(into.dtype, np.integer) and (mean.any() or (std != 1).any()):
        raise GdrdError(
            f"{path} takes integer pixels in 0..255; set its preprocessing to 'in_graph'",
            "preprocessing-of-integers",
        )
    return preprocessing, warnings


def _fed_with(model, into: Input, asked: str, path: Path) -> tuple[str, tuple[str, ...]]:
    try:
        front = read_front(model, into.shape, into.dtype)
    except GdrdError as error:
        if asked != "auto":
            return asked, ()
        raise GdrdError(f"{path}: {error}; set the preprocessing that it needs: {CHOICES}", error.code) from error
    if asked == "auto":
        return front.preprocessing, (f"{path}: {front.warning}: {CHOICES}",) if front.warning else ()
    same = all(np.allclose(a, b, rtol=0.05) for a, b in zip(*map(parse_preprocessing, (asked, front.preprocessing))))
    if same or not front.proven:
        return asked, ()
    return asked, (
        f"{path} is fed with the preprocessing {asked!r}, but by the constants of its graph it needs "
        f"{front.preprocessing!r}",
    )
