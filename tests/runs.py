"""Runs of `gdrd train` with networks that compile in a moment, for the tests of the steps; a plugin of conftest.py."""

import contextlib
import functools
import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
from conftest import raises, tiny_config, use_tiny_student, use_tiny_teachers

from gdrd_jax.pipeline import runner
from gdrd_jax.utils.files import LOCK

ROOT = Path(__file__).parents[1]
STEPS = ["faces", "views", "discriminative", "generative", "gen", "dis", "report"]  # of `small_config`
COSINE = {"embedding_cosine": {"weight": 1.0}}  # losses that compile fast
# Effects that take long to compile, left out; those that move and blur are left.
FEW = dict.fromkeys(("rotate", "jitter", "light", "low_light", "side_light", "noise", "jpeg"), 0)


def small_config(path):
    """`tiny_config` without networks that need torch, ONNX Runtime or long to compile."""
    return use_tiny_student(use_tiny_teachers(tiny_config(path)))


def random_config(path):
    config = small_config(path)
    config.dis.update(init="random", freeze=(), steps=6, batch=4, evaluate_every=0)
    config.dis.losses = COSINE
    config.degradation.update(random=True, **FEW)
    return config


@functools.cache
def draw_roc():
    """What draws the picture of a report, also while that is replaced."""
    from gdrd_jax.evaluation import report

    return report.draw_roc


@contextlib.contextmanager
def short_reports(draw):
    """The reports have no rows of the pretrained students, each of which is compiled; `draw` makes their picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdrd_jax.pipeline.report_step.list_pretrained", lambda: ())
        patch.setattr("gdrd_jax.evaluation.report.draw_roc", draw)
        yield


@pytest.fixture(scope="module")
def few_rows():
    draw_roc()
    with short_reports(lambda path, *_: path.write_bytes(b"a picture")):
        yield


@pytest.fixture
def untrained(monkeypatch):
    """Stages are made, judged and saved as they begin: which steps run, and with what, is the question.

    Has the labels that each stage is given, by its name.
    """
    labels = {}

    def fit(stage, dataset, schedule, directory, *, name, evaluate, **_):
        labels[name] = dataset.labels
        return evaluate(stage, schedule.steps)

    monkeypatch.setattr("gdrd_jax.training.trainer.fit", fit)
    return labels


@pytest.fixture(scope="session")
def finished(faces_folder, tmp_path_factory):
    """The workdir of a run, which no test changes."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    with short_reports(draw_roc()):
        runner.run(small_config(faces_folder), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy", symlinks=True)


def steps_run(config, workdir, caplog):
    """The steps that a run does not skip."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "gdrd_jax"):
        runner.run(config, workdir)
    return [m.split(":")[0] for m in caplog.messages if ": done in" in m]


def metrics(workdir):
    return json.loads((workdir / "metrics.json").read_text())["results"]


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_refused_first(config, change, code, facts, workdir):
    """A change of the config is a mistake, which is found before anything is written."""
    config.update_from_flattened_dict(change)
    with raises(code, *facts):
        runner.run(config, workdir)
    assert not workdir.exists()


def flags(workdir, *arguments, config=ROOT / "configs" / "quickstart.py"):
    return [f"--config={config}", f"--workdir={workdir}", *arguments]


def command(workdir, *arguments):
    return [sys.executable, "-m", "gdrd_jax.main", *flags(workdir, *arguments)]


def overrides(faces_folder):
    """The tiny settings as flags of the quickstart config."""
    flat = {
        "data.path": faces_folder, "data.glob": "*", "data.align": False, "data.test_people": 2,
        "data.calibration_people": 2, "views.count": 2, "sr.size": 16, "sr.channels": "(8,16,16)", "sr.steps": 4,
        "sr.batch": 2, "student.width": 0.0625, "student.hidden": "(16,)", "gen.steps": 45, "gen.batch": 8,
        "dis.steps": 45, "dis.batch": 8,
    }  # fmt: skip
    return [f"--config.{key}={value}" for key, value in flat.items()]
