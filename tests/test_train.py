"""The loop: resuming, stopping, refusing, several devices."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from gdrd_jax import train
from gdrd_jax.errors import GdrdError
from gdrd_jax.interrupt import Interrupted, Signals
from gdrd_jax.models.student import Student
from gdrd_jax.stages import Gen

RNG = np.random.default_rng(0)
DATA = {
    "label": np.arange(12) % 3,
    "lr": RNG.integers(256, size=(12, 2, 16, 16, 3), dtype=np.uint8),
    "generative": np.float16(RNG.normal(size=(12, 2, 8, 4, 4))),
}
STEPS = 3 * train.CHUNK - 5


def schedule(**changes):
    settings = {"steps": STEPS, "batch": 4, "learning_rate": 0.05, "warmup": 0.1, "decay_at": (0.5, 0.8)}
    return train.Schedule(**{**settings, "momentum": 0.9, "weight_decay": 5e-4, "clip_norm": 1.0, **changes})


def stage():
    student = Student(resolution=16, width=0.0625, hidden=(8,), embedding_dim=4, rngs=nnx.Rngs(0))
    return Gen(
        student.backbone, (4, 4, 32), (8, 4, 4), np.zeros(8, np.float32), np.ones(8, np.float32), rngs=nnx.Rngs(1)
    )


def fit(directory, data=DATA, **changes):
    directory.mkdir(exist_ok=True)
    model = stage()
    metrics = train.fit(model, data, schedule(**changes), directory, seed=7, name="test")
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model))), metrics


def curve(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    return *fit(directory), curve(directory)


def test_the_loss_falls(uninterrupted):
    *_, metrics = uninterrupted
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["step"] == STEPS


@pytest.mark.parametrize("dispatch", [1, 2, 3])
def test_a_stopped_run_resumes_to_the_same_weights_and_curve(tmp_path, monkeypatch, uninterrupted, dispatch):
    calls = []
    original = train.batch_rows

    def interrupting(*args):
        calls.append(args)
        if len(calls) == dispatch:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(train, "batch_rows", interrupting)
    with pytest.raises(Interrupted, match=f"step {min(dispatch * train.CHUNK, STEPS)} of {STEPS}"):
        fit(tmp_path)
    weights, metrics = fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[0])
    assert metrics == uninterrupted[1]
    assert curve(tmp_path) == uninterrupted[2]


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch, uninterrupted):
    fit(tmp_path)
    monkeypatch.setattr(train, "batch_rows", None)
    weights, metrics = fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[0])
    assert metrics == uninterrupted[1]


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_faces(tmp_path):
    bad = DATA["generative"].copy()
    bad[5] = np.nan
    with pytest.raises(GdrdError, match=r"loss of test is nan at step \d+ \(faces \[.*5.*\]\)"):
        fit(tmp_path, {**DATA, "generative": bad})


def test_the_rate_rises_then_falls_by_tens():
    rate = schedule(steps=100).rate()
    assert float(rate(0)) == pytest.approx(0.005)
    assert float(rate(20)) == pytest.approx(0.05)
    assert float(rate(60)) == pytest.approx(0.005)
    assert float(rate(90)) == pytest.approx(0.0005)


def test_a_second_signal_is_not_remembered_but_obeyed():
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)


def test_four_devices_follow_the_curve_of_one(tmp_path, uninterrupted):
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import jax, pathlib, test_train\n"
        "assert jax.device_count() == 4\n"
        "test_train.fit(pathlib.Path(sys.argv[1]))\n"
        "try: test_train.fit(pathlib.Path(sys.argv[1]) / 'odd', batch=6)\n"
        "except Exception as error: print(error)\n"
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "four")], env=environment, capture_output=True, text=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "batch 6 of test cannot be divided over 4 devices" in found.stdout
    for one, four in zip(uninterrupted[2], curve(tmp_path / "four")):
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)
