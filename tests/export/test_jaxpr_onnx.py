"""Functions of images as ONNX: each primitive, batches of any size, and the refusal of what is not known."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import raises
from flax import nnx

from gdrd_jax.export import jaxpr_onnx
from gdrd_jax.export.graph import Graph

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
KERNEL = np.float32(RNG.normal(size=(3, 3, 3, 4)))
MATRIX = np.float32(RNG.normal(size=(3, 6)))


def convert(function):
    graph, types, value = Graph(onnx), onnx.TensorProto, onnx.helper.make_tensor_value_info
    rank = jax.eval_shape(function, IMAGES).ndim
    graph.add("Identity", jaxpr_onnx.write(graph, function, "x", (8, 8, 3)), output="y")
    made = onnx.helper.make_graph(
        graph.nodes,
        "g",
        [value("x", types.UINT8, ["N", 8, 8, 3])],
        [value("y", types.FLOAT, [None] * rank)],
        graph.weights,
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": images})[0]


def real(images):
    return images.astype(jnp.float32) / 127.5 - 1


def conv(x, **settings):
    settings = {"window_strides": (1, 1), "padding": "SAME", "kernel": KERNEL, **settings}
    kernel = settings.pop("kernel")
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings)


def haar(x):
    """Four quarters of a Haar transform."""
    a, b, c, d = x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]
    return jnp.concatenate([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], axis=-1) / 2


def routing(x):
    """Products of two batches, as capsules have them, and a softmax over their agreement."""
    poses = x.reshape(x.shape[0], 16, 12)
    agreement = jax.nn.softmax(jnp.einsum("bic,bjc->bij", poses, poses), axis=-1)
    return jnp.einsum("bij,bjc->bic", agreement, poses)


def squeeze_excite(x):
    gate = nnx.hard_sigmoid(x.mean(axis=(1, 2)) @ MATRIX @ MATRIX.T)
    return nnx.hard_swish(x) * gate[:, None, None]


FUNCTIONS = {
    "bias and scale": lambda x: x * MATRIX[:, 0] + 2,
    "strided": lambda x: conv(x, window_strides=(2, 2), padding=((1, 1), (0, 1))),
    "depthwise": lambda x: conv(x, kernel=KERNEL[:, :, :1, :3], feature_group_count=3),
    "dilated": lambda x: conv(x, rhs_dilation=(2, 2)),
    "max pool": lambda x: nnx.max_pool(x, (2, 3), (2, 2), padding="SAME"),
    "average pool": lambda x: nnx.avg_pool(x, (2, 2), (2, 2)),
    "mean and deviation": lambda x: jnp.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=-1),
    "extremes": lambda x: x.max((1, 2)) - x.min((1, 2)) * jnp.prod(x[:, 0, :2], axis=1),
    "linear": lambda x: x.reshape(x.shape[0], -1)[:, :3] @ MATRIX,
    "linear of pixels": lambda x: x @ MATRIX,
    "transposed": lambda x: jnp.einsum("bhwc,hk->bckw", x, np.eye(8, 5, dtype=np.float32)),
    "grouped": lambda x: conv(
        jnp.concatenate([x, -x], axis=-1), kernel=np.concatenate([KERNEL, KERNEL + 1], axis=-1), feature_group_count=2
    ),
    "tiled": lambda x: jnp.tile(x, (1, 2, 1, 3)),
    "haar": haar,
    "routing": routing,
    "squeeze and excite": squeeze_excite,
    "attention of channels": lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-3),
    "relu": lambda x: nnx.relu(x) + jnp.where(x > 0, x, 0) - jnp.where(x > 0.5, x, 0.1),
    "activations": lambda x: (
        nnx.gelu(x) + nnx.silu(x) + nnx.leaky_relu(x) + nnx.softplus(x) + nnx.elu(x) + nnx.relu6(x)
    ),
    "prelu": lambda x: jnp.maximum(x, 0) + MATRIX[:, 1] * jnp.minimum(x, 0),
    "elementary": lambda x: jnp.exp(x) * jnp.sin(x) - jnp.cos(x) ** 3 + jnp.tanh(x) + jax.lax.rsqrt(x + 2) + jnp.abs(x),
    "rounded": lambda x: jnp.round(4 * x) + jnp.floor(3.7 * x) - jnp.ceil(5.3 * x) + jnp.sign(x),
    "clipped": lambda x: jnp.clip(x, -0.5, 0.25) + jnp.square(x) + jnp.log(x + 2) - jnp.log1p(x + 1.5),
    "mirrored and padded": lambda x: jnp.pad(x[:, ::-1, 1:-1], ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=7.0),
    # Rounded, because XLA multiplies by 1 / 127.5 on some machines, and white is not 1 then.
    "compared": lambda x: (
        ((jnp.round(4 * x) != 4) & ((x < 0) | (x >= 0.5)) & ~(jnp.round(4 * x) == 0)).astype(jnp.float32) + (x <= 0.1)
    ),
    "largest": lambda x: x.argmax(-1).astype(jnp.float32),
    "positions": lambda x: x + jnp.arange(8, dtype=jnp.float32)[None, :, None, None],
    "same for all": lambda x: jnp.concatenate([x, jnp.broadcast_to(MATRIX[:, 0], x.shape)], axis=-1),
    "split": lambda x: jnp.concatenate(jnp.split(x, [2, 3], axis=1)[::-1], axis=1),
    "bfloat16": lambda x: (x.astype(jnp.bfloat16) * 1).astype(jnp.float32),
    "image by image": lambda x: x.reshape(len(x), -1) @ np.ones((192, 2), np.float32) / 192,
    "pool, image by image": lambda x: nnx.max_pool(conv(x.reshape(int(x.shape[0]), 8, 8, 3)), (2, 2), (2, 2)),
    "rematerialized": jax.checkpoint(lambda x: nnx.relu(conv(x))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_computes_the_same_for_batches_of_any_size(name):
    function = lambda images: FUNCTIONS[name](real(images))  # noqa: E731
    model = convert(function)
    tolerance = 5e-3 if name == "bfloat16" else 1e-5
    wanted = np.asarray(jax.jit(function)(IMAGES))
    for count in (1, 5):
        np.testing.assert_allclose(run(model, IMAGES[:count]), wanted[:count], atol=tolerance, rtol=tolerance)
    assert wanted.std() > 1e-3


def test_what_is_constant_is_computed_before_and_a_relu_is_one_node():
    scale = jnp.exp(jnp.asarray(MATRIX[:, 0])) * 2

    def function(images):
        x = real(images) * (scale / jnp.sqrt(scale))
        return nnx.relu(jnp.where(x > 0, x, 0))

    kinds = [node.op_type for node in convert(function).graph.node]
    assert kinds == ["Cast", "Div", "Sub", "Mul", "Relu", "Relu", "Identity"]


def cumulated(x):
    return jnp.cumsum(x, axis=1)


def looped(x):
    return jax.lax.fori_loop(0, 3, lambda i, x: x * 2, x)


@pytest.mark.parametrize(
    ("function", "fact"),
    [
        (cumulated, "'cumsum'"),
        (looped, "'scan'"),
        (lambda x: x - x.mean(0), "batch's size"),
        (lambda x: jax.lax.conv_transpose(x, KERNEL, (2, 2), "SAME"), "'conv_general_dilated'"),
        (lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (1, 1, 1), (0, 0, 0), (0, 0, 0))), "'pad'"),
    ],
)
def test_an_unknown_primitive_is_named(function, fact):
    with raises("export-primitive", fact, "stablehlo"):
        convert(lambda images: function(real(images)))
