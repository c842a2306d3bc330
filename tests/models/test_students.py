"""Every student at every resolution: sizes, a step of training, and what the networks are known to have."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gdrd_jax.models.arguments import RESOLUTIONS
from gdrd_jax.models.haar import low_frequencies
from gdrd_jax.models.residual import BasicBlock
from gdrd_jax.models.student import abstract_student, embed, make_student, parameters
from gdrd_jax.registry import students

SIDES = {8: 4, 16: 4, 24: 6, 32: 4, 48: 6, 64: 4, 112: 7}  # of the features
CHANNELS = {  # of each stage
    "gdrd": [128, 256, 512], "resnet": [64, 128, 256, 512], "wave": [128, 256, 512], "mobilenet": [128, 256, 1024],
    "mobilenet_v3_se": [24, 40, 960], "siamese": [192, 384, 768], "directcaps": [128, 256, 256],
}  # fmt: skip
TAKES = {"siamese": (8, 16, 24, 32, 48), "directcaps": (8, 16, 24, 32, 48)}  # others take all
TINY = {"width": 0.03, "embedding_dim": 16}


EACH = [(name, resolution) for name in ("gdrd", "resnet") for resolution in RESOLUTIONS]
COMPARED = ("wave", "mobilenet", "mobilenet_v3_se", "siamese", "directcaps")  # at 16 pixels in the core suite
AT_16 = [(name, 16) for name in COMPARED]
SLOW = [
    pytest.param(name, resolution, marks=pytest.mark.slow)
    for name in COMPARED for resolution in TAKES.get(name, RESOLUTIONS) if resolution != 16
]  # fmt: skip


@functools.cache
def abstract(name, resolution):
    """A student of the default settings."""
    return abstract_student({"name": name, "resolution": resolution, "embedding_dim": 512})


def count(module):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def loss_of(student, images):
    return jnp.mean(optax.cosine_distance(student(images), jnp.ones(16)))


@pytest.mark.parametrize(("name", "resolution"), [*EACH, *AT_16, *SLOW])
def test_features_and_embeddings_have_their_sizes(name, resolution):
    assert students[name].resolutions == TAKES.get(name, RESOLUTIONS)
    model = abstract(name, resolution)
    faces = jax.ShapeDtypeStruct((2, resolution, resolution, 3), jnp.uint8)
    model.eval()
    stages = nnx.eval_shape(lambda m, x: m.backbone.stages(x), model, faces)
    sides = [stage.shape[1] for stage in stages]
    assert stages[-1].shape[:3] == (2, SIDES[resolution], SIDES[resolution]) and sides == sorted(sides)[::-1]
    assert [stage.shape[3] for stage in stages] == CHANNELS[name]
    assert nnx.eval_shape(lambda m, x: m.backbone(x), model, faces) == stages[-1]
    assert nnx.eval_shape(lambda m, x: m(x), model, faces).shape == (2, 512)


# The quickest to compile stays in the core suite.
TRAINED = [pair if pair == ("gdrd", 8) else pytest.param(*pair, marks=pytest.mark.slow) for pair in (*EACH, *AT_16)]


@pytest.mark.parametrize(("name", "resolution"), TRAINED)
def test_a_few_steps_lower_the_loss(name, resolution):
    model = make_student(name=name, resolution=resolution, **TINY, rngs=nnx.Rngs(0))
    faces = np.random.default_rng(0).integers(256, size=(8, resolution, resolution, 3), dtype=np.uint8)
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(loss_of)(model, faces)
        optimizer.update(model, gradients)
        return loss

    before = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    losses = [float(step(model, optimizer)) for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, nnx.state(model, nnx.Param))
    assert min(jax.tree.leaves(moved)) > 1e-3
    model.eval()
    assert np.isfinite(embed(model, faces)).all()


def test_the_features_of_a_stage_are_what_the_next_one_takes():
    model = make_student(name="gdrd", resolution=16, **TINY, rngs=nnx.Rngs(0))
    model.eval()
    faces = np.random.default_rng(0).integers(256, size=(2, 16, 16, 3), dtype=np.uint8)
    first, second, last = model.backbone.stages(faces)
    blocks = model.backbone.blocks
    np.testing.assert_array_equal(blocks[3](blocks[2](first)), second)
    np.testing.assert_array_equal(blocks[5](blocks[4](second)), last)
    np.testing.assert_array_equal(model.backbone(faces), last)


# Convolutions and normalizations without the head, from the architectures' formulas.
@pytest.mark.parametrize(("depth", "millions"), [(18, 11.17), (34, 21.28)])
def test_resnet_has_the_papers_number_of_weights(depth, millions):
    model = abstract_student({"name": "resnet", "settings": {"depth": depth}, "resolution": 16, "embedding_dim": 512})
    assert count(model.backbone) / 1e6 == pytest.approx(millions, abs=0.005)
    assert count(model.head) == 8192 * 2 + 8192 * 512 + 512


def convolution(kernel, inputs, outputs, groups=1):
    """Its weights, and scale and bias of the normalization after it."""
    return kernel**2 * inputs // groups * outputs + 2 * outputs


def separable(inputs, outputs):
    return convolution(3, inputs, inputs, inputs) + convolution(1, inputs, outputs)


V3 = """3,16,16,- 3,64,24,- 3,72,24,- 5,72,40,SE 5,120,40,SE 5,120,40,SE 3,240,80,- 3,200,80,- 3,184,80,- 3,184,80,-
    3,480,112,SE 3,672,112,SE 5,672,160,SE 5,960,160,SE 5,960,160,SE"""
SQUEEZED = {72: 24, 120: 32, 480: 120, 672: 168, 960: 240}


def mobilenet_v3():
    inputs, total = 16, convolution(3, 3, 16)
    for row in V3.split():
        *sizes, excites = row.split(",")
        kernel, wide, outputs = map(int, sizes)
        total += 0 if wide == inputs else convolution(1, inputs, wide)
        total += convolution(kernel, wide, wide, wide) + convolution(1, wide, outputs)
        if excites == "SE":
            total += 2 * wide * SQUEEZED[wide] + wide + SQUEEZED[wide]
        inputs = outputs
    return total + convolution(1, 160, 960)


V1 = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
COUNTS = {  # of the backbone and of the head; their sum in millions
    "wave": (11_088_000, 8192 * 2 + 8192 * 512 + 512, 15.30),
    "mobilenet": (convolution(3, 3, 32) + sum(map(separable, V1, V1[1:])), 1024 * 512 + 512, 3.73),
    "mobilenet_v3_se": (mobilenet_v3(), convolution(4, 960, 960, 960) + convolution(1, 960, 512), 3.48),
    "siamese": (
        sum(convolution(k, 3, 64) + convolution(k, 64, 128) + convolution(k, 128, 256) for k in (3, 5, 7)),
        12288 * 2 + 12288 * 512 + 512, 9.73,
    ),
    "directcaps": (9 * 3 * 128 + 128 + 9 * 128 * 256 + 256 + 25 * 256 * 256 + 256, 512 * 32 * 8 * 16, 4.03),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_network_has_as_many_weights_as_its_layers_say(name):
    model, (backbone, head, millions) = abstract(name, 16), COUNTS[name]
    assert (count(model.backbone), count(model.head)) == (backbone, head)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.005)


def test_wave_has_the_weights_of_gdrd_and_no_strides():
    wave, gdrd = (
        abstract_student({"name": name, "resolution": 32, "head_stages": 1, **TINY}) for name in ("wave", "gdrd")
    )
    shapes = [jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(nnx.state(model))) for model in (wave, gdrd)]
    assert shapes[0] == shapes[1]
    layers = [layer for _, layer in nnx.iter_modules(wave) if isinstance(layer, nnx.Conv)]
    assert {layer.strides for layer in layers} == {1}
    blocks = [*wave.backbone.blocks, *wave.head.blocks]
    assert [block.downsampling is not None for block in blocks] == [False, False, True, False, True, False]
    assert wave.backbone.downsampling is not None


def test_a_block_of_wave_transforms_between_its_convolutions_and_in_its_shortcut():
    """Convolution, normalization, ReLU, LL, convolution (WaveCNet, arXiv 2005.03337)."""
    block = BasicBlock(3, 5, 2, jnp.float32, nnx.Rngs(0), low_frequencies)
    block.eval()
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    y = low_frequencies(nnx.relu(block.norm1(block.conv1(x))))
    wanted = nnx.relu(block.norm2(block.conv2(y)) + block.shortcut(low_frequencies(x)))
    assert wanted.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(block(x), wanted, atol=1e-5)


@pytest.mark.parametrize(("dim", "capsules"), [(48, (3, 16)), (24, (3, 8)), (1, (1, 1))])
def test_an_embedding_is_divided_into_capsules_as_large_as_it_allows(dim, capsules):
    model = abstract_student({"name": "directcaps", "resolution": 16, "width": 0.03, "embedding_dim": dim})
    assert model.head.weights.shape == (16, capsules[0], 8, capsules[1])


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("name", ["gdrd", "resnet"])
def test_images_have_one_to_four_channels(name, channels):
    model = make_student(name=name, resolution=8, channels=channels, **TINY, rngs=nnx.Rngs(0))
    assert model.backbone.stem.kernel.shape[2] == channels
    model.eval()
    images = jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.uint8)
    assert nnx.eval_shape(embed, model, images).shape == (2, 16)


def test_the_papers_student_is_checked_without_jax():
    code = (
        "import sys\nfrom gdrd_jax.config import default\nfrom gdrd_jax.models.arguments import of_config\n"
        "print(of_config(default())['name'], 'jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "gdrd False\n"
