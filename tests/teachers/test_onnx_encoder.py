"""A generative teacher that is no diffusion network: any ONNX encoder."""

import numpy as np
import onnx
import pytest
from conftest import raises, save_recognizer, tiny_config, use_tiny_teachers
from onnx import TensorProto, helper, numpy_helper

from gdrd_jax.data.degradation import resize_all
from gdrd_jax.pipeline import runner
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import generative
from gdrd_jax.teachers import SuperResolver, load_generative
from gdrd_jax.teachers.onnx_encoder import last_residual_sum

RNG = np.random.default_rng(0)
LOW = RNG.integers(256, size=(5, 16, 16, 3), dtype=np.uint8)
WEIGHT = RNG.normal(size=(8, 3, 1, 1)).astype(np.float32)
node, value = helper.make_node, helper.make_tensor_value_info
ENCODER = [
    node("Conv", ["x", "w"], ["conv"]), node("Relu", ["conv"], ["act"]),
    node("AveragePool", ["act"], ["code"], kernel_shape=[4, 4], strides=[4, 4]),
]  # fmt: skip
DECODER = [  # fails when it is run
    node("Reshape", ["code", "wrong"], ["z"]), node("Flatten", ["z"], ["y"]), node("ReduceMean", ["code"], ["mean"]),
]  # fmt: skip


def save(folder, nodes=(*ENCODER, *DECODER), *, shape=("N", 3, 32, 32), outputs=("y",), kind=TensorProto.FLOAT, **more):
    constants = {"w": WEIGHT, "wrong": np.array([7, 7, 7, 7]), **more}
    graph = helper.make_graph(
        nodes, "g", [value("x", kind, shape)], [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    path = folder / "encoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def expected(side, mean=127.5, std=127.5, pool=4):
    x = (np.float64(resize_all(LOW, side, "bicubic")) - mean) / std
    act = np.maximum(x @ WEIGHT[:, :, 0, 0].T, 0)
    return act.reshape(len(LOW), side // pool, pool, side // pool, pool, 8).mean(axis=(2, 4)).transpose(0, 3, 1, 2)


def test_a_tap_is_any_tensor_and_what_comes_after_it_is_not_run(tmp_path):
    path = save(tmp_path)
    teacher = load_generative("onnx", path, tap="code")
    assert teacher.taps == ("conv", "act", "code", "z", "mean") and not isinstance(teacher, SuperResolver)
    found = teacher.features(LOW)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(32), atol=1e-5)
    several = teacher.features_at(LOW, ("act", "code"))
    np.testing.assert_allclose(several["act"], expected(32, pool=1), atol=1e-5)
    np.testing.assert_array_equal(several["code"], found)
    assert teacher.fingerprint != load_generative("onnx", path, tap="act").fingerprint
    assert teacher.settings["input_size"] == 32 and "timestep" not in teacher.settings


def test_the_last_residual_sum_is_no_added_constant_and_has_enough_positions(tmp_path):
    nodes = [
        *ENCODER,  # "code" is 8x8
        node("Add", ["code", "code"], ["sum"]), node("Add", ["sum", "bias"], ["biased"]),
        node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones((1, 8, 8, 8), np.float32))),
        node("Add", ["biased", "one"], ["shifted"]),
        node("Unsqueeze", ["row", "axes"], ["reshaped"]), node("Add", ["shifted", "reshaped"], ["moved"]),
        node("Transpose", ["act"], ["last"], perm=[0, 2, 3, 1]), node("Add", ["last", "last"], ["nhwc"]),
        node("AveragePool", ["shifted"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Add", ["pooled", "pooled"], ["small"]), node("Flatten", ["small"], ["y"]), node("Add", ["y", "y"], ["z"]),
    ]  # fmt: skip
    constants = {"bias": np.ones((1, 8, 1, 1), np.float32), "row": np.ones((1, 1, 8), np.float32)}
    model = onnx.load(save(tmp_path, nodes, outputs=("z",), axes=np.array([0]), **constants))
    sums = [last_residual_sum(model, side) for side in (9, 8, 4, 3, 2, 1)]
    assert sums == ["", "sum", "sum", "sum", "small", "small"]


@pytest.mark.parametrize(
    "settings, loaded, how",
    [
        ({"shape": ("N", 3, "h", "w")}, {"input_size": 16}, {"side": 16}),
        ({"shape": None}, {"input_size": 64}, {"side": 64}),
        ({}, {"preprocessing": "unit"}, {"side": 32, "mean": 0, "std": 255}),
        ({"shape": (1, 3, 32, 32)}, {}, {"side": 32}),
        (
            {"kind": TensorProto.UINT8, "nodes": [node("Cast", ["x"], ["c"], to=1), node("Conv", ["c", "w"], ["conv"]),
             *ENCODER[1:]], "outputs": ["code"]}, {}, {"side": 32, "mean": 0, "std": 1},
        ),
        (
            {"shape": ("N", 32, 32, 3), "nodes": [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
             node("Conv", ["t", "w"], ["conv"]), *ENCODER[1:]], "outputs": ["code"]}, {}, {"side": 32},
        ),
    ],
)  # fmt: skip
def test_any_size_type_order_and_preprocessing(tmp_path, settings, loaded, how):
    teacher = load_generative("onnx", save(tmp_path, **settings), tap="code", **loaded)
    np.testing.assert_allclose(teacher.features(LOW), expected(**how), rtol=1e-4, atol=1e-4)


def test_a_batch_that_is_fixed_inside_is_run_one_by_one(tmp_path, caplog):
    nodes = [
        *ENCODER[:2], node("Reshape", ["act", "one"], ["r"]),
        node("AveragePool", ["r"], ["code"], kernel_shape=[4, 4], strides=[4, 4]),
    ]  # fmt: skip
    path = save(tmp_path, nodes, shape=(1, 3, 32, 32), outputs=["code"], one=np.array([1, 8, 32, 32]))
    teacher = load_generative("onnx", path, tap="code")
    assert "images are run singly" in caplog.text
    np.testing.assert_allclose(teacher.features(LOW), expected(32), atol=1e-5)
    np.testing.assert_allclose(teacher.features_at(LOW, ("code",))["code"], expected(32), atol=1e-5)


def test_mistakes_are_one_sentence(tmp_path):
    def refused(code, *facts, **settings):
        with raises(code, *facts):
            load_generative("onnx", path, **{"tap": "code", **settings})

    path = save(tmp_path)
    refused("teacher-tap", "'codes'", path, "code", tap="codes")
    refused("teacher-tap", path, "code, z, mean", tap="")
    refused("teacher-tap-shape", "'y'", path, "2 dimensions", tap="y")
    refused("onnx-input-size", path, "32, 32", 64, "config.generative.input_size", input_size=64)
    refused("teacher-option", "'onnx'", "'bfloat16'", precision="bfloat16")
    refused("entry-setting", "'onnx'", "'timestep'", "preprocessing", timestep=0)
    refused("entry-setting", "'onnx'", "'unti'", preprocessing="unti")
    path = save(tmp_path, shape=("N", 3, "h", "w"))
    refused("onnx-input-size", path, "config.generative.input_size")
    path = save(tmp_path, w=np.full_like(WEIGHT, np.inf))
    refused("teacher-not-finite", path, "code")
    nodes = [node("Reshape", ["x", "flat"], ["code"])]  # whose number of dimensions only running it shows
    path = save(tmp_path, [node("Identity", ["s"], ["flat"]), *nodes], outputs=["code"], s=np.array([1, -1]))
    refused("teacher-tap-shape", path)
    path.write_bytes(path.read_bytes()[:40])
    refused("onnx-unloadable", path)
    path = tmp_path / "encoder.pth"
    path.write_bytes(b"\x80\x02}q\x00.")
    refused("generative-not-onnx", path)
    path = tmp_path / "none.onnx"
    refused("generative-none", path)


def test_mistakes_are_found_before_any_work(faces_folder, tmp_path):
    config = use_tiny_teachers(tiny_config(faces_folder))
    config.generative.update(kind="onnx", path=str(save(tmp_path)), tap="cod")
    with raises("teacher-tap", "'cod'", "code"):
        runner.run(config, tmp_path / "run")
    config.generative.update(tap="code", path=str(save_recognizer(tmp_path / "m.onnx")))
    with raises("teacher-tap", "'code'", "m.onnx"):
        runner.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_stores_its_features(faces_folder, tmp_path):
    config = use_tiny_teachers(tiny_config(faces_folder))
    path = save(tmp_path)
    config.generative.update(kind="onnx", path=str(path), tap="code", settings={"preprocessing": "unit"})
    runner.run(config, tmp_path / "run", ("generative",))
    run = Run.open(tmp_path / "run")
    low, found = (run.store(step, "test").read(0) for step in ("views", "generative"))
    teacher = load_generative("onnx", path, tap="code", preprocessing="unit")
    np.testing.assert_allclose(found, teacher.features(low), rtol=1e-2, atol=1e-3)  # stored as float16
    before = generative.files(config)
    assert set(before) == {"tap", "input_size", "preprocessing", "encoder.onnx"}
    save(tmp_path, w=2 * WEIGHT)
    assert generative.files(config)["encoder.onnx"] != before["encoder.onnx"]
