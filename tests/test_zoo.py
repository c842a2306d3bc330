"""configs/zoo.py: each method can be trained, and learns from the losses of its recipe alone."""

import json
import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import raises, save_recognizer, use_tiny_teachers
from flax import nnx

from gdrd_jax.config import used_losses
from gdrd_jax.evaluation.methods import METHODS
from gdrd_jax.losses import DataInfo, Outputs
from gdrd_jax.pipeline import planning, runner
from gdrd_jax.registry import losses

ZOO = runpy.run_path(str(Path(__file__).parents[1] / "configs" / "zoo.py"))
NAMES = ZOO["MODES"]
WITHOUT_EMBEDDINGS = {
    "cls", "facenet", "cosface", "arcface", "magface", "adaface", "rpcl_cos", "rpcl_arc", "rpcl_mag", "siamese",
    "resnet34", "mobilenet", "mobilenet_v3_se", "ekd_evolutionary", "askd",
}  # fmt: skip


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return save_recognizer(tmp_path_factory.mktemp("zoo") / "colors.onnx", cells=8)


def tiny(name, faces, recognizer):
    """The recipe of a method, with other faces and teachers and the smallest networks and schedules."""
    config = use_tiny_teachers(ZOO["get_config"](name))
    config.data.path = str(faces)
    config.discriminative.update(kind="auto", path=str(recognizer), tap="p")
    config.student.width = 0.0625
    for section in (config.gen, config.dis, *config.stages.values()):
        section.update(steps=3, batch=16)
    if "ekd_evolutionary" in config.dis.losses:
        config.dis.losses.ekd_evolutionary.width = 0.0625
    return config


def test_every_method_is_in_the_list_of_methods_and_no_other():
    assert sorted(NAMES) == sorted(METHODS) and len(set(NAMES)) == len(NAMES)


def test_every_method_can_be_trained(faces_folder, recognizer, tmp_path):
    for name in NAMES:
        needed = planning.validate(tiny(name, faces_folder, recognizer), tmp_path / name)
        assert "dis" in needed and ("discriminative" in needed) == (name not in WITHOUT_EMBEDDINGS), name


def test_all_see_as_many_images_as_the_common_schedule():
    for name in NAMES:
        config = ZOO["get_config"](name)
        trained = [config.dis]
        while (first := trained[-1].get("init", "random")) != "random":  # stage gen has no `init`
            trained.append(config.gen if first == "gen" else config.stages[first])
        assert sum(stage.steps * stage.batch for stage in trained) == ZOO["STEPS"] * ZOO["BATCH"], name
        assert not any(stage.get("use_unlabeled", False) for stage in trained), name


def test_a_name_that_the_zoo_lacks_is_an_error():
    with raises("config-mode", "'kdd'"):
        ZOO["get_config"]("kdd")


def test_teacher_maps_need_the_name_of_a_tensor(faces_folder, recognizer, tmp_path):
    config = tiny("wave", faces_folder, recognizer)
    config.discriminative.tap = ""
    with raises("hr-features-tap", "config.discriminative.tap"):
        planning.validate(config, tmp_path / "run")


@pytest.mark.parametrize("settings, expected", [(ZOO["KD"], 0.83), ({}, 0.023)])
def test_the_softened_targets_of_kd_have_most_of_their_mass_on_the_own_identity(settings, expected):
    """10,575 identities, whose centers have cosines of deviation 0.05 with a face, and 0.7 of its own identity."""
    cosine = np.random.default_rng(0).normal(scale=0.05, size=10_575)
    cosine[7] = 0.7
    centers = np.float32(np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1))
    loss = losses["kd"](losses.settings("kd", settings), DataInfo(len(cosine), centers=centers), rngs=nnx.Rngs(0))
    outputs = Outputs(None, None, jnp.zeros((1, len(cosine))), jnp.float32([[1, 0]]))
    _, figures = jax.jit(lambda: loss(outputs, {"label": jnp.array([7])}, jax.random.key(0)))()
    assert figures["kd_own"] == pytest.approx(expected, rel=0.03)


@pytest.fixture
def compiled_quickly():
    """Compiling takes most of the time, not what is compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_trained(name, faces_folder, recognizer, tmp_path):
    config = tiny(name, faces_folder, recognizer)
    runner.run(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "dis" / "metrics.json").read_text(encoding="utf-8"))
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    learned = metrics.keys() & set(losses.names())
    assert learned == set(used_losses(config.dis.losses))
