"""The generative teacher T_g as any ONNX encoder: of GAN inversion, of face restoration, of an autoencoder."""

import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gdrd_jax.data.degradation import resize_all
from gdrd_jax.registry import generative_teachers
from gdrd_jax.teachers.file_kind import ONNX, file_kind
from gdrd_jax.teachers.interface import GenerativeOptions, GenerativeTeacher
from gdrd_jax.teachers.onnx_files import load_onnx, onnx_sha256
from gdrd_jax.teachers.onnx_graph import make_batch_dynamic
from gdrd_jax.teachers.onnx_ports import Input, check_input, read_input
from gdrd_jax.teachers.onnx_session import computes_batches, fed_with, open_session, unloadable
from gdrd_jax.teachers.preprocessing import parse_preprocessing
from gdrd_jax.teachers.torch_network import in_batches, trial
from gdrd_jax.utils.errors import GdrdError, first_line

LOG = logging.getLogger(__name__)
BATCH = 32
SHOWN = 3  # names in an error
SETTING = "config.generative.input_size"


@generative_teachers.register("onnx")
class OnnxEncoder(GenerativeTeacher):
    """An encoder as an ONNX file, which ONNX Runtime runs in float32.

    Its input is one of `[N, 3, S, S]` or `[N, S, S, 3]`, of a float type or uint8; images are enlarged to S by Pillow's
    bicubic. A tap is the name of a float tensor `[N, C, h, w]` of the graph, an output or not.

    Raises:
      GdrdError: not such a graph; there is no such tap, or it is none of four dimensions; its features are not finite;
        its preprocessing or input size has to be given.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          preprocessing: how the input is normalized, as `discriminative.preprocessing`; "auto" goes by the constants at
            the front of the graph, else it is "arcface", -1 to 1.
        """

        preprocessing: str = "auto"

        def __post_init__(self) -> None:
            try:
                parse_preprocessing(self.preprocessing)
            except GdrdError as error:
                raise ValueError(str(error)) from error

    takes = frozenset({"input_size"})
    packages = ("onnx", "onnxruntime")

    @classmethod
    def check(cls, options: GenerativeOptions) -> None:
        super().check(options)
        if file_kind(options.path) != ONNX:
            raise GdrdError(f"config.generative.path: {options.path} is no ONNX file", "generative-not-onnx")
        with unloadable(options.path):
            _check_tap(options.tap, check_input(options.path, options.input_size, SETTING), options)

    @classmethod
    def files(cls, options: GenerativeOptions) -> dict[str, str]:
        return {options.path.name: onnx_sha256(options.path)} if options.path else {}

    @classmethod
    def load(cls, options: GenerativeOptions) -> "OnnxEncoder":
        return cls(options)

    def __init__(self, options: GenerativeOptions):
        path, tap = options.path, options.tap
        self._path, self._tap, self._batch, self._sessions = path, tap, BATCH, {}
        with unloadable(path):
            self._model = make_batch_dynamic(load_onnx(path), free_reshapes=False)
            inputs = read_input(self._model, path, options.input_size, SETTING)
            self.taps = tuple(dict.fromkeys([*map_names(self._model), tap]))
            self._mean, self._std = np.float32(0), np.float32(1)
            self._input = self._fitting(inputs)
        self.preprocessing, _ = fed_with(self._model, self._input, options.config.preprocessing, path)
        self._mean, self._std = parse_preprocessing(self.preprocessing)
        self._try_out()
        self.settings = {
            "kind": "onnx", "tap": tap, "input_size": self._input.side, "mean": self._mean.tolist(),
            "std": self._std.tolist(), "precision": "float32", "sha256": onnx_sha256(path),
        }  # fmt: skip

    def features(self, images: np.ndarray) -> np.ndarray:
        return in_batches(lambda some: self._run(some, (self._tap,))[0], images, self._batch)

    def features_at(self, images: np.ndarray, taps: tuple[str, ...]) -> dict[str, np.ndarray]:
        parts = [self._run(images[i : i + self._batch], taps) for i in range(0, len(images), self._batch)]
        return {tap: np.concatenate(found) for tap, found in zip(taps, zip(*parts))}

    def _run(self, images: np.ndarray, taps: tuple[str, ...]) -> list[np.ndarray]:
        if taps not in self._sessions:
            self._sessions[taps] = open_session(_as_far_as(self._model, taps))
        enlarged = resize_all(images, self._input.side, "bicubic").astype(np.float32)
        prepared = self._input.prepared((enlarged - self._mean) / self._std)
        return [np.float32(x) for x in self._sessions[taps].run(list(taps), {self._input.name: prepared})]

    def _fitting(self, inputs: list[Input]) -> Input:
        """The first format of the input, of those that the graph's shapes allow, with which it runs."""
        *others, last = inputs
        for self._input in others:
            try:
                self._run(trial(self._input.side)[:1], (self._tap,))
                return self._input
            except Exception:  # ONNX Runtime's errors have no common base
                pass
        return last

    def _try_out(self) -> None:
        """Runs two images, together and one by one."""
        images = trial(self._input.side)[1:3]
        try:
            singly = np.concatenate([self._run(images[i : i + 1], (self._tap,))[0] for i in (0, 1)])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise GdrdError(
                f"{self._path} cannot be run on images of {self._input.side}x{self._input.side} pixels: "
                f"{first_line(error)}; set {SETTING}, or export it again",
                "onnx-not-run",
            ) from error
        if singly.ndim != 4:
            raise _not_a_map(self._tap, self._path, f"is {list(singly.shape)} for two images")
        if not np.isfinite(singly).all():
            raise GdrdError(
                f"the features of {self._path} at tap {self._tap} are not finite; check its preprocessing "
                f"({self.preprocessing})",
                "teacher-not-finite",
            )
        if not computes_batches(lambda some: self._run(some, (self._tap,))[0], images, singly):
            LOG.warning("%s computes batches wrongly (its batch is fixed inside); images are run singly", self._path)
            self._batch = 1


def _check_tap(tap: str, model, options: GenerativeOptions) -> None:
    names = [name for node in model.graph.node for name in node.output if name]
    if tap in names:
        rank = len(_shapes(model).get(tap, range(4)))  # where it is not known, running the graph shows it
        if rank != 4:
            raise _not_a_map(tap, options.path, f"has {rank} dimensions" if rank else "is of another type")
        return
    if not tap:
        maps = ", ".join(map_names(model)[-SHOWN:]) or "none whose shape is known"
        raise GdrdError(
            f"config.generative.tap is not set; for the kind 'onnx' name a tensor [N, C, h, w] of {options.path}, "
            f"among the last ones {maps}",
            "teacher-tap",
        )
    near = ", ".join(difflib.get_close_matches(tap, names, n=SHOWN, cutoff=0.0))
    raise GdrdError(
        f"config.generative.tap is {tap!r}, and {options.path} has no such tensor; the nearest names are {near}",
        "teacher-tap",
    )


def _not_a_map(tap: str, path: Path, found: str) -> GdrdError:
    return GdrdError(
        f"config.generative.tap is {tap!r}, which {found} in {path}; choose a float tensor [N, C, h, w]",
        "teacher-tap-shape",
    )


def _shapes(model) -> dict[str, list[int]]:
    """Name to shape of the tensors whose shape can be inferred, 0 for an unknown dimension; of those that are not
    float, the empty shape."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # a graph with operations of its own; onnx's errors have no common base
        return {}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    return {
        name: [dim.dim_value for dim in kind.shape.dim] if kind.elem_type in floats else []
        for name, kind in types.items() if kind.HasField("shape")
    }  # fmt: skip


def map_names(model) -> list[str]:
    """Names of the float tensors `[N, C, h, w]`, in the order of the graph."""
    shapes = _shapes(model)
    return [name for node in model.graph.node for name in node.output if len(shapes.get(name, ())) == 4]


def last_residual_sum(model, side: int) -> str:
    """Name of the last feature map `[N, C, h, h]` of at least `side` rows in which a block's output is added to its
    input; "" if there is none whose shape can be inferred."""
    shapes, found = _shapes(model), ""
    constants = {"", *(tensor.name for tensor in model.graph.initializer)}
    for node in model.graph.node:
        if constants.issuperset(node.input):  # computed from constants alone, such as a reshaped bias
            constants.update(node.output)
        elif node.op_type == "Add" and constants.isdisjoint(node.input):
            shape = shapes.get(node.output[0], ())
            if len(shape) == 4 and shape[2] == shape[3] >= side:  # images are square, and [N, h, w, C] is no map
                found = node.output[0]
    return found


def _as_far_as(model, taps: tuple[str, ...]):
    """The part of a graph that computes these tensors, its outputs: the decoder behind an encoder is not run."""
    from onnx import ValueInfoProto

    part = type(model)()
    part.CopyFrom(model)
    wanted, nodes = set(taps), []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(_reads(node))
    for field, kept in (
        (part.graph.node, reversed(nodes)),
        (part.graph.initializer, [tensor for tensor in model.graph.initializer if tensor.name in wanted]),
        (part.graph.output, [ValueInfoProto(name=tap) for tap in taps]),
    ):
        del field[:]
        field.extend(kept)
    return part


def _reads(node) -> Iterator[str]:
    """Names of the tensors that a node reads, those that are read inside its branches and loops among them."""
    yield from node.input
    for attribute in node.attribute:
        for below in attribute.g.node:
            yield from _reads(below)
