"""Whole runs with networks: an SR teacher, SFace and the paper's student; minutes long."""

import json
import shutil
import signal
import subprocess
import time

import pytest
import torch
from conftest import guided_diffusion, raises, tiny_config
from runs import ROOT, STEPS, command, contents, metrics, overrides, steps_run
from test_workdir_v04 import from_version

from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.inference.pretrained import describe_student, find_student, list_pretrained
from gdrd_jax.pipeline import planning, runner
from gdrd_jax.pipeline.run import Run

pytestmark = pytest.mark.slow
ALL_STEPS = [*STEPS[:3], "teacher", *STEPS[3:]]
PRETRAINED = [name for name in list_pretrained() if describe_student(find_student(name))["student"]["resolution"] == 16]
ROWS = ["student", *PRETRAINED, "sface_native", "sface_16", "pixels_16"]


@pytest.fixture(scope="module", autouse=True)
def coarse_pictures():
    """The reconstructions of the many reports are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdrd_jax.teachers.sr_diffusion.SAMPLING_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def finished(faces_folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "networks"
    runner.run(tiny_config(faces_folder), workdir)
    return workdir


def test_results_of_every_row_are_written(finished):
    found = metrics(finished)
    assert list(found) == ROWS
    for row in found.values():
        assert {"accuracy", "auc", "eer", "rank_1"} <= row.keys()
        assert 0 <= row["accuracy"] <= 100
    assert found["sface_native"]["auc"] > 60  # the made people differ, and SFace sees it
    for name in ("roc.csv", "roc.png", "report.html"):
        assert (finished / name).stat().st_size > 1000
    assert json.loads((finished / "gen" / "metrics.json").read_text()).keys() >= {"r2", "held_out_r2"}


def test_a_setting_of_the_sr_teacher_trains_it_again_and_all_that_follows(finished, faces_folder):
    config = tiny_config(faces_folder)
    assert {step.action for step in planning.plan(config, finished)} == {"skip"}
    config.sr.learning_rate = 1e-3
    plan = {step.name: step for step in planning.plan(config, finished) if step.action == "run"}
    assert list(plan) == ["teacher", "generative", "gen", "dis", "report"]
    assert "settings.sr.learning_rate (" in plan["teacher"].reason and "-> 0.001)" in plan["teacher"].reason


def test_another_preprocessing_of_the_discriminative_teacher_redoes_its_targets_and_what_follows(
    copy, faces_folder, caplog
):
    config = tiny_config(faces_folder)
    before = FeatureStore.open(copy / "discriminative" / "train").manifest["about"]["teacher"]
    config.discriminative.preprocessing, config.until = "0/255", "dis"
    plan = {step.name: step for step in planning.plan(config, copy) if step.action == "run"}
    assert "settings.discriminative.preprocessing (" in plan["discriminative"].reason
    assert steps_run(config, copy, caplog) == ["discriminative", "dis"]
    after = FeatureStore.open(copy / "discriminative" / "train").manifest["about"]["teacher"]
    assert (before["mean"], before["std"]) == ([0.0], [1.0]) and after["std"] == [255.0], after
    assert before["sha256"] == after["sha256"]


def test_an_sr_teacher_of_an_earlier_version_is_moved_and_not_trained_again(copy, faces_folder, caplog):
    results = metrics(copy)
    from_version(copy, "0.4.0", ALL_STEPS)
    before = {step: contents(copy / step) for step in ALL_STEPS if step != "report"}
    assert steps_run(tiny_config(faces_folder), copy, caplog) == [] and metrics(copy) == results
    assert {step: contents(copy / step) for step in before} == before
    assert all((copy / step).is_symlink() for step in ALL_STEPS)


def test_a_changed_face_trains_the_sr_teacher_again(copy, faces_folder, tmp_path, caplog):
    faces = shutil.copytree(faces_folder, tmp_path / "faces")
    (faces / "p0" / "0.png").write_bytes((faces / "p0" / "1.png").read_bytes())
    config = tiny_config(faces)
    config.until = "gen"
    assert steps_run(config, copy, caplog) == ["faces", "views", "teacher", "generative", "gen"]


def test_a_folder_of_a_diffusion_model_is_no_workdir(finished, faces_folder, tmp_path):
    folder = shutil.copytree(finished / "teacher", tmp_path / "sr")
    (folder / "step.json").unlink()
    before = contents(folder)
    with raises("workdir-other", folder, "an SR teacher", "--workdir"):
        runner.run(tiny_config(faces_folder), folder)
    assert contents(folder) == before


def test_seeds_share_the_targets_of_a_teacher_of_the_users(finished, copy, faces_folder, tmp_path, caplog):
    config = tiny_config(faces_folder)
    config.generative.path, config.until, config.outputs = str(finished / "teacher"), "dis", str(copy / "steps")
    assert "teacher" not in steps_run(config, tmp_path / "one", caplog)
    config.seed += 1
    assert steps_run(config, tmp_path / "two", caplog) == ["gen", "dis"]


def test_features_of_any_size_stand_in_the_backbones_place(copy, faces_folder, caplog):
    config = tiny_config(faces_folder)
    config.student.name, config.generative.tap, config.until = "teacher_features", "down0", "dis"
    assert steps_run(config, copy, caplog) == ["generative", "dis"]
    assert planning.finished(config, copy)
    assert Run.open(copy).store("generative", "train").manifest["shape"][1:] != [4, 4]


def test_pgdiff_teaches_a_student(copy, faces_folder, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in guided_diffusion().items()}}, tmp_path / "ddpm.pth")
    config = tiny_config(faces_folder)
    config.generative.update(kind="pgdiff", path=str(tmp_path / "ddpm.pth"), tap="block3", input_size=32)
    config.outputs = str(copy / "steps")
    runner.run(config, tmp_path / "run")
    targets = FeatureStore.open(tmp_path / "run" / "generative" / "train")
    assert targets.manifest["shape"] == [64, 16, 16] and targets.manifest["about"]["teacher"]["kind"] == "pgdiff"
    assert "reconstruction" not in (tmp_path / "run" / "report.html").read_text()  # it draws none
    assert json.loads((tmp_path / "run" / "gen" / "metrics.json").read_text())["held_out_r2"] < 1


@pytest.fixture(scope="module")
def by_command(faces_folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(workdir, *overrides(faces_folder)), cwd=ROOT, check=True, capture_output=True)
    return workdir


def interruptible():
    """A child of a background job would inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("step", ALL_STEPS)
def test_ctrl_c_in_any_step_and_the_same_command_gives_the_same_result(faces_folder, tmp_path, by_command, step):
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        command(stopped, *overrides(faces_folder)), cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=interruptible,
    )  # fmt: skip
    while not (stopped / step / "step.json").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130, error
    assert "the same command continues" in error and "Traceback" not in error
    subprocess.run(command(stopped, *overrides(faces_folder)), cwd=ROOT, check=True, capture_output=True)
    assert metrics(stopped) == metrics(by_command)
