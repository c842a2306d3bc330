import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import raises
from flax import nnx

from gdrd_jax.export import networks
from gdrd_jax.inference.quality import Quality
from gdrd_jax.models import arguments, weights
from gdrd_jax.models.arguments import RESOLUTIONS
from gdrd_jax.models.norm import BatchNorm
from gdrd_jax.models.student import abstract_student, embed, embed_with_lengths
from gdrd_jax.models.students.gdrd import GDRDStudent
from gdrd_jax.registry import students

SETTINGS = {"resolution": 16, "width": 0.0625, "hidden": (16,), "embedding_dim": 8}
METADATA = {"kernel": "area", "fingerprint": "0123"}
VARIANTS = [
    {"resolution": 8, "head_stages": 1},
    pytest.param({"resolution": 16, "hidden": ()}, marks=pytest.mark.slow),
    {"resolution": 16, "hidden": (16, 12), "head_stages": 2},
    pytest.param({"resolution": 32, "head_stages": 1, "hidden": ()}, marks=pytest.mark.slow),
]
OTHERS = ("mobilenet", "mobilenet_v3_se", "siamese", "directcaps")  # whose graphs are written from their jaxprs


def student(**changes):
    """One whose normalizations do something."""
    asked, random = {**SETTINGS, **changes}, np.random.default_rng(1)
    name = asked.get("name", arguments.DEFAULT)
    if "hidden" not in arguments.fields(name):
        del asked["hidden"]
    model = abstract_student(asked)

    def trained(value):
        if len(value.shape) == 1:
            return np.float32(random.uniform(0.01, 1.5, value.shape))
        return np.float32(random.normal(size=value.shape) * np.prod(value.shape[:-1]) ** -0.5)

    nnx.update(model, jax.tree.map(trained, nnx.state(model)))
    if name in OTHERS:  # normalizations that fit badly make all images alike in deep networks, or rounding errors large
        gain = 2 if name == "mobilenet" else 1
        for _, layer in nnx.iter_modules(model):
            if isinstance(layer, BatchNorm):
                layer.scale[...], layer.bias[...] = gain * layer.scale, layer.bias - 0.75
                layer.mean[...] = layer.mean / 10
    if name == "directcaps":
        model.head.weights[...] *= 10  # so that routing does something
    model.eval()
    return model


def smooth(count, side, seed=0):
    random = np.random.default_rng(seed)
    coarse = random.integers(256, size=(count, 5, 5, 3)).astype(np.float32)
    faces = np.stack([cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC) for face in coarse])
    return np.clip(faces, 0, 255).astype(np.uint8)


def embedded(model, faces):
    return np.asarray(jax.jit(lambda faces: embed(model, faces))(faces))


def run(model, faces):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"faces": faces})[0]


@pytest.mark.parametrize(
    "changes",
    [
        *VARIANTS,
        *(pytest.param({"name": name, "embedding_dim": 48}, marks=pytest.mark.slow) for name in ("wave", *OTHERS)),
    ],
    ids=str,
)
def test_onnx_and_stablehlo_give_the_students_embeddings(changes):
    model = student(**changes)
    faces = smooth(64, model.resolution)
    wanted = embedded(model, faces)
    assert np.linalg.norm(wanted[0] - wanted[1]) > 1e-3
    nhwc = networks.onnx_model(model, layout="nhwc", metadata=METADATA)
    nchw = networks.onnx_model(model, layout="nchw", metadata=METADATA)
    normalized = cv2.dnn.blobFromImages(list(faces), 1 / 127.5, mean=(127.5, 127.5, 127.5))
    function = networks.stablehlo_function(networks.stablehlo(model))
    for count in (1, 3, 64):
        np.testing.assert_allclose(run(nhwc, faces[:count]), wanted[:count], atol=1e-5)
        np.testing.assert_allclose(run(nchw, normalized[:count]), wanted[:count], atol=1e-5)
    for count in (1, 5):
        np.testing.assert_allclose(function(faces[:count]), wanted[:count], atol=1e-5)


EACH = [(name, resolution) for name in ("gdrd", "resnet") for resolution in RESOLUTIONS]


def traced(monkeypatch, model, layout="nhwc"):
    """The graph that a student without a writer of its own gets."""
    with monkeypatch.context() as patch:
        patch.setattr(networks, "is_residual", lambda student: False)
        return networks.onnx_model(model, layout=layout, metadata=METADATA)


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        ("gdrd", 8), ("resnet", 64),  # of each kind, and of strides 1 and 2 throughout
        *(pytest.param(*case, marks=pytest.mark.slow) for case in EACH if case not in (("gdrd", 8), ("resnet", 64))),
    ],
)  # fmt: skip
def test_both_ways_to_write_a_graph_agree(monkeypatch, name, resolution):
    model = student(name=name, resolution=resolution, width=0.03)
    written, faces = networks.onnx_model(model, layout="nhwc", metadata={}), smooth(3, resolution)
    wanted, other = run(written, faces), traced(monkeypatch, model)
    assert len(other.graph.node) > len(written.graph.node)
    for count in (1, 3):
        np.testing.assert_allclose(run(other, faces[:count]), wanted[:count], atol=1e-5)
    assert np.linalg.norm(wanted[0] - wanted[1]) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "resnet", "resolution": 8, "channels": 1},
        {"name": "directcaps", "resolution": 8, "embedding_dim": 48},
        {"name": "wave", "resolution": 32, "embedding_dim": 48, "width": 0.03},  # with strides in stem and stages
        pytest.param({"name": "mobilenet_v3_se", "resolution": 8, "embedding_dim": 48}, marks=pytest.mark.slow),
        *(
            pytest.param(
                {"name": name, "resolution": side, "width": width, "embedding_dim": 48}, marks=pytest.mark.slow
            )
            for name, side, width in [
                *((name, side, 0.03) for name, side in EACH),
                *((name, side, 0.25) for name in OTHERS for side in students[name].resolutions),
                *((name, 16, 1.0) for name in OTHERS),
            ]
        ),
    ],
    ids=str,
)
def test_graphs_from_jaxprs_give_the_students_embeddings(monkeypatch, changes):
    model = student(**changes)
    channels = model.shape.channels
    faces = np.ascontiguousarray(smooth(5, model.resolution)[..., :channels])
    wanted = embedded(model, faces)
    assert np.linalg.norm(wanted[0] - wanted[1]) > 1e-3
    np.testing.assert_allclose(run(traced(monkeypatch, model), faces), wanted, atol=1e-5)
    normalized = np.float32((faces.transpose(0, 3, 1, 2) - np.float32(127.5)) / np.float32(127.5))
    nchw = traced(monkeypatch, model, "nchw")
    assert [size.dim_value for size in nchw.graph.input[0].type.tensor_type.shape.dim][1:] == list(normalized.shape[1:])
    for count in (1, 5):
        np.testing.assert_allclose(run(nchw, normalized[:count]), wanted[:count], atol=1e-5)


def test_a_student_that_downsamples_in_another_way_has_its_graph_from_its_jaxpr():
    students = {name: abstract_student({**SETTINGS, "name": name, "resolution": 32}) for name in ("gdrd", "wave")}
    assert {name: networks.is_residual(model) for name, model in students.items()} == {"gdrd": True, "wave": False}
    students["gdrd"].backbone.downsampling = students["wave"].backbone.downsampling  # of the stem alone
    assert not networks.is_residual(students["gdrd"])


def test_a_student_that_computes_in_another_way_has_its_graph_from_its_jaxpr():
    class Brighter(GDRDStudent):
        def __call__(self, images):
            return super().__call__(jnp.minimum(images.astype(jnp.float32) * 2, 255))

    base, faces = student(), smooth(3, 16)
    model = nnx.eval_shape(lambda: Brighter(base.config, base.shape, rngs=nnx.Rngs(0)))
    weights.adopt(model, base)
    model.eval()
    wanted = embedded(model, faces)
    assert np.abs(wanted - embedded(base, faces)).max() > 1e-2
    graph = networks.onnx_model(model, layout="nhwc", metadata={})
    np.testing.assert_allclose(run(graph, faces), wanted, atol=1e-5)


def test_a_graph_from_a_jaxpr_can_be_quantized(monkeypatch):
    graph, faces = traced(monkeypatch, student(name="resnet")), smooth(64, 16, seed=2)
    small = networks.quantized(graph, smooth(100, 16, seed=1))
    assert any(weight.data_type == onnx.TensorProto.INT8 for weight in small.graph.initializer)
    assert (run(small, faces) * run(graph, faces)).sum(axis=1).min() > 0.98


def test_a_bfloat16_student_becomes_a_float32_graph():
    model = networks.onnx_model(student(dtype="bfloat16"), layout="nhwc", metadata={})
    faces = smooth(3, 16)
    np.testing.assert_allclose(run(model, faces), embedded(student(), faces), atol=1e-5)


@pytest.mark.parametrize(("layout", "shape"), [("nhwc", ["N", 16, 16, 3]), ("nchw", ["N", 3, 16, 16])])
def test_a_graph_says_what_it_takes_and_is(layout, shape):
    model = networks.onnx_model(student(), layout=layout, metadata=METADATA)
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
    sizes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert sizes == [shape, ["N", 8]]


def test_insightface_sees_that_faces_have_to_be_normalized_for_nchw():
    nodes = networks.onnx_model(student(), layout="nchw", metadata={}).graph.node
    assert not any(node.name.startswith(("Sub", "_minus", "Mul", "_mul", "bn_data")) for node in nodes[:8])


def test_a_face_and_its_mirror_image_have_one_embedding():
    model, faces = networks.onnx_model(student(), layout="nhwc", metadata={}), smooth(3, 16)
    np.testing.assert_allclose(run(model, faces), run(model, faces[:, :, ::-1]), atol=1e-6)


def test_stablehlo_is_for_cpus_and_cuda_and_any_batch():
    exported = jax.export.deserialize(bytearray(networks.stablehlo(student())))
    assert exported.platforms == ("cpu", "cuda")
    assert [str(aval) for aval in (*exported.in_avals, *exported.out_avals)] == ["uint8[N,16,16,3]", "float32[N,8]"]


def test_eight_bits_are_enough():
    model = student()
    graph = networks.onnx_model(model, layout="nhwc", metadata=METADATA)
    before = graph.SerializeToString()
    small = networks.quantized(graph, smooth(100, 16, seed=1))
    assert {entry.key: entry.value for entry in small.metadata_props} == METADATA
    assert "QuantizeLinear" in {node.op_type for node in small.graph.node}
    assert any(weight.data_type == onnx.TensorProto.INT8 for weight in small.graph.initializer)
    faces = smooth(64, 16, seed=2)
    found, wanted = run(small, faces), embedded(model, faces)
    assert (found * wanted).sum(axis=1).min() > 0.98
    assert np.abs(found - wanted).max() > 1e-4
    again = networks.quantized(graph, smooth(100, 16, seed=1))
    assert again.SerializeToString(deterministic=True) == small.SerializeToString(deterministic=True)
    assert graph.SerializeToString() == before


def test_eight_bits_need_faces():
    graph = networks.onnx_model(student(), layout="nhwc", metadata={})
    with raises("calibration-missing"):
        networks.quantized(graph, smooth(1, 16)[:0])


def test_weights_come_back_as_they_were(tmp_path):
    model, path = student(head_stages=1), tmp_path / "student.safetensors"
    weights.save_safetensors(model, path, METADATA)
    arrays, metadata = weights.load_safetensors(path)
    assert metadata == METADATA
    assert list(arrays) == sorted(arrays)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert arrays["backbone.blocks.0.conv1.kernel"].shape == (3, 3, 8, 8)
    assert {"head.norm.mean", "head.layers.1.bias", "backbone.blocks.2.shortcut.layers.0.kernel"} <= set(arrays)
    other = abstract_student({**SETTINGS, "head_stages": 1})
    weights.restore(other, arrays)
    other.eval()
    faces = smooth(3, 16)
    np.testing.assert_array_equal(embedded(other, faces), embedded(model, faces))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wave", *OTHERS])
def test_weights_of_every_student_come_back(name, tmp_path):
    model, other = student(name=name, embedding_dim=48), student(name=name, embedding_dim=48)
    nnx.update(other, jax.tree.map(jnp.zeros_like, nnx.state(other)))
    weights.save_safetensors(model, tmp_path / "student.safetensors", {})
    weights.restore(other, weights.load_safetensors(tmp_path / "student.safetensors")[0])
    jax.tree.map(np.testing.assert_array_equal, nnx.state(other), nnx.state(model))


def test_weights_of_another_student_are_named(tmp_path):
    model, path = student(), tmp_path / "student.safetensors"
    weights.save_safetensors(model, path, {})
    arrays, metadata = weights.load_safetensors(path)
    assert metadata == {}
    arrays["extra"] = arrays.pop("head.norm.mean")
    arrays["head.layers.1.bias"] = np.zeros(5, np.float32)
    before = np.asarray(model.head.layers[0].kernel[...])
    arrays["head.layers.0.kernel"] = before + 1
    with raises("weights-mismatch") as error:
        weights.restore(model, arrays)
    assert "head.norm.mean is missing; extra is not expected; head.layers.1.bias is [5] where [8] fits" in str(
        error.value
    )
    np.testing.assert_array_equal(model.head.layers[0].kernel[...], before)


def test_only_the_first_of_many_that_do_not_fit_are_named():
    with raises("weights-mismatch") as error:
        weights.restore(student(), {})
    assert re.search(r"is missing and \d+ more$", str(error.value))


def test_damaged_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "student.safetensors"
    with raises("file-missing", path):
        weights.load_safetensors(path)
    weights.save_safetensors(student(), path, {})
    whole = path.read_bytes()
    for data in (b"", b"junk" * 10, whole[:-1]):
        path.write_bytes(data)
        with raises("weights-unreadable", path):
            weights.load_safetensors(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with raises("not-written", tmp_path / "missing" / "student.safetensors"):
        weights.save_safetensors(student(), tmp_path / "missing" / "student.safetensors", {})


def test_an_onnx_file_can_have_the_quality_as_a_second_output():
    model = student(resolution=8)
    faces, quality = smooth(5, 8), Quality(3.0, -1.0, 0.01, 40, "made up")
    plain = networks.onnx_model(model, layout="nhwc", metadata={})
    scored = networks.onnx_model(model, layout="nhwc", metadata={}, quality=quality)
    assert [output.name for output in plain.graph.output] == ["embedding"]
    np.testing.assert_array_equal(run(scored, faces), run(plain, faces))
    session = onnxruntime.InferenceSession(scored.SerializeToString(), providers=["CPUExecutionProvider"])
    lengths = np.asarray(jax.jit(lambda faces: embed_with_lengths(model, faces)[1])(faces))
    np.testing.assert_allclose(session.run(["quality"], {"faces": faces})[0], quality(lengths), atol=1e-5)
