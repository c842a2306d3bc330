"""ONNX recognizers as they come: several outputs, inputs of other types and orders, weights beside the graph."""

import os

import numpy as np
import onnx
import pytest
from conftest import raises
from onnx import TensorProto, helper, numpy_helper

from gdrd_jax.data.degradation import resize_all
from gdrd_jax.teachers import discriminative_options, load_discriminative
from gdrd_jax.teachers.arcface import ArcFace
from gdrd_jax.teachers.onnx_files import external_files, onnx_sha256
from gdrd_jax.utils.files import sha256

RNG = np.random.default_rng(0)
FACES = RNG.integers(256, size=(5, 112, 112, 3), dtype=np.uint8)
WEIGHT = RNG.normal(size=(3, 4)).astype(np.float32)
EXPECTED = ((FACES / 127.5 - 1).mean(axis=(1, 2)) @ WEIGHT).astype(np.float32)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
value = helper.make_tensor_value_info


def graph(*more, first=(), outputs=(("y", ["N", 4]),), inputs=(), shape=("N", 3, 112, 112), kind=FLOAT, constants=None):
    """The mean over the picture and a matrix, 3 -> 4 dimensions "y"; `more` nodes follow."""
    nodes = [
        *first, helper.make_node("ReduceMean", ["z" if first else "x"], ["p"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["p", "w"], ["y"]), *more,
    ]  # fmt: skip
    constants = {"w": WEIGHT, **(constants or {})}
    made = helper.make_graph(
        nodes, "g", [value("x", kind, shape), *inputs], [value(name, FLOAT, dims) for name, dims in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def saved(folder, model, **settings):
    onnx.save(model, folder / "m.onnx", **settings)
    return folder / "m.onnx"


NORM = helper.make_node("ReduceL2", ["y"], ["norm"], axes=[1], keepdims=1)
TWICE = helper.make_node("Add", ["y", "y"], ["twice"])


@pytest.mark.parametrize("outputs", [(("y", ["N", 4]), ("norm", ["N", 1])), (("norm", ["N", 1]), ("y", ["N", 4]))])
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_of_an_embedding_and_its_norm_the_embedding_is_taken(tmp_path, outputs, backend):
    teacher = ArcFace(saved(tmp_path, graph(NORM, outputs=outputs)), backend=backend)
    assert teacher.dim == 4 and teacher.settings["output"] == "y" and teacher.backend == backend
    np.testing.assert_allclose(teacher.embed(FACES), EXPECTED, atol=1e-5)


def test_of_several_embeddings_one_has_to_be_chosen(tmp_path):
    outputs = (("y", ["N", 4]), ("norm", ["N", 1]), ("twice", ["N", 4]))
    path = saved(tmp_path, graph(NORM, TWICE, outputs=outputs))
    with raises("onnx-outputs", "y [1, 4], norm [1, 1], twice [1, 4]", "--output y"):
        load_discriminative(path)
    first, second = (load_discriminative(path, output=name) for name in ("y", "twice"))
    np.testing.assert_allclose(second.embed(FACES), 2 * first.embed(FACES), rtol=1e-5)
    assert first.fingerprint != second.fingerprint
    with raises("onnx-output-missing", "'z'", "y [1, 4]"):
        load_discriminative(path, output="z")
    with raises("onnx-output-not-embedding", "'norm'"):
        load_discriminative(path, output="norm")


def test_a_single_output_changes_no_fingerprint(tmp_path):
    teacher = load_discriminative(saved(tmp_path, graph()), output="y")
    assert set(teacher.settings) == {"mean", "std", "precision", "sha256"}


@pytest.mark.parametrize(
    "last, dims",
    [
        ([], None),  # no shape declared
        ([helper.make_node("Unsqueeze", ["y", "axes"], ["e"])], ["N", 4, 1, 1]),
        ([helper.make_node("Unsqueeze", ["y", "axes"], ["e"])], None),
        ([helper.make_node("Squeeze", ["y", "first"], ["e"])], [4]),  # a batch of one only
        ([helper.make_node("Reshape", ["y", "all"], ["e"])], [4]),
    ],
)
def test_the_shape_of_the_output_is_found_by_running(tmp_path, last, dims):
    constants = {"axes": np.array([2, 3]), "first": np.array([0]), "all": np.array([-1])}
    teacher = load_discriminative(
        saved(tmp_path, graph(*last, outputs=(("e" if last else "y", dims),), constants=constants))
    )
    assert teacher.dim == 4
    np.testing.assert_allclose(teacher.embed(FACES), EXPECTED, atol=1e-5)


def test_a_network_without_an_embedding_is_refused(tmp_path):
    with raises("onnx-no-embedding", "norm [1, 1]"):
        load_discriminative(saved(tmp_path, graph(NORM, outputs=(("norm", ["N", 1]),))))
    maps = helper.make_node("Identity", ["x"], ["maps"])
    with raises("onnx-no-embedding", "maps [1, 3, 112, 112]"):
        load_discriminative(saved(tmp_path, graph(maps, outputs=(("maps", None),))))


def to_float(name="x"):
    return helper.make_node("Cast", [name], ["z"], to=FLOAT)


LAST = helper.make_node("Transpose", ["x"], ["z"], perm=[0, 3, 1, 2])


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": HALF, "first": [to_float()]},
        {"kind": TensorProto.DOUBLE, "first": [to_float()]},
        {"shape": ("N", 112, 112, 3), "first": [LAST]},
        {"shape": (1, 112, 112, 3), "first": [LAST]},
        {"shape": ("N", 3, "H", "W")},
        {"shape": ("N", "H", "W", 3), "first": [LAST]},
        {"shape": (0, 3, -1, -1)},
        {"shape": ("N", "a", "b", "c")},
        {"shape": ("N", "a", "b", "c"), "first": [LAST]},
        {"shape": None},
        {"shape": None, "first": [LAST]},
    ],
)
def test_inputs_of_other_types_orders_and_sizes(tmp_path, settings):
    path, free = saved(tmp_path, graph(**settings)), 112 not in (settings.get("shape", (112,)) or ())
    if free:
        with raises("onnx-input-size", path, "config.discriminative.input_size"):
            load_discriminative(path)
    teacher = load_discriminative(path, input_size=112 if free else 0)
    assert teacher.preprocessing == "arcface" and teacher.input_size == 112
    np.testing.assert_allclose(teacher.embed(FACES), EXPECTED, atol=2e-3)


@pytest.mark.parametrize(
    "settings, code, fact",
    [
        ({"shape": ("N", 3, 112, 96)}, "onnx-input-shape", "images of [N, 3, 112, 96]"),
        ({"shape": ("N", 1, 112, 112)}, "onnx-input-shape", "images of [N, 1, 112, 112]"),
        ({"shape": ("N", 112)}, "onnx-input-shape", "images of [N, 112]"),
        ({"kind": TensorProto.BFLOAT16, "first": [to_float()]}, "onnx-input-type", "bfloat16"),
        ({"kind": TensorProto.STRING}, "onnx-input-type", "float32"),
    ],
)
def test_inputs_that_are_no_faces_are_named(tmp_path, settings, code, fact):
    with raises(code, fact, "[N, 3, 112, 112]" if code == "onnx-input-shape" else "float32"):
        load_discriminative(saved(tmp_path, graph(**settings)))


@pytest.mark.parametrize("side", [64, 160, 224])
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_the_input_size_is_that_of_the_graph(tmp_path, side, backend):
    faces = resize_all(FACES, side)
    expected = (faces / 127.5 - 1).mean(axis=(1, 2)) @ WEIGHT
    teacher = ArcFace(saved(tmp_path, graph(shape=("N", 3, side, side))), backend=backend)
    assert teacher.input_size == side and "input_size" not in teacher.settings  # the file says it
    np.testing.assert_allclose(teacher.embed(faces), expected, atol=1e-4)
    assert load_discriminative(tmp_path / "m.onnx", input_size=side).fingerprint == teacher.fingerprint
    with raises("onnx-input-size", tmp_path / "m.onnx", f"[N, 3, {side}, {side}]", 112):
        load_discriminative(tmp_path / "m.onnx", input_size=112)
    free = ArcFace(saved(tmp_path, graph(shape=("N", 3, "H", "W"))), backend=backend, input_size=side)
    np.testing.assert_allclose(free.embed(faces), expected, atol=1e-4)
    assert free.settings["input_size"] == side
    assert "input_size" not in load_discriminative(tmp_path / "m.onnx", input_size=112).settings  # as up to 0.4


def test_several_inputs_are_named(tmp_path):
    add = helper.make_node("Add", ["y", "age"], ["e"])
    model = graph(add, inputs=[value("age", FLOAT, ["N", 4])], outputs=(("e", ["N", 4]),))
    with raises("onnx-inputs", "x [N, 3, 112, 112], age [N, 4]"):
        load_discriminative(saved(tmp_path, model))


@pytest.mark.parametrize("sides", [[112, 112], ["H", "W"]])
@pytest.mark.parametrize("channels", [4, 112])
def test_slopes_as_mxnet_writes_them_are_of_channels(tmp_path, channels, sides):
    """Two PRelus behind one another; with 112 channels ONNX Runtime would take the slopes for one a column."""
    kernels = [RNG.normal(size=(channels, before, 1, 1)).astype(np.float32) for before in (3, channels)]
    kernels[1] /= channels
    slopes = [RNG.uniform(-1, 1, channels).astype(np.float32) for _ in kernels]
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["c0"]), helper.make_node("PRelu", ["c0", "s0"], ["p0"]),
        helper.make_node("Conv", ["p0", "k1"], ["c1"]), helper.make_node("PRelu", ["c1", "s1"], ["p1"]),
        helper.make_node("GlobalAveragePool", ["p1"], ["g"]), helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("PRelu", ["f", "s0"], ["y"]),  # of vectors: as it is
    ]  # fmt: skip
    constants = {"k0": kernels[0], "k1": kernels[1], "s0": slopes[0], "s1": slopes[1]}
    made = helper.make_graph(
        nodes, "g", [value("x", FLOAT, ["N", 3, *sides])], [value("y", FLOAT, ["N", channels])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    path = saved(tmp_path, helper.make_model(made, opset_imports=[helper.make_opsetid("", 9)], ir_version=4))
    x = (FACES[:2] / 127.5 - 1).astype(np.float32)
    for kernel, slope in zip(kernels, slopes):
        x = x @ kernel[:, :, 0, 0].T
        x = np.where(x < 0, slope * x, x)
    expected = x.mean(axis=(1, 2))
    expected = np.where(expected < 0, slopes[0] * expected, expected)
    teacher = load_discriminative(path, input_size=0 if 112 in sides else 112)
    np.testing.assert_allclose(teacher.embed(FACES[:2]), expected, atol=1e-4)


BESIDE = {"save_as_external_data": True, "size_threshold": 0}


@pytest.mark.parametrize("convert", [False, True])
def test_external_data_is_read_from_anywhere_and_is_in_the_fingerprint(tmp_path, monkeypatch, convert):
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    model = graph(TWICE, outputs=(("twice", ["N", 4]),))
    scale = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "k")
    # A constant inside a node, whose data lies beside it, too.
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=scale))
    model.graph.node[1].input[0] = "scaled"
    model.graph.node.insert(1, helper.make_node("Mul", ["x", "k"], ["scaled"]))
    path = saved(folder, model, all_tensors_to_one_file=False, convert_attribute=convert, **BESIDE)
    files = external_files(path)
    assert len(files) == (2 if convert else 1)
    monkeypatch.chdir(elsewhere)
    teacher = load_discriminative(path)
    np.testing.assert_allclose(teacher.embed(FACES), 2 * EXPECTED, atol=1e-4)
    monkeypatch.chdir(folder)
    assert load_discriminative("m.onnx").fingerprint == teacher.fingerprint
    for file in files:
        before = file.read_bytes()
        file.write_bytes((np.frombuffer(before, np.float32) * np.float32(0.9)).tobytes())
        other = load_discriminative(path)
        assert other.fingerprint != teacher.fingerprint
        np.testing.assert_allclose(other.embed(FACES), 0.9 * 2 * EXPECTED, atol=1e-4)
        file.write_bytes(before)
    assert onnx_sha256(path) == teacher.settings["sha256"]


def test_a_graph_alone_has_the_hash_of_its_file(tmp_path):
    path = saved(tmp_path, graph())
    assert external_files(path) == [] and onnx_sha256(path) == sha256(path)


def test_external_data_behind_links_is_read(tmp_path):
    """As in the cache of Hugging Face."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir(), snapshot.mkdir()
    saved(blobs, graph(), location="m.data", **BESIDE)
    for name in ("m.onnx", "m.data"):
        os.symlink(f"../blobs/{name}", snapshot / name)
    np.testing.assert_allclose(load_discriminative(snapshot / "m.onnx").embed(FACES), EXPECTED, atol=1e-5)


def test_external_data_that_is_not_there_is_one_sentence(tmp_path):
    path = saved(tmp_path, graph(), location="m.data", **BESIDE)
    whole = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(whole[:20])
    with raises("onnx-data-truncated", tmp_path / "m.data", " w;"):
        load_discriminative(path)
    (tmp_path / "m.data").unlink()
    with raises("onnx-data-missing", "'m.data'", tmp_path):
        load_discriminative(path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../secret"
    onnx.save(model, path)
    with raises("onnx-data-outside", "'../secret'"):
        load_discriminative(path)


def test_more_than_protobuf_can_hold_is_refused_at_once(tmp_path):
    path = saved(tmp_path, graph(), location="m.data", **BESIDE)
    with (tmp_path / "m.data").open("ab") as file:
        file.truncate(2**31)  # a hole; takes no room
    with raises("onnx-too-large", "2.0 GiB"):
        load_discriminative(path)


@pytest.mark.parametrize(
    "name, dims",
    [("cls", [1, 6400, 1]), ("map", ["N", 112, 112]), ("age", ["N", 1])],
)
def test_a_graph_that_declares_no_embedding_is_refused_by_its_header(tmp_path, name, dims):
    """A detector's scores, a map of pixels, and one number; the graph itself would give another shape."""
    path = saved(tmp_path, graph(outputs=((name, dims),)))
    options = discriminative_options(path)
    with raises("onnx-no-embedding", path, name):
        ArcFace.check(options)
    ArcFace.check(discriminative_options(saved(tmp_path, graph(outputs=((name, ["N", "D"]),)))))  # not known before


def test_an_embedding_of_few_numbers_is_warned_of(tmp_path, caplog):
    ArcFace.check(discriminative_options(saved(tmp_path, graph(outputs=(("y", ["N", 512]),)))))
    assert not caplog.text
    ArcFace.check(discriminative_options(saved(tmp_path, graph(outputs=(("y", ["N", 2]),)))))
    assert "m.onnx" in caplog.text and "y has 2 numbers" in caplog.text
