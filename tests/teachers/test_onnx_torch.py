"""What onnx2torch converts wrongly, and gradients of ONNX recognizers."""

import numpy as np
import onnx
import pytest
import torch
from conftest import raises, save_linear_recognizer
from onnx import TensorProto, helper, numpy_helper

from gdrd_jax.teachers.arcface import ArcFace

SIDE = 8


def save_graph(path):
    """A recognizer with the operations that onnx2torch needs help with."""
    value, node = helper.make_tensor_value_info, helper.make_node
    constants = {
        "axis": np.array(1), "starts": np.array([SIDE, 0, 2]), "ends": np.array([-(2**31), 2**31, -1]),
        "axes": np.array([-1, 1, 2]), "steps": np.array([-2, 1, 3]), "rest": np.array([-1]), "zero": np.array([0]),
        "one": np.array([1]), "scale": np.linspace(1, 2, 24, dtype=np.float32),
        "shift": np.linspace(-1, 1, 24, dtype=np.float32),
    }  # fmt: skip
    nodes = [
        node("Slice", ["x", "starts", "ends", "axes", "steps"], ["s"]),  # columns 7, 5, 3, 1 and rows 2, 5
        node("CumSum", ["s", "axis"], ["sums"]),
        node("Shape", ["sums"], ["shape"]),
        node("Slice", ["shape", "zero", "one"], ["batch"]),
        node("Concat", ["batch", "rest"], ["flat"], axis=0),
        node("Reshape", ["sums", "flat"], ["r"]),  # to a shape that cannot be inferred
        node("LayerNormalization", ["r", "scale", "shift"], ["y"]),
    ]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g", [value("x", floats, ["N", 3, SIDE, SIDE])], [value("y", floats, ["N", "D"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.filterwarnings("error")  # torch before 2.15 warns of a list of slices
def test_what_onnx2torch_converts_wrongly_is_corrected(tmp_path):
    faces = np.random.default_rng(0).integers(256, size=(5, SIDE, SIDE, 3), dtype=np.uint8)
    path = save_graph(tmp_path / "m.onnx")
    found, reference = (ArcFace(path, preprocessing="arcface", backend=of) for of in ("torch", "onnxruntime"))
    np.testing.assert_allclose(found.embed(faces), reference.embed(faces), atol=1e-5)
    assert (found.backend, reference.backend, found.dim) == ("torch", "onnxruntime", 24)


@pytest.mark.parametrize("preprocessing", ["arcface", "imagenet"])
def test_the_gradient_of_an_onnx_recognizer_reaches_the_pixels(tmp_path, preprocessing):
    path, weight = save_linear_recognizer(tmp_path / "m.onnx", SIDE)
    teacher = ArcFace(path, preprocessing=preprocessing, backend="onnxruntime")
    faces = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, size=(2, 3, SIDE, SIDE)).astype(np.float32))
    embed = teacher.differentiable()
    np.testing.assert_allclose(embed(faces), teacher.embed_tensor(faces), rtol=1e-4, atol=1e-4)
    found = torch.autograd.functional.jacobian(lambda x: embed(x)[0], faces)
    expected = weight.reshape(-1, 3, SIDE, SIDE) / teacher._std.reshape(-1, 1, 1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)
    assert not found[:, 1].any()


def test_what_has_no_gradients_is_named(tmp_path, monkeypatch):
    path, _ = save_linear_recognizer(tmp_path / "pixels.onnx", SIDE, TensorProto.UINT8)
    with raises("teacher-no-gradients", path, "uint8"):
        ArcFace(path, preprocessing="in_graph").differentiable()
    monkeypatch.setattr("onnx2torch.convert", lambda model: 1 / 0)
    path, _ = save_linear_recognizer(tmp_path / "colors.onnx", SIDE)
    with raises("teacher-no-gradients", path, "onnx2torch"):
        ArcFace(path, preprocessing="arcface").differentiable()
