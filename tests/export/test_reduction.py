"""Faces of 112 pixels, reduced inside an ONNX graph as `data.degradation.resize` reduces them."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import raises
from test_networks import smooth, student

from gdrd_jax.data.degradation import resize_all
from gdrd_jax.data.task import ObjectTask
from gdrd_jax.export import formats, networks
from gdrd_jax.export.graph import Graph
from gdrd_jax.export.reduction import reduced
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.models.arguments import RESOLUTIONS


def faces(count, seed=0):
    """Smooth faces, and noise, in which sums are halves now and then."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), np.uint8)
    return np.concatenate([smooth(count, 112, seed), noise])


def normalized(faces):
    return cv2.dnn.blobFromImages([face[..., ::-1] for face in faces], 1 / 127.5, mean=(127.5,) * 3, swapRB=True)


@pytest.mark.parametrize("kernel", ["area", "bicubic"])
@pytest.mark.parametrize("side", [*RESOLUTIONS, 56, 128])
def test_pixels_are_those_of_opencv_and_pillow(kernel, side):
    graph, images, types = Graph(onnx), faces(8), onnx.TensorProto
    graph.add("Identity", reduced(graph, "x", 112, side, kernel), output="y")
    described = [onnx.helper.make_tensor_value_info(name, types.FLOAT, None) for name in "xy"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "reduction", [described[0]], [described[1]], graph.weights),
        opset_imports=[onnx.helper.make_opsetid("", networks.OPSET)], ir_version=networks.IR_VERSION,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {"x": np.float32(images.transpose(0, 3, 1, 2))})[0]
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), resize_all(images, side, kernel))


CASES = [
    ({"resolution": 8}, "area"),
    ({"resolution": 16}, "bicubic"),
    ({"resolution": 24, "mirror": False}, "area"),
    ({"name": "siamese", "resolution": 8, "embedding_dim": 48}, "area"),  # written from its jaxpr
]


@pytest.mark.parametrize(("changes", "kernel"), CASES, ids=str)
def test_three_runtimes_give_the_students_embeddings_of_full_size_faces(changes, kernel, tmp_path):
    model, path = student(**changes), tmp_path / "student.112.onnx"
    images = faces(3)
    wanted = Recognizer(model, kernel).embed(images)
    assert np.linalg.norm(wanted[0] - wanted[1]) > 1e-3
    formats.write("onnx_112", path, Recognizer(model, kernel), {}, images, half=False)
    x = normalized(images)
    session = onnxruntime.InferenceSession(path)
    for count in (1, 6):
        np.testing.assert_allclose(session.run(None, {"data": x[:count]})[0], wanted[:count], atol=1e-5)
    network = cv2.dnn.readNetFromONNX(str(path))
    for count in (1, 6):
        network.setInput(x[:count])
        np.testing.assert_allclose(network.forward(), wanted[:count], atol=1e-5)


def test_bgr_faces_have_a_file_of_their_own(tmp_path):
    recognizer, images = Recognizer(student(resolution=8), "area"), faces(3)
    formats.write("onnx_112_bgr", tmp_path / "student.112.bgr.onnx", recognizer, {}, images, half=False)
    session = onnxruntime.InferenceSession(tmp_path / "student.112.bgr.onnx")
    found = session.run(None, {"data": normalized(images)[:, ::-1]})
    np.testing.assert_allclose(found[0], recognizer.embed(images), atol=1e-5)
    opened = formats.opened("onnx_112_bgr", tmp_path / "student.112.bgr.onnx", recognizer, {})
    np.testing.assert_allclose(opened.embed(images), recognizer.embed(images), atol=1e-5)


def test_insightface_takes_the_file_for_one_of_its_recognizers(tmp_path):
    module = pytest.importorskip(
        "insightface.model_zoo.arcface_onnx", reason="insightface brings a second OpenCV: install it to run this test"
    )
    recognizer, images = Recognizer(student(), "area"), faces(3)
    formats.write("onnx_112", tmp_path / "student.112.onnx", recognizer, {}, images, half=False)
    found = module.ArcFaceONNX(str(tmp_path / "student.112.onnx"))
    assert (found.input_mean, found.input_std, found.input_size) == (127.5, 127.5, (112, 112))
    np.testing.assert_allclose(
        found.get_feat([face[..., ::-1] for face in images]), recognizer.embed(images), atol=1e-5
    )


@pytest.mark.parametrize(("name", "changes"), [("gdrd", {}), ("siamese", {"embedding_dim": 48})])
def test_the_graph_has_what_insightface_and_frigate_look_for(name, changes):
    graph = networks.onnx_model(student(name=name, **changes), layout="nchw_112", metadata={}).graph
    assert not any(node.name.startswith(("Sub", "_minus", "Mul", "_mul")) for node in graph.node[:8])
    (given,), (found,) = graph.input, graph.output
    sizes = [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim]
    assert (given.name, sizes, found.name) == ("data", ["N", 3, 112, 112], "embedding")


@pytest.mark.parametrize("channels", [1, 3])
def test_other_students_than_those_of_faces_are_refused(channels):
    recognizer = Recognizer(student(name="resnet", channels=channels), "area", task=ObjectTask(channels=channels))
    formats.check(["onnx", "onnx_nchw"], recognizer)
    for name in ("onnx_112", "onnx_112_bgr"):
        with raises("format-task", name, "64x64"):
            formats.check(["onnx", name], recognizer)
