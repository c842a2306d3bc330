"""Mistakes that are found before any work."""

import shutil

import pytest
import torch
from conftest import raises, tiny_config
from runs import assert_refused_first, random_config, small_config

from gdrd_jax.inference import student_files
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.pipeline import planning, runner
from gdrd_jax.pipeline.run import Run
from gdrd_jax.utils.launch import ProcessInfo

pytestmark = pytest.mark.usefixtures("few_rows")


def test_a_folder_of_outputs_in_which_weights_could_not_be_stored_is_refused(faces_folder, tmp_path):
    config = small_config(faces_folder)
    config.outputs = str(tmp_path / "a[b")
    with raises("path-character", tmp_path / "a[b", "'['"):
        runner.run(config, tmp_path / "run")


def test_a_damaged_record_is_one_sentence(copy, faces_folder):
    record = (copy / "dis" / "step.json").read_text()
    for text in ("{", "[1]", '{"origin": {"settings": {}}}', record.replace('"complete"', '"whole"')):
        (copy / "dis" / "step.json").write_text(text)
        with raises("record-damaged", "step.json", (copy / "dis").resolve().name):
            runner.run(small_config(faces_folder), copy)
    assert (copy / "dis" / "student").exists()
    for text in ("{", "[1]"):
        (copy / "config.json").write_text(text)
        with raises("record-damaged", copy / "config.json"):
            Run.open(copy)


def test_the_plan_refuses_what_the_run_refuses(finished, faces_folder, tmp_path):
    config = small_config(faces_folder)
    config.name = "other"
    with raises("workdir-owner", finished, "'tiny'", "'other'"):
        planning.plan(config, finished)
    (tmp_path / "thesis.tex").touch()
    with raises("workdir-other", tmp_path):
        planning.plan(config, tmp_path)


def test_weights_are_not_saved_over_other_things(finished, tmp_path):
    recognizer = Recognizer.load(finished)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.onnx").touch()
    with raises("output-not-ours", tmp_path / "models"):
        student_files.save(recognizer.student, {}, "area", tmp_path / "models")
    assert (tmp_path / "models" / "mine.onnx").exists()


def test_a_folder_of_outputs_that_holds_other_things_is_refused(faces_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    config = small_config(faces_folder)
    config.outputs = str(tmp_path / "mine")
    with raises("outputs-other", tmp_path / "mine", "config.outputs"):
        runner.run(config, tmp_path / "run")
    config.outputs = str(tmp_path / "run")
    with raises("outputs-is-workdir", tmp_path / "run", "config.outputs"):
        runner.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dev_set_is_opened_before_the_first_step_unless_all_is_done(faces_folder, tmp_path, monkeypatch):
    (tmp_path / "pairs.txt").write_text("10\t300\n")
    config = small_config(faces_folder)
    config.dev.update(path=str(faces_folder), pairs=str(tmp_path / "pairs.txt"))
    with raises("pairs-count", tmp_path / "pairs.txt", 10, 300):
        runner.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    walk = planning.Walk(config, tmp_path / "run", planning.with_ancestors(("dis",), config))
    with raises("pairs-count", 10, 300):
        runner._check_later_steps(walk, ProcessInfo())
    monkeypatch.setattr(planning.StepState, "is_done", lambda _: True)
    runner._check_later_steps(walk, ProcessInfo())


def test_a_used_workdir_is_refused_where_resuming_is_not_wanted(finished, faces_folder, tmp_path):
    config = small_config(faces_folder)
    config.resume = False
    before = (finished / "metrics.json").read_bytes()
    with raises("workdir-used", finished, "config.resume", "--workdir"):
        runner.run(config, finished)
    assert (finished / "metrics.json").read_bytes() == before
    runner.run(config, tmp_path / "new", ("faces",))


def test_a_workdir_of_another_config_is_refused(copy, faces_folder, tmp_path):
    config = small_config(faces_folder)
    config.name = "other"
    before = sorted(copy.rglob("*"))
    with raises("workdir-owner", copy, "'tiny'", "'other'", "--workdir"):
        runner.run(config, copy)
    assert sorted(copy.rglob("*")) == before
    with raises("workdir-file", copy / "metrics.json"):
        runner.run(config, copy / "metrics.json")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with raises("workdir-other", tmp_path / "mine"):
        runner.run(config, tmp_path / "mine")


def test_weights_by_any_name_are_checked_before_any_work(faces_folder, tmp_path):
    config = tiny_config(faces_folder)
    config.discriminative.update(path=str(tmp_path / "model.ckpt"), output="embedding")
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "model.ckpt")
    with raises("teacher-option", "config.discriminative.output", "'iresnet'"):
        runner.run(config, tmp_path / "run")
    config.discriminative.output = ""
    (tmp_path / "model.ckpt").write_bytes((tmp_path / "model.ckpt").read_bytes()[:200])
    with raises("weights-unreadable", tmp_path / "model.ckpt"):
        runner.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_fit_leaves_the_old_output(copy, faces_folder, monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 4)
    config = small_config(faces_folder)
    config.gen.batch = 6
    with raises("batch-not-divisible", "batch 6", "stage gen", "4 devices"):
        runner.run(config, copy)
    assert (copy / "gen" / "backbone").exists() and (copy / "metrics.json").exists()


def test_two_runs_do_not_share_a_workdir(finished, faces_folder):
    config = small_config(faces_folder)
    with runner.lock_workdir(finished, config), raises("folder-in-use", finished):
        runner.run(config, finished)


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        ({"data.path": "nowhere"}, "path-missing", ["'nowhere'"]),
        ({"data.path": ""}, "data-path-unset", ["config.data.path"]),
        ({"data.test_people": 6}, "people-too-few", ["config.data.test_people", 7, 8]),
        ({"data.calibration_people": 6}, "people-too-few", ["config.data.calibration_people to at most 3", 8]),
        ({"data.glob": "0.png"}, "person-one-image", ["'p5'"]),
        ({"data.glob": "*.gif"}, "faces-none", ["*.gif"]),
        ({"views.resolution": 20}, "student-resolution", ["config.views.resolution", 20, "8, 16, 24, 32", "16 or 24"]),
        ({"views.count": 1}, "views-count", ["config.views.count", 2]),
        ({"gen.steps": 0}, "config-range", ["config.gen.steps"]),
        ({"dis.losses.rcd.positive": "both"}, "entry-setting", ["'rcd'", "'both'", "pair, identity"]),
        ({"dis.losses": {"rccd": {"weight": 1.0}}}, "entry-unknown", ["'rccd'", "did you mean 'rcd'"]),
        ({"dis.losses": {"rcd": {"tua": 1.0}}}, "entry-setting", ["'rcd'", "'tua'", "'tau'"]),
        ({"dis.losses": {"rcd": {"tau": "hot"}}}, "entry-setting", ["'tau'", "'hot'", "float"]),
        ({"dis.losses": {"rcd": {"weight": -1.0}}}, "config-range", ["config.dis.losses.rcd.weight", -1.0]),
        ({"dis.losses": {"feature_regression": {}}, "data.mixup_per_face": 1.0}, "loss-needs", ["mixup_per_face"]),
        ({"plugins": ("no_such_module",)}, "plugin-import", ["'no_such_module'"]),
        ({"dis.freeze": ("head",)}, "config-choice", ["config.dis.freeze", "backbone"]),
        ({"dis.init": "random"}, "freeze-untrained", ["config.dis.init", "config.dis.freeze"]),
        ({"student.name": "resnt"}, "student-name", ["config.student.name", "'resnet'", "gdrd", "teacher_features"]),
        ({"student.name": "resnet", "student.head_stages": 1}, "student-setting", ["config.student.head_stages is 1"]),
        ({"student.name": "teacher_features"}, "teacher-features-settings", ["config.until=dis"]),
        ({"sr.size": 30}, "sr-size", [30]),
        ({"generative.path": "nowhere"}, "diffusers-folder", ["config.generative.path", "'nowhere'"]),
        ({"generative.tap": "mid2"}, "teacher-tap", ["down0, down1, down2, mid"]),
        ({"generative.kind": "difusers"}, "entry-unknown", ["'difusers'", "'diffusers'"]),
        ({"generative.timestep": 1000}, "entry-setting", ["'diffusers'", "timestep", 1000, 999]),
        ({"generative.kind": "pgdiff"}, "generative-none", ["config.generative.path"]),
        (
            {"generative.kind": "pgdiff", "generative.path": __file__, "generative.tap": "mid"}, "network-format",
            [__file__],
        ),
        ({"generative.precision": "float16"}, "config-choice", ["float32, bfloat16"]),
        ({"views.kernel": "aera"}, "config-choice", ["did you mean 'area'"]),
        ({"generative.input_size": -1}, "config-range", ["config.generative.input_size"]),
        ({"generative.heads": 4}, "entry-setting", ["'diffusers'", "'heads'", "timestep"]),
        (
            {"generative.kind": "pgdiff", "generative.settings": {"attention_order": "old"}}, "entry-setting",
            ["'old'", "legacy or new"],
        ),
        ({"discriminative.path": __file__}, "network-format", [__file__]),
        ({"sr.channels": ()}, "sr-settings", ["channels"]),
        ({"discriminative.preprocessing": "0/0"}, "preprocessing-unknown", ["MEAN/STD"]),
        ({"views.jpeg": 101}, "degradation-strength", ["jpeg", 101]),
        ({"dis.losses.rcd.tau": 0.0}, "entry-setting", ["'rcd'", "tau", 0.0]),
        ({"dis.losses": {"cls": {"weight": 0.0}}}, "loss-empty", ["config.dis.losses"]),
        ({"seed": -1}, "config-range", ["config.seed"]),
        ({"evaluation.images_per_person": 1}, "config-range", ["config.evaluation.images_per_person"]),
        ({"discriminative.path": ""}, "discriminative-unset", ["config.discriminative.path"]),
        ({"discriminative.path": "nowhere.onnx"}, "file-missing", ["'nowhere.onnx'"]),
        ({"data.calibration_people": 1}, "report-people", ["config.data.calibration_people"]),
        ({"dis.momentum": 5.0}, "config-range", ["config.dis.momentum", 5.0]),
        ({"gen.decay_at": (0.75, 0.5)}, "config-range", ["config.gen.decay_at"]),
        ({"dev.path": "nowhere"}, "dev-missing", ["config.dev.path", "'nowhere'"]),
        ({"dev.path": "tests", "until": "gen"}, "dev-pairs-unset", ["config.dev.pairs"]),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_any_work(faces_folder, tmp_path, change, code, facts):
    assert_refused_first(tiny_config(faces_folder), change, code, facts, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        ({"degradation.blur": 90.0}, "degradation-strength", ["blur", 90.0, 28]),
        ({"data.mixup_per_face": 1.0}, "mixup-settings", ["config.data.mixup_per_face"]),
        ({"dis.shift": 1}, "degradation-settings", ["config.dis.shift"]),
    ],
)
def test_a_random_degradation_that_cannot_be_is_refused_first(faces_folder, tmp_path, change, code, facts):
    assert_refused_first(random_config(faces_folder), change, code, facts, tmp_path / "w")


def test_people_who_calibrate_need_one_pair(faces_folder, tmp_path):
    faces = tmp_path / "faces"
    shutil.copytree(faces_folder, faces)
    for person in ("p3", "p4", "p5", "p6"):
        for image in sorted((faces / person).iterdir())[1:]:
            image.unlink()
    config = random_config(faces)
    config.until = "dis"
    config.data.update(test_people=0, calibration_people=4)
    with raises("calibration-one-image", "config.data.calibration_people", 4):
        planning.validate(config, tmp_path / "w")
    config.data.calibration_people = 5
    planning.validate(config, tmp_path / "w")
    config.data.update(test_people=1, calibration_people=4)
    with raises("person-one-image", "'p6'"):
        planning.validate(config, tmp_path / "w")
