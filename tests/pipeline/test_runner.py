"""The steps together: which run, which are skipped, redone, continued, shared."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import time
from collections import Counter

import cv2
import numpy as np
import pytest
from conftest import raises, tiny_config
from runs import (
    STEPS,
    contents,
    metrics,
    random_config,
    small_config,
    steps_run,
)

from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.pipeline import dev_set, planning, records, runner, train_stages
from gdrd_jax.pipeline.run import Run
from gdrd_jax.teachers import arcface
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import locked, write_json
from gdrd_jax.utils.launch import ProcessInfo
from gdrd_jax.utils.signals import Interrupted

pytestmark = pytest.mark.usefixtures("few_rows")


def test_results_of_every_row_are_written(finished):
    found = metrics(finished)
    assert list(found) == ["student", "tiny_native", "tiny_16", "pixels_16"]
    for row in found.values():
        assert {"accuracy", "auc", "eer", "rank_1"} <= row.keys()
        assert 0 <= row["accuracy"] <= 100
    assert found["tiny_native"]["auc"] > 60  # the made people differ, and the teacher sees it
    for name in ("roc.csv", "roc.png", "report.html"):
        assert (finished / name).stat().st_size > 1000
    assert json.loads((finished / "gen" / "metrics.json").read_text()).keys() >= {"r2", "held_out_r2"}


def test_a_second_run_does_nothing(finished, faces_folder, caplog, monkeypatch):
    def written():
        files = (path for path in finished.rglob("*") if path.is_file() and path.name not in ("config.json", ".lock"))
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    monkeypatch.setattr(runner, "_do", lambda states, *_: pytest.fail(f"{states[0].step.name} ran"))
    assert steps_run(small_config(faces_folder), finished, caplog) == []
    assert written() == before


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"evaluation.images_per_person": 2}, ["report"]),
        ({"dis.losses.rcd.tau": 0.5}, ["dis", "report"]),
        ({"student.hidden": ()}, ["dis", "report"]),
        ({"gen.learning_rate": 0.01}, ["gen", "dis", "report"]),
        ({"discriminative.settings": {"size": 56}}, ["discriminative", "dis", "report"]),
        ({"discriminative.name": "other"}, ["report"]),
        ({"generative.tap": "parts"}, ["generative", "gen", "dis", "report"]),
        ({"views.shift": 1.0}, ["views", "discriminative", "generative", "gen", "dis", "report"]),
    ],
)
def test_what_depends_on_a_changed_setting_is_redone_and_nothing_else(finished, faces_folder, change, redone):
    config = small_config(faces_folder)
    config.update_from_flattened_dict(change)
    assert [step.name for step in planning.plan(config, finished) if step.action == "run"] == redone


def count_reads(monkeypatch):
    reads, read = [], Faces.read
    monkeypatch.setattr(Faces, "read", lambda faces, row: reads.append(faces.names[row]) or read(faces, row))
    return reads


@pytest.mark.parametrize("random", [False, True])
def test_one_pass_over_the_faces_serves_all_steps_that_read_them(faces_folder, tmp_path, monkeypatch, caplog, random):
    config = random_config(faces_folder) if random else small_config(faces_folder)
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
    config, write = small_config(faces_folder), FeatureStore.write
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
    config.discriminative.settings = {"size": 56}
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


def test_output_without_its_record_is_kept_aside_and_made_again(copy, faces_folder, caplog):
    folder = (copy / "dis").resolve()
    (folder / "step.json").unlink()
    trained = contents(folder)
    assert steps_run(small_config(faces_folder), copy, caplog) == ["dis"]
    aside = folder.with_name(f"{folder.name}.unknown1")
    assert contents(aside) == trained and str(aside) in caplog.text


def test_output_is_looked_for_in_the_folder_that_the_config_names_now(faces_folder, tmp_path, caplog):
    config = small_config(faces_folder)
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
    config = small_config(faces_folder)
    config.outputs = str(tmp_path / "shared")
    runner.run(config, tmp_path / "runs" / "x", ("faces",))
    assert len(Run.open(tmp_path / "runs" / "x").faces("train")) > 0


def test_a_new_format_of_one_step_redoes_that_step(copy, faces_folder, monkeypatch):
    config = small_config(faces_folder)
    steps = [dataclasses.replace(s, format_version=2) if s.name == "dis" else s for s in runner.steps(config)]
    monkeypatch.setattr(planning, "steps", lambda config: tuple(steps))
    assert not planning.finished(config, copy)
    config.until = "gen"
    assert planning.finished(config, copy)


def test_settings_can_be_changed_back_and_forth_and_nothing_is_lost(copy, faces_folder, caplog):
    config = small_config(faces_folder)
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
    assert steps_run(small_config(faces_folder), copy, caplog) == []
    assert Recognizer.load(copy).fingerprint() == student
    assert {name: (copy / name).read_bytes() for name in results} == results
    after = contents(copy / "steps")
    assert {name: after[name] for name in before} == before
    names = sorted(path.name.split("-")[0] for path in (copy / "steps").iterdir())
    assert names == sorted([*STEPS, "gen", "dis", "report"])


@pytest.mark.parametrize(
    ("change", "run", "reason"),
    [
        ({}, (), ""),
        ({"generative.tap": "parts"}, ("generative", "gen", "dis", "report"), "files.tap (whole -> parts)"),
        (
            {"discriminative.settings": {"size": 56}}, ("discriminative", "dis", "report"),
            "files.discriminative.settings.size (112 -> 56)",
        ),
        ({"dis.losses.rcd.tau": 0.5}, ("dis", "report"), "settings.dis.losses.rcd.tau (None -> 0.5)"),
        ({"evaluation.images_per_person": 2}, ("report",), "settings.evaluation.images_per_person (10 -> 2)"),
    ],
)  # fmt: skip
def test_the_plan_says_what_would_run_and_why_and_writes_nothing(finished, faces_folder, change, run, reason):
    config = small_config(faces_folder)
    config.update_from_flattened_dict(change)
    before = contents(finished)
    plan = {step.name: step for step in planning.plan(config, finished)}
    assert {name: step.action for name, step in plan.items()} == {
        **dict.fromkeys(STEPS, "skip"), **dict.fromkeys(run, "run")
    }  # fmt: skip
    assert not run or reason in plan[run[0]].reason
    assert contents(finished) == before


def test_the_plan_of_a_new_workdir_and_of_a_stopped_one(faces_folder, tmp_path, monkeypatch):
    config = small_config(faces_folder)
    assert [step.action for step in planning.plan(config, tmp_path / "new")] == ["run"] * 7  # no small faces
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
    plan = {step.name: step for step in planning.plan(small_config(moved), finished)}
    assert plan["faces"].action == "run" and plan["views"].action == "skip"
    assert plan["views"].reason.endswith("if faces gives the same output")


def test_a_training_that_was_interrupted_is_continued_after_other_settings(copy, faces_folder, monkeypatch, caplog):
    config = small_config(faces_folder)
    config.dis.evaluate_every, config.until = 40, "dis"  # the same function trains
    with monkeypatch.context() as patched:
        patched.setattr(train_stages, "write_json", lambda *_: (_ for _ in ()).throw(Interrupted("now", signal.SIGINT)))
        with pytest.raises(Interrupted):
            runner.run(config, copy)
    begun = (copy / "dis").resolve()
    assert (begun / "checkpoints").exists()
    assert steps_run(small_config(faces_folder), copy, caplog) == [] and (copy / "dis").resolve() != begun
    assert steps_run(config, copy, caplog) == ["dis"]
    assert "dis: continued" in caplog.text and (copy / "dis").resolve() == begun


def test_what_a_step_has_cost_is_recorded_before_it_ends(faces_folder, tmp_path, monkeypatch):
    """A process that is killed writes nothing more."""
    seen = [0.0]

    def work(steps, current):
        deadline = time.monotonic() + 60
        while (spent := records.read(current.folder("faces"))["core_seconds"]) <= seen[-1]:
            assert time.monotonic() < deadline
        seen.append(spent)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "SECONDS_BETWEEN_RECORDS", 0.01)
    monkeypatch.setattr(runner, "_work", work)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            runner.run(small_config(faces_folder), tmp_path / "run", ("faces",))
    record = records.read(tmp_path / "run" / "faces")
    assert not record["complete"] and record["core_seconds"] >= seen[2] > seen[1] > 0


def test_a_step_that_is_only_made_again_costs_no_later_training(copy, faces_folder, caplog):
    (copy / "gen" / "step.json").unlink()
    dis = contents(copy / "dis")
    assert steps_run(small_config(faces_folder), copy, caplog) == ["gen"]
    assert contents(copy / "dis") == dis


def test_a_helping_process_makes_lost_output_again(copy, faces_folder, monkeypatch):
    shutil.rmtree(copy / "views" / "train")
    ran = []
    helping = Run(small_config(faces_folder), copy, ProcessInfo(1, 2))
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


@pytest.mark.parametrize("lost", ["gen/backbone", "report.html", "report/roc.png", "views/train"])
def test_lost_output_is_made_again(copy, faces_folder, caplog, lost):
    before = metrics(copy)
    shutil.rmtree(copy / lost, ignore_errors=True)
    (copy / lost).unlink(missing_ok=True)
    # The results in the workdir are copies of those in the step's folder.
    redone = [] if lost == "report.html" else [lost.split("/")[0]]
    assert steps_run(small_config(faces_folder), copy, caplog) == redone
    assert (copy / lost).exists()
    assert metrics(copy) == before


def test_results_do_not_outlive_what_they_were_made_from(copy, faces_folder, untrained):
    config = small_config(faces_folder)
    config.dis.losses.rcd.tau = 0.5
    config.until = "dis"
    runner.run(config, copy)
    assert not (copy / "metrics.json").exists() and not (copy / "report.html").exists()
    assert all((copy / "report" / name).exists() for name in planning.RESULTS)


def test_faces_that_were_only_touched_or_moved_redo_nothing_else(finished, faces_folder, tmp_path, caplog):
    moved = shutil.copytree(faces_folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    workdir = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    assert steps_run(small_config(moved), workdir, caplog) == ["faces"]
    assert str(moved) in (workdir / "faces" / "train.json").read_text()


def test_a_changed_face_redoes_everything(finished, faces_folder, tmp_path, caplog):
    faces, workdir = tmp_path / "faces", shutil.copytree(finished, tmp_path / "run", symlinks=True)
    shutil.copytree(faces_folder, faces)
    config = small_config(faces)
    config.until = "gen"
    assert steps_run(config, workdir, caplog) == ["faces"]
    cv2.imwrite(str(faces / "p0" / "0.png"), np.zeros((112, 112, 3), np.uint8))
    assert steps_run(config, workdir, caplog) == ["faces", "views", "generative", "gen"]


def test_stage_gen_needs_no_recognizer_and_stage_dis_goes_on_from_it(
    copy, faces_folder, tmp_path, caplog, untrained
):  # fmt: skip
    config = small_config(faces_folder)
    config.update_from_flattened_dict({"until": "gen", "discriminative.kind": "auto", "gen.learning_rate": 0.01})
    plan = planning.plan(config, tmp_path / "run")
    assert [step.name for step in plan] == ["faces", "views", "generative", "gen"]
    shutil.rmtree((copy / "discriminative").resolve())
    config.outputs = str(copy / "steps")
    assert steps_run(config, tmp_path / "run", caplog) == ["gen"]
    config.update_from_flattened_dict({"until": "report", "discriminative.kind": "tiny"})
    assert steps_run(config, tmp_path / "run", caplog) == ["discriminative", "dis", "report"]


def test_workdirs_share_one_folder_of_outputs(copy, faces_folder, tmp_path, caplog, untrained):
    before = contents(copy / "steps")
    config = small_config(faces_folder)
    config.outputs, config.dis.losses.rcd.tau = str(copy / "steps"), 0.5
    assert steps_run(config, tmp_path / "run", caplog) == ["dis", "report"]
    assert (tmp_path / "run" / "gen").resolve() == (copy / "gen").resolve()
    assert [path.name.split("-")[0] for path in (tmp_path / "run" / "steps").iterdir()] == ["report"]  # names the run
    assert steps_run(config, tmp_path / "run", caplog) == []
    config.gen.learning_rate = 0.01
    assert steps_run(config, tmp_path / "run", caplog) == ["gen", "dis", "report"]
    after = contents(copy / "steps")
    assert {name: after[name] for name in before} == before
    assert planning.finished(small_config(faces_folder), copy) and metrics(copy) != metrics(tmp_path / "run")


def test_runs_that_need_the_same_output_wait_for_each_other(
    copy, faces_folder, tmp_path, caplog, monkeypatch, untrained
):  # fmt: skip
    config = small_config(faces_folder)
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


def test_whether_everything_is_done(copy, faces_folder):
    config = small_config(faces_folder)
    assert planning.finished(config, copy)
    config.dis.losses.rcd.tau = 0.5
    assert not planning.finished(config, copy)
    config.until = "gen"
    assert planning.finished(config, copy)
    (copy / "gen" / "metrics.json").unlink()
    assert not planning.finished(config, copy)


def test_students_of_other_resolutions_share_the_targets_of_the_discriminative_teacher(
    copy, faces_folder, tmp_path, caplog, untrained
):
    config = small_config(faces_folder)
    config.views.update(resolution=8, blur=1.0)
    config.outputs, config.until = str(copy / "steps"), "dis"
    config.dis.update(init="random", freeze=())
    assert steps_run(config, tmp_path / "small", caplog) == ["views", "dis"]
    config.views.shift += 1.0
    assert steps_run(config, tmp_path / "small", caplog) == ["views", "discriminative", "dis"]


def test_a_dev_set_that_is_only_touched_costs_no_training(faces_folder, tmp_path):
    config, dev = small_config(faces_folder), shutil.copytree(faces_folder, tmp_path / "dev")
    config.dev.path = str(dev)
    before, face = dev_set.files(config), next(dev.rglob("*.png"))
    os.utime(face, (0, 0))
    assert dev_set.files(config) == before
    pixels = bytearray(face.read_bytes())
    pixels[-20] ^= 1
    face.write_bytes(pixels)
    assert dev_set.files(config) != before


def test_the_end_names_the_student_the_next_command_and_the_time_of_this_command(copy, faces_folder, caplog):
    record = records.read(copy / "views") | {"complete": False, "seconds": 1000.0}
    write_json(copy / "views" / records.NAME, record)
    assert steps_run(small_config(faces_folder), copy, caplog) == ["views"]
    assert f"gdrd export {copy} " in caplog.text and str(copy / "dis" / "student") in caplog.text
    (line,) = (message for message in caplog.messages if message.startswith("views: done in "))
    assert float(line.split()[3]) < 900 and "100" in line.split(", ")[1]
