"""Which pixels an ONNX recognizer is fed with under "auto": by the constants of its graph, in whatever operations."""

import numpy as np
import onnx
import pytest
from conftest import raises
from onnx import TensorProto, helper, numpy_helper

from gdrd_jax.teachers import load_discriminative
from gdrd_jax.teachers.preprocessing import parse_preprocessing

RNG = np.random.default_rng(0)
FACES = RNG.integers(256, size=(3, 112, 112, 3), dtype=np.uint8)
WEIGHT = RNG.normal(size=(3, 8)).astype(np.float32)
MEAN, STD = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
ONES, ZEROS = np.ones(3, np.float32), np.zeros(3, np.float32)


def node(kind, *inputs, to=("z",), **attributes):
    return helper.make_node(kind, inputs, to, **attributes)


def network(folder, nodes=(), constants=None, *, kind=TensorProto.FLOAT, shape=("N", 3, 112, 112), opset=17):
    """`nodes` make "z" of the input "x"; then the mean over the picture and a matrix, 3 -> 8 dimensions."""
    after = [
        node("GlobalAveragePool", "z" if nodes else "x", to=("p",)), node("Flatten", "p", to=("f",)),
        node("MatMul", "f", "w", to=("y",)),
    ]  # fmt: skip
    value, constants = helper.make_tensor_value_info, {"w": WEIGHT, **(constants or {})}
    graph = helper.make_graph(
        [*nodes, *after], "g", [value("x", kind, shape)], [value("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def f(value):
    return np.asarray(value, np.float32)


def expected(mean, std):
    """Of faces in 0..255."""
    mean, std = (np.ravel(np.float64(v)) for v in (mean, std))
    return ((np.float64(FACES) - mean) / std).mean(axis=(1, 2)) @ np.float64(WEIGHT)


def batch_norm(mean, variance, **learned):
    """Means of the three colors differ a little, as they do."""
    means = f([mean] * 3) + f([-0.02, 0, 0.02]) * f(variance) ** 0.5
    constants = {"g": ONES, "b": ZEROS, "m": means, "v": f([variance] * 3), **learned}
    return [node("BatchNormalization", "x", "g", "b", "m", "v", epsilon=0.0)], constants


IMAGENET = (255 * MEAN, 255 * STD)
TWO = [node("Sub", "x", "a", to=("s",)), node("Div", "s", "b")]
LINEAR = [node("Mul", "x", "a", to=("s",)), node("Add", "s", "b")]
CHANNELS = [
    node("Split", "x", "ones", to=("r", "g", "b"), axis=1),
    *(node("Sub", c, f"m{c}", to=(f"s{c}",)) for c in "rgb"),
    *(node("Div", f"s{c}", f"d{c}", to=(f"n{c}",)) for c in "rgb"),
    node("Concat", "nr", "ng", "nb", axis=1),
]  # fmt: skip
BY_CHANNEL = {f"m{c}": f(255 * MEAN.ravel()[i]) for i, c in enumerate("rgb")} | {
    f"d{c}": f(255 * STD.ravel()[i]) for i, c in enumerate("rgb")
}
INSIDE = {
    "Sub, Div": (TWO, {"a": f(127.5), "b": f(127.5)}, 127.5, 127.5),
    "Sub, Mul, as MXNet writes it": (
        [node("Sub", "x", "a", to=("s",)), node("Mul", "s", "b")], {"a": f([127.5]), "b": f([0.0078125])}, 127.5, 128),
    "Mul, Add": (LINEAR, {"a": 1 / (255 * STD), "b": -MEAN / STD}, *IMAGENET),
    "Mul, Add, the constant first": (
        [node("Mul", "a", "x", to=("s",)), node("Add", "b", "s")], {"a": f(1 / 127.5), "b": f(-1)}, 127.5, 127.5),
    "Add, Mul": (
        [node("Add", "x", "a", to=("s",)), node("Mul", "s", "b")], {"a": f(-127.5), "b": f(1 / 128)}, 127.5, 128),
    "Div, Sub": (
        [node("Div", "x", "a", to=("s",)), node("Sub", "s", "b")], {"a": f(127.5), "b": f(1)}, 127.5, 127.5),
    "Div alone": ([node("Div", "x", "a")], {"a": f(255)}, 0, 255),
    "a mean alone": ([node("Sub", "x", "a")], {"a": f([129.2, 104.8, 93.6]).reshape(3, 1, 1)}, [129.2, 104.8, 93.6], 1),
    "Constant nodes": (
        [node("Constant", to=("a",), value_float=127.5), node("Constant", to=("b",), value_floats=[127.5]), *TWO], {},
        127.5, 127.5),
    "constants of constants": (
        [node("Mul", "m", "k", to=("a",)), node("Mul", "d", "k", to=("b",)), *TWO],
        {"m": MEAN, "d": STD, "k": f(255)}, *IMAGENET),
    "channel after channel": (CHANNELS, {"ones": np.array([1, 1, 1]), **BY_CHANNEL}, *IMAGENET),
    "constants expanded to the input's shape": (
        [node("Shape", "x", to=("shape",)), node("Expand", "m", "shape", to=("a",)), *TWO],
        {"m": f(127.5), "b": f(127.5)}, 127.5, 127.5),
    "BatchNormalization instead of Sub and Div": (*batch_norm(127.5, 127.5**2, m=f([127.5] * 3)), 127.5, 127.5),
    "BatchNormalization whose scale and shift normalize": (
        *batch_norm(0, 1, m=ZEROS, g=f([1 / 127.5] * 3), b=f([-1] * 3)), 127.5, 127.5),
    "Resize first": (
        [node("Resize", "x", "", "half", to=("t",), mode="linear"), node("Sub", "t", "a", to=("s",)),
         node("Div", "s", "b")], {"half": f([1, 1, 0.5, 0.5]), "a": f(127.5), "b": f(127.5)}, 127.5, 127.5),
    "a convolution that scales": (
        [node("Conv", "x", "a", "b", group=3)],
        {"a": (1 / (255 * STD)).reshape(3, 1, 1, 1), "b": (-MEAN / STD).ravel()}, *IMAGENET),
    "BatchNormalization of bytes": (*batch_norm(115, 65.0**2), 115 + 65 * np.array([-0.02, 0, 0.02]), 65),
}  # fmt: skip
UNIT = {
    "Sub, Div": (TWO, {"a": MEAN, "b": STD}, *IMAGENET),
    "Sub, Div of a half": (TWO, {"a": f(0.5), "b": f(0.5)}, 127.5, 127.5),
    "Sub of a half": ([node("Sub", "x", "a")], {"a": f(0.5)}, 127.5, 255),
    "Mul, Sub": ([node("Mul", "x", "a", to=("s",)), node("Sub", "s", "b")], {"a": f(2), "b": f(1)}, 127.5, 127.5),
    "to bytes and back": (
        [node("Mul", "x", "k", to=("t",)), node("Sub", "t", "a", to=("s",)), node("Div", "s", "b")],
        {"k": f(255), "a": f(127.5), "b": f(127.5)}, 127.5, 127.5),
    "Clip first": (
        [node("Clip", "x", "zero", "one", to=("t",)), node("Sub", "t", "a", to=("s",)), node("Div", "s", "b")],
        {"zero": f(0), "one": f(1), "a": f(0.5), "b": f(0.5)}, 127.5, 127.5),
    "BatchNormalization instead of Sub and Div": (*batch_norm(0.5, 0.25, m=f([0.5] * 3)), 127.5, 127.5),
    "BatchNormalization": (*batch_norm(0.45, 0.25**2), 255 * (0.45 + 0.25 * np.array([-0.02, 0, 0.02])), 255 * 0.25),
}  # fmt: skip
ARCFACE = {
    "no front": ([], {}, 127.5, 127.5),
    "BatchNormalization that does nothing": (*batch_norm(0, 1, m=ZEROS), 127.5, 127.5),
    "colors swapped and swapped again": (
        [node("Gather", "x", "i", to=("s",), axis=1), node("Gather", "s", "i", axis=1)], {"i": np.array([2, 1, 0])},
        127.5, 127.5),
    "padded by nothing": ([node("Pad", "x", "pads")], {"pads": np.zeros(8, np.int64)}, 127.5, 127.5),
    "BatchNormalization": (
        *batch_norm(-0.05, 0.5**2), 127.5 + 127.5 * (-0.05 + 0.5 * np.array([-0.02, 0, 0.02])), 63.75),
    "BatchNormalization that learned": (
        *batch_norm(-0.05, 0.5**2, g=f([3, 3, 3]), b=f([7, 7, 7])),
        127.5 + 127.5 * (-0.05 + 0.5 * (np.array([-0.02, 0, 0.02]) - 7 / 3)), 63.75 / 3),
    "to ImageNet's": (
        [node("Add", "x", "one", to=("t",)), node("Div", "t", "two", to=("u",)), node("Sub", "u", "a", to=("s",)),
         node("Div", "s", "b")], {"one": f(1), "two": f(2), "a": MEAN, "b": STD}, *IMAGENET),
    "quantized": (
        [node("QuantizeLinear", "x", "q", "o", to=("s",)), node("DequantizeLinear", "s", "q", "o")],
        {"q": f(1 / 127), "o": np.int8(0)}, 127.5, 127.5),
}  # fmt: skip
CASES = [(n, v, what) for n, v in (("in_graph", INSIDE), ("unit", UNIT), ("arcface", ARCFACE)) for what in v]


@pytest.mark.parametrize("name, cases, what", CASES, ids=[f"{name}: {what}" for name, _, what in CASES])
def test_the_range_is_read_from_the_constants(tmp_path, caplog, name, cases, what):
    nodes, constants, mean, std = cases[what]
    teacher = load_discriminative(network(tmp_path, nodes, constants))
    assert teacher.preprocessing == name and teacher.warnings == () and not caplog.text
    np.testing.assert_allclose(teacher.embed(FACES), expected(mean, std), atol=5e-3)


def test_statistics_of_what_imagenet_normalized(tmp_path):
    teacher = load_discriminative(network(tmp_path, *batch_norm(0.1, 1.05**2)))
    assert teacher.preprocessing == "imagenet"


def cast(name="x"):
    return [helper.make_node("Cast", [name], ["z"], to=TensorProto.FLOAT)]


def test_bytes_need_no_constants_and_take_no_other_preprocessing(tmp_path):
    path = network(tmp_path, cast(), kind=TensorProto.UINT8)
    teacher = load_discriminative(path)
    assert teacher.preprocessing == "in_graph"
    np.testing.assert_allclose(teacher.embed(FACES), expected(0, 1), rtol=1e-4)
    with raises("preprocessing-of-integers", "'in_graph'"):
        load_discriminative(path, preprocessing="arcface")


def test_half_precision(tmp_path):
    half = {"a": np.float16(127.5), "b": np.float16(127.5)}
    path = network(tmp_path, [*TWO[:1], node("Div", "s", "b", to=("t",)), *cast("t")], half, kind=TensorProto.FLOAT16)
    teacher = load_discriminative(path)
    assert teacher.preprocessing == "in_graph"
    np.testing.assert_allclose(teacher.embed(FACES), expected(127.5, 127.5), atol=5e-3)


def test_channels_last_with_constants_of_their_own_shape(tmp_path):
    nodes = [*TWO[:1], node("Div", "s", "b", to=("t",)), node("Transpose", "t", perm=[0, 3, 1, 2])]
    path = network(
        tmp_path, nodes, {"a": 255 * MEAN.ravel(), "b": 255 * STD.ravel()}, shape=("N", 112, 112, 3)
    )  # fmt: skip
    teacher = load_discriminative(path)
    assert teacher.preprocessing == "in_graph"
    np.testing.assert_allclose(teacher.embed(FACES), expected(*IMAGENET), atol=1e-3)


@pytest.mark.parametrize(
    "nodes, constants",
    [
        ([node("Mul", "x", "a")], {"a": f(1 / 127.5)}),  # 0..2
        (TWO, {"a": f(0.3), "b": f(0.5)}),  # 0..1 as well as -1..1
        (*batch_norm(40, 9.0),),
        ([node("Clip", "x", "a", "b")], {"a": f(0), "b": f(1e-3)}),
    ],
)
def test_constants_that_fit_no_range_or_several_are_refused_with_the_choices(tmp_path, nodes, constants):
    path = network(tmp_path, nodes, constants)
    with raises("preprocessing-unclear", path, "unit, arcface, imagenet, in_graph, or MEAN/STD"):
        load_discriminative(path)
    assert load_discriminative(path, preprocessing="imagenet").warnings == ()


@pytest.mark.parametrize(
    "nodes, what",
    [
        ([node("Abs", "x")], "Abs"),
        ([node("ReduceMean", "x", to=("m",)), node("Sub", "x", "m")], "ReduceMean, Sub"),
        ([node("Sub", "x", "a", to=("s",)), node("Abs", "s")], "Abs"),
    ],
)
def test_a_front_that_is_not_understood_is_a_guess_that_is_said(tmp_path, caplog, nodes, what):
    teacher = load_discriminative(network(tmp_path, nodes, {"a": f(0)}))
    assert teacher.preprocessing == "arcface"
    assert f"begins with {what}, so the range" in caplog.text and "a guess" in teacher.warnings[0]


def test_a_preprocessing_against_the_graphs_constants_is_said(tmp_path, caplog):
    path = network(tmp_path, *INSIDE["Sub, Div"][:2])
    for right in ("in_graph", "0/1"):
        assert load_discriminative(path, preprocessing=right).warnings == ()
    assert (
        "by the constants of its graph it needs 'in_graph'"
        in load_discriminative(path, preprocessing="arcface").warnings[0]
    )
    assert "is fed with the preprocessing 'arcface'" in caplog.text


def test_unit_is_a_name():
    assert [x.tolist() for x in parse_preprocessing("unit")] == [[0.0], [255.0]]


@pytest.mark.parametrize("kind", ("Conv", "MatMul"))
def test_a_normalization_may_be_a_layer_of_single_pixels(tmp_path, kind):
    scale = f(np.diag(1 / np.ravel(255 * STD)))
    if kind == "Conv":
        nodes = [node("Conv", "x", "k", "b")]
        path = network(tmp_path, nodes, {"k": scale.reshape(3, 3, 1, 1), "b": f(-np.ravel(MEAN / STD))})
    else:
        nodes = [
            node("Transpose", "x", to=("t",), perm=[0, 2, 3, 1]), node("MatMul", "t", "k", to=("m",)),
            node("Add", "m", "b", to=("s",)), node("Transpose", "s", perm=[0, 3, 1, 2]),
        ]  # fmt: skip
        path = network(tmp_path, nodes, {"k": scale, "b": f(-np.ravel(MEAN / STD))})
    teacher = load_discriminative(path)
    assert teacher.preprocessing == "in_graph" and not teacher.warnings
    np.testing.assert_allclose(teacher.embed(FACES), expected(*IMAGENET), rtol=1e-3, atol=1e-3)


def test_a_normalization_may_follow_a_mean_of_pixels(tmp_path):
    nodes = [
        node("AveragePool", "x", to=("p0",), kernel_shape=[2, 2], strides=[2, 2]),
        node("Sub", "p0", "a", to=("s",)),
    ]
    path = network(tmp_path, [*nodes, node("Div", "s", "a")], {"a": f(127.5)})
    assert load_discriminative(path).preprocessing == "in_graph"


@pytest.mark.parametrize("divide", (True, False))
def test_means_in_the_order_of_bgr_are_warned_of(tmp_path, divide):
    mean, std = f([103.53, 116.28, 123.675]).reshape(1, 3, 1, 1), f([57.375, 57.12, 58.395]).reshape(1, 3, 1, 1)
    nodes = [node("Sub", "x", "a", to=("s",)), node("Div", "s", "b")]
    teacher = load_discriminative(network(tmp_path, nodes, {"a": mean, "b": std if divide else f(1)}))
    assert teacher.preprocessing == "in_graph" and "in the order blue, green, red" in teacher.warnings[0]
    assert not load_discriminative(network(tmp_path, nodes, {"a": mean[:, ::-1], "b": std[:, ::-1]})).warnings


def test_padding_along_given_axes_changes_nothing(tmp_path):
    nodes = [node("Pad", "x", "pads", "", "axes", to=("q",)), node("Sub", "q", "a", to=("s",)), node("Div", "s", "a")]
    constants = {"pads": np.array([1, 1, 1, 1]), "axes": np.array([2, 3]), "a": f(127.5)}
    assert load_discriminative(network(tmp_path, nodes, constants, opset=18)).preprocessing == "in_graph"
