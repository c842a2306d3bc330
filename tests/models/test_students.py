"""Every student at every resolution: sizes, a step of training, and what the networks are known to have."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gdrd_jax.models.arguments import RESOLUTIONS
from gdrd_jax.models.student import abstract_student, embed, make_student
from gdrd_jax.registry import students

SIDES = {8: 4, 16: 4, 24: 6, 32: 4, 48: 6, 64: 4, 112: 7}  # of the features
EACH = [(name, resolution) for name in ("gdrd", "resnet") for resolution in RESOLUTIONS]
TINY = {"width": 0.03, "embedding_dim": 6}


def count(module):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def loss_of(student, images):
    return jnp.mean(optax.cosine_distance(student(images), jnp.ones(6)))


@pytest.mark.parametrize(("name", "resolution"), EACH)
def test_features_and_embeddings_have_their_sizes(name, resolution):
    assert students[name].resolutions == RESOLUTIONS
    model = abstract_student({"name": name, "resolution": resolution, "embedding_dim": 512})
    faces = jax.ShapeDtypeStruct((2, resolution, resolution, 3), jnp.uint8)
    model.eval()
    stages = nnx.eval_shape(lambda m, x: m.backbone.stages(x), model, faces)
    sides = [stage.shape[1] for stage in stages]
    assert stages[-1].shape == (2, SIDES[resolution], SIDES[resolution], 512) and sides == sorted(sides)[::-1]
    assert [stage.shape[3] for stage in stages] == {"gdrd": [128, 256, 512], "resnet": [64, 128, 256, 512]}[name]
    assert nnx.eval_shape(lambda m, x: m.backbone(x), model, faces) == stages[-1]
    assert nnx.eval_shape(lambda m, x: m(x), model, faces).shape == (2, 512)


@pytest.mark.parametrize(("name", "resolution"), EACH)
def test_every_weight_has_a_gradient(name, resolution):
    model = abstract_student({"name": name, "resolution": resolution, **TINY})
    model.train()
    faces = jax.ShapeDtypeStruct((4, resolution, resolution, 3), jnp.uint8)
    gradients = nnx.eval_shape(nnx.grad(loss_of), model, faces)
    assert count(gradients) == count(model) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "resolution"), EACH)
def test_a_few_steps_lower_the_loss(name, resolution):
    model = make_student(name=name, resolution=resolution, **TINY, rngs=nnx.Rngs(0))
    faces = np.random.default_rng(0).integers(256, size=(8, resolution, resolution, 3), dtype=np.uint8)
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(loss_of)(model, faces)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]
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


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("name", ["gdrd", "resnet"])
def test_images_have_one_to_four_channels(name, channels):
    model = make_student(name=name, resolution=8, channels=channels, **TINY, rngs=nnx.Rngs(0))
    assert model.backbone.stem.kernel.shape[2] == channels
    model.eval()
    images = jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.uint8)
    assert nnx.eval_shape(embed, model, images).shape == (2, 6)


def test_the_papers_student_is_checked_without_jax():
    code = (
        "import sys\nfrom gdrd_jax.config import default\nfrom gdrd_jax.models.arguments import of_config\n"
        "print(of_config(default())['name'], 'jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "gdrd False\n"
