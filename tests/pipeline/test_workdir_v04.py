"""Workdirs, settings and names of earlier versions."""

import errno
import json
import logging
import shutil

import forked
import pytest
from conftest import raises, tiny_config
from runs import STEPS, contents, draw_roc, metrics, small_config, steps_run

from gdrd_jax.config import (
    FLAT_LOSSES,
    LOSS_DEFAULTS,
    RENAMED,
    default,
    set_loss,
    value_of,
    with_current_names,
)
from gdrd_jax.pipeline import planning, records, runner, workdir_v04
from gdrd_jax.pipeline.steps import discriminative
from gdrd_jax.utils.launch import ProcessInfo

pytestmark = pytest.mark.usefixtures("few_rows")


def test_an_earlier_name_of_a_preprocessing_redoes_nothing(faces_folder):
    config, recorded = tiny_config(faces_folder), []
    for name in ("inside", "in_graph", "unit"):
        config.discriminative.preprocessing = name
        origin = records.origin_of(discriminative.STEP, config, {}, {"faces": "x"})
        recorded.append(origin["settings"]["discriminative.preprocessing"])
    assert recorded == ["inside", "inside", "unit"]


def from_version(workdir, version, steps=STEPS):
    """Rewrites the records, and names and places the files, as versions up to 0.4.0 did."""
    for step in steps:
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
def test_another_version_of_the_program_redoes_nothing(
    copy, faces_folder, caplog, tmp_path, version, monkeypatch, untrained
):
    results = metrics(copy)
    from_version(copy, version)
    monkeypatch.setattr("gdrd_jax.__version__", "99.0")
    config = small_config(faces_folder)
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
    assert steps_run(small_config(faces_folder), workdir, caplog) == []
    assert (workdir / "views").resolve() == other / "views"
    assert steps_run(small_config(faces_folder), other, caplog) == []  # moves its own
    assert steps_run(small_config(faces_folder), workdir, caplog) == [] and planning.finished(
        small_config(faces_folder), workdir
    )


def test_a_link_of_an_earlier_version_is_not_written_through_where_it_leads_to_other_output_now(
    faces_folder, tmp_path, caplog
):
    config, other, workdir = small_config(faces_folder), tmp_path / "other", tmp_path / "mine"
    runner.run(config, other, ("faces", "views"))
    runner.run(config, workdir, ("faces",))
    mine = (other / "views").resolve()
    (workdir / "steps" / mine.name).symlink_to(other / "views")  # as adopted from version 0.4
    config.views.shift = 1.0
    runner.run(config, other, ("views",))  # `other/views` leads to this output now
    before = contents(other / "steps")
    config = small_config(faces_folder)
    caplog.clear()
    with caplog.at_level(logging.INFO, "gdrd_jax"):
        runner.run(config, workdir, ("views",))
    assert contents(other / "steps") == before and "views: done in" in caplog.text
    assert (workdir / "views").resolve() == workdir / "steps" / mine.name
    shutil.rmtree(workdir / "steps" / mine.name)
    (workdir / "steps" / mine.name).symlink_to(tmp_path / "gone")
    runner.run(config, workdir, ("views",))
    assert (workdir / "views" / "step.json").exists() and not (tmp_path / "gone").exists()


def test_a_result_that_an_earlier_version_wrote_and_that_was_lost_is_made_again(
    copy, faces_folder, caplog, monkeypatch
):
    from_version(copy, "0.4.0")
    monkeypatch.setattr("gdrd_jax.evaluation.report.draw_roc", draw_roc())
    (copy / "roc.png").unlink()
    assert steps_run(small_config(faces_folder), copy, caplog) == ["report"]
    assert (copy / "roc.png").stat().st_size > 1000


def test_workdirs_of_an_earlier_version_that_share_a_folder_of_outputs_are_used_in_any_order(
    finished, faces_folder, tmp_path, caplog
):
    first = shutil.copytree(finished, tmp_path / "first", symlinks=True)
    from_version(first, "0.4.0")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "faces").symlink_to(first / "faces")
    shutil.copy(first / "config.json", tmp_path / "second")
    config = small_config(faces_folder)
    config.outputs = str(tmp_path / "steps")
    caplog.set_level(logging.INFO, "gdrd_jax")
    for workdir in (tmp_path / "second", first, tmp_path / "second"):
        runner.run(config, workdir, ("faces",))
        assert (workdir / "faces" / "train.json").exists() and "faces: done in" not in caplog.text
    assert not list((tmp_path / "steps").glob("faces-*"))[0].is_symlink() and (first / "faces").is_symlink()


def test_a_helping_process_accepts_what_an_earlier_version_did(copy, faces_folder):
    from_version(copy, "0.4.0")
    runner.run(small_config(faces_folder), copy, process=ProcessInfo(1, 2))


def test_output_of_an_earlier_version_on_another_file_system_has_a_remedy(copy, faces_folder, tmp_path, monkeypatch):
    from_version(copy, "0.4.0")
    config = small_config(faces_folder)
    config.outputs = str(tmp_path / "outputs")

    def rename(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(workdir_v04.os, "rename", rename)
    with raises("outputs-other-device", "config.outputs", copy / "faces"):
        runner.run(config, copy)


def test_settings_that_came_later_leave_older_workdirs_valid(copy, faces_folder, caplog, untrained):
    record = json.loads((copy / "dis" / "step.json").read_text())
    assert record["origin"]["settings"]["dis"]["losses"] == {
        "cls": {"weight": 1.0}, "kd": {"weight": 0.25}, "rcd": {"weight": 4.0}
    }  # fmt: skip
    assert "init" not in record["origin"]["settings"]["student"]
    config = small_config(faces_folder)
    set_loss(config.dis, "nce", "weight", 0.1)
    assert steps_run(config, copy, caplog) == ["dis", "report"]
