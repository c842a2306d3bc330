"""Losses with a margin in training: on several devices, resumed, and on a few faces that can be learned by heart."""

import jax
import numpy as np
import pytest
import test_trainer as base
from conftest import finished, run_script
from flax import nnx

from gdrd_jax.data.samplers import TwoViews
from gdrd_jax.distributed import class_parallel
from gdrd_jax.losses import DataInfo, State
from gdrd_jax.models.student import make_student
from gdrd_jax.training import trainer
from gdrd_jax.training.stages import Stage
from gdrd_jax.utils.signals import Interrupted

PEOPLE, DIM = 5, 16  # so many people that not every device has equally many
LOSSES = {
    "cosface": {}, "arcface": {"ramp": 4}, "magface": {"min_norm": 0.1}, "adaface": {"standardize": True},
    "rpcl": {"threshold": 0.1}, "arc_distill": {}, "ada_distill": {}, "ccface": {},
}  # fmt: skip


def data(faces=32):
    """Faces that look like their person; the first four have no identity."""
    rng = np.random.default_rng(0)
    label = np.arange(faces) % PEOPLE
    lr = rng.integers(40, 216, size=(PEOPLE, 1, 4, 4, 3)).repeat(4, 2).repeat(4, 3)[label]
    teacher = rng.normal(size=(PEOPLE, 1, DIM))[label] + 0.2 * rng.normal(size=(faces, 2, DIM))
    return {
        "label": np.where(np.arange(faces) < 4, -1, label).astype(np.int32),
        "lr": np.uint8(lr + rng.integers(-40, 40, size=(faces, 2, 16, 16, 3))),
        "discriminative": np.float16(teacher),
    }


DATA = data()
SAMPLER = TwoViews(TwoViews.Config(), DATA["label"], 2)


def stage(losses=LOSSES):
    means = np.stack([DATA["discriminative"][DATA["label"] == c, 0].mean(axis=0) for c in range(PEOPLE)])
    centers = np.float32(means / np.linalg.norm(means, axis=1, keepdims=True))
    student = make_student(resolution=16, width=0.0625, hidden=(), embedding_dim=DIM, rngs=nnx.Rngs(0))
    return Stage(student, losses, DataInfo(PEOPLE, len(DATA["label"]), DIM, centers), rngs=nnx.Rngs(1))


def trained(losses, steps, *, rate, devices=1, restored_at=None):
    """Metrics of each step, and the loss's classes and state, after some steps of 16 faces with two views each."""
    made = stage(losses)
    graphdef, params, rest = trainer.split(made)
    how = base.schedule(steps=steps, learning_rate=rate)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = trainer.make_run(graphdef, how, mesh, seed=7, loop=False)
    state, found = class_parallel.to_devices(trainer.begin(params, rest, how), mesh), []
    for step in range(steps):
        if step == restored_at:
            state = class_parallel.to_devices(class_parallel.to_host(state), mesh)
        state, metrics = run(state, DATA, SAMPLER(7, range(step, step + 1), 16), np.arange(step, step + 1))
        found.append({name: float(value[0]) for name, value in metrics.items()})
    nnx.update(made, *class_parallel.to_host(state)[:2])
    kept = nnx.state(made.criteria, nnx.Any(State, nnx.PathContains("classes")))
    return found, jax.tree.map(np.asarray, nnx.to_pure_dict(kept))


def agree():
    """In a process with four devices: one device and four, which also come from the host's copy in between."""
    (one, kept), (four, also) = trained(LOSSES, 5, rate=0.05), trained(LOSSES, 5, devices=4, rate=0.05, restored_at=3)
    assert kept["ada_distill"]["classes"].shape == also["ada_distill"]["classes"].shape == (PEOPLE, DIM)
    assert kept["arcface"]["steps"] == 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6), kept, also)
    for before, after in zip(one, four):
        assert before == pytest.approx(after, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_one_device_and_four_agree():
    finished(run_script("import test_margin_training as m; m.agree()", devices=4))


@pytest.mark.slow
def test_state_is_resumed(tmp_path, monkeypatch):
    how = {"make": stage, "how": {"sampler": SAMPLER}, "data": DATA, "batch": 16, "steps": 6}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        base.stopping_at(patch, 2)
        base.fit(tmp_path / "stopped", **how)
    weights, metrics = base.fit(tmp_path / "stopped", **how)
    uninterrupted, wanted = base.fit(tmp_path / "whole", **how)
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted)
    assert metrics == wanted and weights["criteria"]["arcface"]["steps"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_few_faces_are_learned_by_heart(name):
    metrics, _ = trained({name: LOSSES[name]}, 150, rate=0.02)
    assert np.mean([step["cosine_accuracy"] for step in metrics[-20:]]) > 0.95
    assert metrics[-1]["own_cosine"] > metrics[0]["own_cosine"]
