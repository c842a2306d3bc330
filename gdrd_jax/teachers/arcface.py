"""The discriminative teacher T_d: a face recognizer as an ONNX file."""

import logging
import os
import threading
from pathlib import Path

import numpy as np

from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.registry import discriminative_teachers
from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.interface import DiscriminativeOptions, DiscriminativeTeacher, no_gradients, require_file
from gdrd_jax.teachers.onnx_files import load_onnx, onnx_sha256
from gdrd_jax.teachers.onnx_graph import make_batch_dynamic, reshapes_a_batch_of_one
from gdrd_jax.teachers.onnx_ports import Input, check_input, check_output, choose_output, read_input
from gdrd_jax.teachers.onnx_session import computes_batches, fed_with, open_session, unloadable
from gdrd_jax.teachers.onnx_torch import agrees, flat, in_torch
from gdrd_jax.teachers.preprocessing import parse_preprocessing
from gdrd_jax.utils.errors import GdrdError, first_line, require

BATCH, TENSOR_BATCH, COMPARED = 64, 1024, 8
LOG = logging.getLogger(__name__)


@discriminative_teachers.register("onnx")
class ArcFace(DiscriminativeTeacher):
    """A recognizer as an ONNX file, run by torch on a GPU where onnx2torch converts it rightly, else by ONNX Runtime.

    Files that declare their initializers as inputs, carry block-quantized weights or fix the
    batch at 1 are mended in memory: OpenCV's `face_recognition_sface_2021dec_int8bq.onnx` is
    all three.

    Args:
      path: ONNX file with one input, `[N, 3, S, S]` or `[N, S, S, 3]`, of a float type or uint8, and an output `[N, D]`
        or `[N, D, 1, 1]` among others. External data lies beside it.
      preprocessing: see `parse_preprocessing`. "auto" is what the constants at the front of the graph say, see
        `onnx_front.read_front`, else "arcface".
      precision: "float32", or "bfloat16" for torch.
      backend: "torch", "onnxruntime", or "auto": torch where there is a GPU for it. onnx2torch converts some
        graphs wrongly: torch's embeddings are compared with ONNX Runtime's, of made-up images at once and of the
        first real faces, and where they differ ONNX Runtime takes over and the log says why.
      output: name of the output that is the embedding; "" is the only one that can be.
      input_size: S, which has to be given where the graph leaves it free; 0 is the graph's own.

    Attributes:
      dim: D.
      input_size: S.
      preprocessing: the one in use, "auto" resolved.
      backend: the one in use, "torch" or "onnxruntime".
      warnings: possible reasons for wrong embeddings, one sentence each; also logged.
      settings: the files' sha256, the preprocessing and the precision, the output if there are several, and S if the
        graph leaves it free and it is not 112.

    Raises:
      GdrdError: no such file, not such a network, its preprocessing, output or input size has to be given, or bfloat16
        changes its embeddings.
    """

    takes = frozenset({"preprocessing", "output", "input_size", "precision"})
    packages = ("onnx", "onnxruntime")

    @classmethod
    def check(cls, options: DiscriminativeOptions) -> None:
        super().check(options)
        parse_preprocessing(options.preprocessing)
        with unloadable(options.path):
            check_output(check_input(options.path, options.input_size), options.output, options.path)

    @classmethod
    def fingerprint_of(cls, options: DiscriminativeOptions) -> str:
        return onnx_sha256(options.path)

    @classmethod
    def load(cls, options: DiscriminativeOptions) -> "ArcFace":
        return cls(
            options.path, preprocessing=options.preprocessing, precision=options.precision, output=options.output,
            input_size=options.input_size,
        )  # fmt: skip

    def __init__(
        self, path: str | os.PathLike, *, preprocessing: str = "auto", precision: str = "float32",
        backend: str = "auto", output: str = "", input_size: int = 0,
    ):  # fmt: skip
        parse_preprocessing(preprocessing)
        path = Path(path)
        require_file(path)
        self._path, self._precision, self._batch, self._lock = path, precision, BATCH, threading.RLock()
        model = self._open(output, input_size)
        self.input_size = self._input.side
        self.preprocessing, self.warnings = fed_with(model, self._input, preprocessing, path)
        self._mean, self._std = parse_preprocessing(self.preprocessing)
        self.dim = self._try_out()
        self._converted = None
        on_gpu = torch_network.may_have_gpu() and torch_network.device().type == "cuda"
        if backend == "torch" or (backend == "auto" and on_gpu):
            self._converted = self._convert(model)
        self._trusted = self._converted is None  # nothing to check
        precision = precision if self.backend == "torch" else "float32"
        torch_network.check_precision(
            precision,
            lambda kind: self._in_torch(self._prepared(torch_network.trial(self.input_size)), kind), str(path),
        )  # fmt: skip
        self.settings = {
            "mean": self._mean.tolist(), "std": self._std.tolist(), "precision": precision, "sha256": onnx_sha256(path)
        }  # fmt: skip
        if self._outputs > 1:
            self.settings["output"] = self._output
        if self._input.free and self.input_size != FACE_SIZE:  # which was the only one up to version 0.4
            self.settings["input_size"] = self.input_size

    @property
    def backend(self) -> str:
        return "onnxruntime" if self._converted is None else "torch"

    def embed(self, faces: np.ndarray) -> np.ndarray:
        if not self._trusted and len(faces):
            self._check_conversion(self._prepared(faces[:COMPARED]))
        run = self._in_onnxruntime
        if self._converted is not None:
            run = lambda some: self._in_torch(self._prepared(some), self._precision)  # noqa: E731
        return torch_network.in_batches(run, faces, self._batch if self._converted is None else BATCH)

    def embed_tensor(self, faces) -> np.ndarray:
        """As `embed`, of a torch tensor `[N, 3, S, S]`, RGB in 0..255, of any float type and on any device."""
        faces = self._normalized(faces)
        if not self._trusted and len(faces):
            self._check_conversion(self._input.prepared(faces[:COMPARED].cpu().numpy()))
        if self._converted is None:
            return self._reference(self._input.prepared(faces.cpu().numpy()))
        faces = self._ordered(faces)
        return torch_network.in_batches(lambda some: self._in_torch(some, self._precision), faces, TENSOR_BATCH)

    def differentiable(self):
        network = self._converted or self._convert(self._open(self._output, self.input_size))
        if network is None:
            raise no_gradients(self._path, "onnx2torch cannot convert it; see the warning above")
        if not np.issubdtype(self._input.dtype, np.floating):
            raise no_gradients(self._path, f"it takes {self._input.dtype.__name__}")
        return lambda faces: network(self._ordered(self._normalized(faces))).float().reshape(len(faces), -1)

    def _normalized(self, faces):
        """Tensor `[N, 3, S, S]` in 0..255 -> `[N, S, S, 3]` with the network's mean and standard deviation."""
        torch = require("torch", "teachers")
        mean, std = (torch.as_tensor(value, device=faces.device).reshape(-1, 1, 1) for value in (self._mean, self._std))
        return ((faces - mean) / std).permute(0, 2, 3, 1)

    def _ordered(self, faces):
        """Tensor `[N, S, S, 3]` -> as the converted network takes it."""
        torch = require("torch", "teachers")
        faces = faces if self._input.last else faces.permute(0, 3, 1, 2)
        return faces.to(torch.from_numpy(np.empty(0, self._input.dtype)).dtype)

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

    def _open(self, wanted: str, side: int):
        """The patched graph, with the embedding as its only output; and a session of it."""
        with unloadable(self._path):
            original = load_onnx(self._path)
            model = make_batch_dynamic(_copy(original), free_reshapes=False)
            inputs = read_input(model, self._path, side)
            self._session = open_session(model)
            found = self._choose_input(inputs)
            self._output, self._outputs = choose_output(found, wanted, self._path), len(found)
            freed = make_batch_dynamic(original) if reshapes_a_batch_of_one(model) else None
            if freed and (other := self._same_of_one_face(freed, found[self._output])):
                model, self._session = freed, other
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
        side = self._input.side
        ramp = np.linspace(low, high, 3 * side**2, dtype=np.float32).reshape(1, side, side, 3)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {self._input.name: self._input.prepared(ramp)})))

    def _same_of_one_face(self, freed, expected: np.ndarray):
        """A session of the graph whose Reshapes were freed, if that gives what the file's own gives, else None."""
        try:
            other = open_session(freed)
            found = self._run_one(other)[self._output]
        except Exception:  # ONNX Runtime's errors have no common base
            return None
        return other if np.allclose(found, expected, rtol=1e-4, atol=1e-5) else None

    def _try_out(self) -> int:
        """Runs two faces, together and one by one; returns D."""
        faces = torch_network.trial(self.input_size)[1:3]
        try:
            singly = np.concatenate([self._in_onnxruntime(faces[:1]), self._in_onnxruntime(faces[1:])])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise GdrdError(
                f"{self._path} cannot be run on faces: {first_line(error)}; give a recognizer for "
                f"{self.input_size}x{self.input_size} pixels",
                "onnx-not-run",
            ) from error
        if not np.isfinite(singly).all():
            raise GdrdError(
                f"the embeddings of {self._path} are not finite; check its preprocessing ({self.preprocessing})",
                "teacher-not-finite",
            )
        if not computes_batches(self._in_onnxruntime, faces, singly):
            LOG.warning("%s computes batches wrongly (its batch is fixed inside); faces are run one by one", self._path)
            self._batch = 1
        return singly.shape[1]

    def _convert(self, model):
        """The network in torch, or None where that is not what the file says."""
        converted, faces = in_torch(model, self._path), torch_network.trial(self.input_size)
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
