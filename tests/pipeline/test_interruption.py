"""A run stops in any step, also where Python drops what the signal raises, and resumes to the same result.

`test_trainer` has trainings, `test_whole_runs` the whole command in a process of its own (slow).
"""

import signal

import numpy as np
import pytest
from conftest import send_while_collecting, tiny_config, use_tiny_teachers

from gdrd_jax.cli import common
from gdrd_jax.pipeline import records, runner
from gdrd_jax.pipeline.run import Run


@pytest.fixture(scope="module")
def config(faces_folder):
    config = use_tiny_teachers(tiny_config(faces_folder))
    config.data.mixup_per_face = 0.0
    return config


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "w"
    runner.run(config, workdir, ("discriminative",))
    return workdir


@pytest.fixture(autouse=True)
def handlers():
    """A command that was stopped ignores further signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("send", [signal.raise_signal, send_while_collecting])
@pytest.mark.parametrize(
    ("step", "number", "status"),
    [("faces", signal.SIGINT, 130), ("discriminative", signal.SIGINT, 130), ("discriminative", signal.SIGTERM, 0)],
)
def test_a_run_stops_and_resumes(config, uninterrupted, tmp_path, monkeypatch, capfd, step, number, status, send):
    work, workdir = runner._work, tmp_path / "w"

    def interrupted(together, current):
        if step in [one.name for one in together]:
            send(number)
        return work(together, current)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_work", interrupted)
        assert common.guarded(lambda: runner.run(config, workdir, ("discriminative",))) == status
    error = capfd.readouterr().err
    assert "the same command continues" in error and "Traceback" not in error
    assert not records.read(workdir / step)["complete"]
    runner.run(config, workdir, ("discriminative",))
    found, wanted = (Run.open(path).store("discriminative", "train").read(0) for path in (workdir, uninterrupted))
    np.testing.assert_array_equal(found, wanted)


def test_a_signal_that_is_dropped_after_the_last_safe_point_is_in_the_status(capfd):
    assert common.guarded(send_while_collecting, resumes=False) == 130
    assert capfd.readouterr().err == "\nstopped\n"
