"""The grid tool: what it runs and how it compares."""

import contextlib
import dataclasses
import itertools
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_faces, make_lfw, raises, save_recognizer, save_student

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from gdrd_jax.cli import run_grid  # noqa: E402
from gdrd_jax.config import default, stage  # noqa: E402
from gdrd_jax.data.degradation import Degradation, resize_all  # noqa: E402
from gdrd_jax.evaluation import baselines, grid_rows, grid_table, judges  # noqa: E402
from gdrd_jax.evaluation.grid_rows import DEV, Judged, Row  # noqa: E402
from gdrd_jax.evaluation.methods import METHODS  # noqa: E402
from gdrd_jax.inference.embedders import open_model  # noqa: E402
from gdrd_jax.pipeline import grid, run_record  # noqa: E402
from gdrd_jax.utils import files  # noqa: E402
from gdrd_jax.utils.outputs import claim_folder  # noqa: E402


def test_braces_are_every_combination():
    found = grid.expanded("configs/ablation.py:{none,gen_dis}", ["--config.views.resolution={8,16}", "--x"])
    assert [name for name, _ in found] == ["none-8", "none-16", "gen_dis-8", "gen_dis-16"]
    assert found[1][1] == ["--config=configs/ablation.py:none", "--config.views.resolution=16", "--x"]
    for config, name in (("a/b.py", "b"), ("zoo:kd", "kd"), ("a/b.py:kd", "kd")):  # names of rows are names of files
        assert grid.expanded(config, ["--x"]) == [(name, [f"--config={config}", "--x"])]
    for config, names in (
        ("my.py:{0.5,1.5}", ["0.5", "1.5"]), ("my{,_own}.py", ["none", "_own"]), ("my.py:/data/x", ["x"]),
    ):  # fmt: skip
        assert [name for name, _ in grid.expanded(config, [])] == names
    files = grid.expanded("{zoo:kd,a/b.py,c/d.py:kd2}", ["--config.generative.path={x/y.onnx,}"])
    assert [name for name, _ in files] == ["kd-y.onnx", "kd-none", "b-y.onnx", "b-none", "kd2-y.onnx", "kd2-none"]


def test_a_star_is_every_mode_of_a_config(tmp_path):
    modes = run_grid.all_modes("zoo:*")
    assert modes.startswith("zoo:{cls,") and modes.count(",") == len(METHODS) - 1
    (tmp_path / "own.py").write_text("MODES = {'one': 1}")
    assert run_grid.all_modes(f"{tmp_path}/own.py:*") == f"{tmp_path}/own.py:one"
    for text in ("zoo:{cls,kd}", "zoo", "zooo:*"):  # the check of the runs says that there is no zooo
        assert run_grid.all_modes(text) == text
    with raises("config-mode", "quickstart has no MODES", "quickstart:{ONE,TWO}"):
        run_grid.all_modes("quickstart:*")


def written(folder, scores, same, folds, resolution=16, seed=0):
    """The row of what a run leaves."""
    (folder / "dis").mkdir(parents=True)
    of = {"first": np.arange(len(same)), "second": np.arange(len(same)) + 1}
    of["people"] = np.stack([np.arange(len(same))] * 2, axis=1)  # each pair has people of its own
    np.savez(folder / "dis" / "dev.npz", scores=scores, same=same, folds=folds, **of)
    return Row(folder.name, seed, {DEV: judges.of_training(folder / "dis")}, {"resolution": resolution})


def test_differences_are_paired(tmp_path):
    """Two models that are right on the same pairs but for a few: the difference is surer than either figure."""
    rng, same, folds = np.random.default_rng(0), np.tile([True, False], 300), np.repeat(np.arange(5), 120)
    runs = {"worse": [], "better": []}
    for seed in range(3):
        sign = np.where(same, 1.0, -1.0) * np.where(rng.permutation(600) < 120, -1, 1)  # 120 of 600 are wrong
        runs["better"].append(written(tmp_path / f"b{seed}", sign, same, folds, seed=seed))
        changed = sign.copy()
        changed[np.flatnonzero(sign == np.where(same, 1.0, -1.0))[:12]] *= -1  # 2 % more
        runs["worse"].append(written(tmp_path / f"w{seed}", changed, same, folds, seed=seed))
    worse, better = grid_table.compared(runs, "better")
    assert better["accuracy"] == pytest.approx(80) and worse["accuracy"] == pytest.approx(78)
    assert worse["difference"] == pytest.approx(-2) and "difference" not in better
    assert 0.1 < worse["difference_standard_error"] < 1.0
    assert worse["standard_error"] == pytest.approx(np.sqrt(0.78 * 0.22 / 600) * 100, rel=0.5)
    text = grid_table.table([worse, better], "better")
    assert text.count("\n") == 4 and "-2.00 ± " in text


def test_a_run_that_does_not_say_who_is_in_its_pairs_is_told(tmp_path):
    same, folds = np.tile([True, False], 4), np.repeat([0, 1], 4)
    written(tmp_path / "run", same * 1.0, same, folds)
    found = dict(np.load(tmp_path / "run" / "dis" / "dev.npz"))
    del found["people"]
    np.savez(tmp_path / "run" / "dis" / "dev.npz", **found)
    with raises("dev-scores-outdated", tmp_path / "run" / "dis" / "dev.npz"):
        judges.of_training(tmp_path / "run" / "dis")


def test_one_seed_has_no_standard_error_and_the_paper_only_its_own_resolution(tmp_path):
    same, folds = np.tile([True, False], 4), np.repeat([0, 1], 4)
    runs = {
        name: [written(tmp_path / name, same * 1.0, same, folds, resolution)]
        for name, resolution in (("none", 8), ("gen_dis", 16))
    }
    rows = grid_table.compared(runs, "none")
    assert [row["paper"] for row in rows] == [None, 96.13]
    assert rows[1]["standard_error"] is None and rows[1]["difference_standard_error"] is None
    assert "nan" not in grid_table.table(rows)


def test_the_difference_of_one_seed_has_its_interval_over_people(tmp_path):
    same, folds = np.tile([True, False], 300), np.repeat(np.arange(5), 120)
    wrong = np.arange(600) < 60
    runs = {
        name: [written(tmp_path / name, np.where(same != swapped, 1.0, -1.0), same, folds)]
        for name, swapped in (("worse", wrong), ("better", np.zeros(600, bool)))
    }
    worse = grid_table.compared(runs, "better")[0]
    # Of the share of 60 of 600 pairs; each pair has people of its own.
    error = 196 * np.sqrt(0.1 * 0.9 / 600)
    assert worse["difference_low"] == pytest.approx(-10 - error, abs=0.3)
    assert worse["difference_high"] == pytest.approx(-10 + error, abs=0.3)
    assert "| -10.00 (-12." in grid_table.table([worse], "better")


def test_the_runs_of_a_grid_share_the_output_of_steps():
    given = ["--config=x.py", "--config.seed=8", "--workdir=out/a-seed8", "--config.outputs=out/steps"]
    assert grid.arguments(["--config=x.py"], 8, Path("out/a-seed8")) == given
    own = "--config.outputs=runs/mine/steps"
    assert grid.arguments(["--config=x.py", own], 8, Path("out/a-seed8")) == [given[0], own, *given[1:3]]


@pytest.mark.parametrize(
    ("words", "code", "facts"),
    [
        (["--seeds", "7", "7"], "run-twice", ["two seeds", "7"]),
        (["--", "--config.generative.path={runs/small/teacher,runs/big/teacher}"], "run-twice", ["'teacher'"]),
        (["--against=sr"], "flag-value", ["--against=sr"]),
        (
            ["--seeds", "7", "--", "--config.data.path=faces"], "dev-missing",
            ["--config.dev.path=LFW", "--config.dev.pairs"],
        ),
        ([], "dev-missing", ["--config.dev.path=LFW", "--config.dev.pairs"]),
        (["--seeds", "x"], "command-usage", ["--seeds", "'x'"]),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_compared_or_would_share_a_workdir_is_refused(tmp_path, words, code, facts):
    with raises(code, *facts):
        run_grid.work([f"--out={tmp_path / 'out'}", "--configs=configs/ablation.py", *words])
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_ends_the_grid(tmp_path):
    with raises("run-failed", tmp_path / "run", "status 2"):
        grid.train(["--config=none.py"], tmp_path / "run")


def test_a_dev_set_without_folds_is_told(tmp_path):
    with raises("dev-folds", "--config.dev.path", "--config.dev.pairs"):
        written(tmp_path / "run", np.ones(4), np.array([True, False] * 2), np.zeros(4, int))


def test_rows_of_another_evaluation_stand_beside(tmp_path):
    same, folds = np.tile([True, False], 40), np.repeat([0, 1], 40)
    (tmp_path / "teacher").mkdir()
    names = np.array([f"P{i:04}" for i in range(82)[::-1]])  # evaluation has names, training has rows
    of = {"same": same, "fold": folds, "first": names[np.arange(80)], "second": names[np.arange(80) + 1]}
    np.savez(tmp_path / "teacher" / "scores.npz", **{"teacher_16/scores": same * 1.0}, **of)
    beside = judges.of_evaluation(tmp_path / "teacher")
    scores = np.random.default_rng(0).normal(size=(2, 80)) + same
    runs = {"plain": [written(tmp_path / str(i), scores[i], same, folds, seed=i) for i in range(2)]}
    subject = runs["plain"][0].judged[DEV].subject
    judges.check_baseline(subject, beside["teacher_16"])
    plain, teacher = grid_table.compared(runs | beside, "plain")
    assert teacher["name"] == "teacher_16" and teacher["accuracy"] == 100 and teacher["standard_error"] is None
    assert teacher["difference"] == pytest.approx(100 - plain["accuracy"]) and teacher["difference_standard_error"] > 0
    with raises("baseline-missing", "--baseline", tmp_path / "scores.npz"):
        judges.of_evaluation(tmp_path)
    np.savez(
        tmp_path / "teacher" / "scores.npz",
        **{"other_16/scores": same * 1.0},
        **{**of, "first": names[np.arange(80) + 2]},
    )
    with raises("baseline-pairs", "--baseline", "--config.dev.pairs"):
        judges.check_baseline(subject, judges.of_evaluation(tmp_path / "teacher")["other_16"])
    with raises("row-data", "other_16.json", "0-seed0.json"):
        grid_table.compared(runs | judges.of_evaluation(tmp_path / "teacher"), "plain")
    turned = {"other_16/scores": same * 1.0, **of, "same": ~same}
    np.savez(tmp_path / "teacher" / "scores.npz", **turned)
    with raises("baseline-pairs", "--baseline", "--config.dev.pairs"):
        judges.check_baseline(subject, judges.of_evaluation(tmp_path / "teacher")["other_16"])
    with raises("row-data", "other_16.json", "0-seed0.json"):
        grid_table.compared(runs | judges.of_evaluation(tmp_path / "teacher"), "plain")


def test_whose_faces_are_in_one_pair_each_cannot_be_told_from_others(tmp_path):
    same, folds = np.tile([True, False], 40), np.repeat([0, 1], 40)
    each = {"first": np.arange(80) * 2, "second": np.arange(80) * 2 + 1}
    np.savez(tmp_path / "scores.npz", **{"teacher_16/scores": same * 1.0}, same=same, fold=folds, **each)
    with raises("baseline-bin", "--baseline", ".bin", "pairs.txt"):
        judges.of_evaluation(tmp_path)


@pytest.fixture
def rows():
    """Two methods with two seeds each, on 40 pairs and 30 probes."""
    random, people = np.random.default_rng(0), np.random.default_rng(1).integers(9, size=(40, 2))

    def row(name, seed, share):
        pairs = Judged(random.random(40) < share, people, "pairs", {"auc": 90.0 + seed})
        probes = Judged(random.random(30) < share, people[:30, :1].repeat(2, axis=1), "probes")
        about = {"resolution": 16, "settings": {"dis.steps": 3}, "parameters": 1_500_000, "core_seconds": 60.0 * seed}
        return Row(name, seed, {DEV: pairs, "uccs stand-in": probes}, about)

    return {name: [row(name, seed, share) for seed in (7, 8)] for name, share in (("cosine", 0.9), ("crrcd", 0.6))}


def test_stored_rows_give_the_same_table_as_the_runs_themselves(rows, tmp_path, capsys):
    for row in (row for several in rows.values() for row in several):
        row.save(tmp_path)
    assert all(path.stat().st_size < 100_000 for path in tmp_path.iterdir())
    assert len(list(tmp_path.glob("*.people.json"))) == 2  # shared by all
    again = grid_rows.read_rows([tmp_path])
    assert list(again) == ["cosine", "crrcd"] and [row.seed for row in again["crrcd"]] == [7, 8]
    assert grid_table.compared(again, "cosine") == grid_table.compared(rows, "cosine")
    files_of_rows = sorted(tmp_path.iterdir())
    run_grid.work([f"--rows={tmp_path}", "--against=cosine", f"--out={tmp_path / 'out'}"])
    text = (tmp_path / "out" / "table.md").read_text()
    assert text == capsys.readouterr().out.rstrip("\n") + "\n"
    assert "CRRCD `crrcd`" in text and "95.25" in text and "97.3" in text and "1.50" in text and "7.5" in text
    assert (tmp_path / "out" / "cost.png").stat().st_size > 1000 and not (tmp_path / "out" / "roc.png").exists()
    run_grid.work([f"--rows={tmp_path}", "--against=cosine"])
    assert capsys.readouterr().out.rstrip("\n") + "\n" == text
    assert sorted(path for path in tmp_path.iterdir() if path.name != "out") == files_of_rows
    with raises("flag-value", "--against=cosin", "'cosine'"):
        run_grid.work([f"--rows={tmp_path}", "--against=cosin"])


def test_a_seed_is_paired_with_the_same_seed_only(rows):
    lines = {line["name"]: line for line in grid_table.compared({**rows, "cosine": rows["cosine"][::-1]}, "cosine")}
    expected = [np.mean(own.judged[DEV].right * 1.0 - of.judged[DEV].right) for own, of in zip(*rows.values())]
    assert lines["crrcd"]["difference"] == pytest.approx(-100 * np.mean(expected))
    other = grid_table.compared({**rows, "cosine": rows["cosine"][:1]}, "cosine")[1]
    assert other["difference"] == pytest.approx(-100 * expected[0]) and other["difference_standard_error"] is None
    model = {"teacher_16": [dataclasses.replace(rows["cosine"][0], name="teacher_16", seed=None)]}  # paired with all
    for against, name in (("teacher_16", "crrcd"), ("crrcd", "teacher_16")):
        line = {line["name"]: line for line in grid_table.compared(rows | model, against)}[name]
        own, of = ((rows | model)[one] for one in (name, against))
        each = [np.mean(a.judged[DEV].right * 1.0 - b.judged[DEV].right) for a, b in itertools.product(own, of)]
        assert line["difference"] == pytest.approx(100 * np.mean(each)) and line["difference_standard_error"] > 0
        assert line["seeds"] == {"crrcd": 2, "teacher_16": 0}[name]


def test_rows_that_cannot_be_collected_are_refused(rows, tmp_path):
    with raises("rows-none", tmp_path):
        run_grid.work([f"--rows={tmp_path}"])
    row = rows["cosine"][0]
    row.save(tmp_path)
    (tmp_path / "copy.json").write_bytes((tmp_path / row.file).read_bytes())
    with raises("row-twice", "copy.json", "cosine-seed7.json"):
        grid_rows.read_rows([tmp_path])
    (tmp_path / "copy.json").write_text('{"format": 99}')
    with raises("row-damaged", "copy.json"):
        grid_rows.read_rows([tmp_path])


def test_a_run_that_has_a_row_is_not_trained_again_and_no_row_is_replaced_by_one_of_other_settings(rows, tmp_path):
    row = rows["cosine"][0]
    row.save(tmp_path)
    run = grid.Run("cosine", 7, tmp_path / "nowhere", ["--config=none.py"])
    assert grid.trained(run, tmp_path, {"dis.steps": 3}, ()).judged[DEV].subject == "pairs"
    run.workdir.mkdir()
    with raises("row-settings", "cosine-seed7.json", "dis.steps, dis.warmup", "--rows"):
        grid.trained(run, tmp_path, {"dis.steps": 4, "dis.warmup": 0.1}, ())
    with raises("run-failed", run.workdir):  # where it was trained, it is looked at again
        grid.trained(run, tmp_path, {"dis.steps": 3}, ())


def test_settings_are_compared_across_machines():
    config = default()
    config.until = "dis"
    config.data.path, config.dis.steps, config.gen.steps, config.seed = "/here/a.rec,/here/b.rec", 7, 8, 9
    config.stages = {"first": stage(steps=5, init="random", losses={"cls": {"weight": 1.0}})}
    config.dis.init = "first"
    found = run_record.changed_settings(config)
    assert found == {
        "data.path": "a.rec,b.rec", "dis.steps": 7, "dis.init": "first", "stages.first.steps": 5,
        "stages.first.init": "random", "stages.first.losses": {"cls": {"weight": 1.0}},
    }  # fmt: skip
    config.dis.init = "gen"  # then stage gen is trained, too
    config.stages = {}
    assert run_record.changed_settings(config)["gen.steps"] == 8


def test_runs_that_other_commands_work_on_are_left_for_the_end(tmp_path, caplog):
    runs = [grid.Run(name, 7, tmp_path / f"{name}-seed7", []) for name in ("kd", "rkd", "crd")]
    caplog.set_level("INFO")
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.locked(tmp_path / ".locks" / "kd-seed7"))  # by another command
        turns = grid.in_turn(runs, tmp_path)
        assert [next(turns).name, next(turns).name] == ["rkd", "crd"]
        assert [run.name for run in runs if files.is_locked(tmp_path / ".locks" / run.workdir.name)] == ["kd", "crd"]
        timer = threading.Timer(0.5, stack.pop_all().close)
        timer.start()
        assert [run.name for run in turns] == ["kd"] and "waiting for runs" in caplog.text
    assert not any(files.is_locked(tmp_path / ".locks" / run.workdir.name) for run in runs)
    claim_folder(tmp_path, "a grid of runs", "--out")  # locks alone are nothing that is in the way


def test_students_are_judged_by_further_protocols(tmp_path):
    people = make_faces(tmp_path / "made", 3, 4)
    for path in list(people.glob("*/*.png")):
        part = "test" if path.stem == "3" else "train"
        (tmp_path / "uccs" / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "uccs" / part / path.parent.name / path.name)
    (tmp_path / "uccs" / "STAND_IN.txt").write_text("made")
    found = run_grid.opened([f"--protocol uccs --data {tmp_path / 'uccs'} --resolution 8 16 32"])
    assert [judge.column for judge in found] == [f"uccs stand-in {side}" for side in (8, 16, 32)]
    save_student(tmp_path / "run")
    row = grid.judged_too(Row("a", 7, {}), tmp_path / "run", found)
    assert list(row.judged) == ["uccs stand-in 8", "uccs stand-in 16"]  # 32 pixels are more than it takes
    assert len(row.judged["uccs stand-in 8"].right) == 3 and "rank_5" in row.judged["uccs stand-in 8"].figures
    assert len({one.subject for one in row.judged.values()}) == 2
    with raises("protocol-decisions", "templates"):
        run_grid.opened([f"--protocol templates --data {tmp_path}"])
    with raises("flag-value", "--model"):
        run_grid.opened([f"--protocol uccs --data {tmp_path} --model gdrd-16"])


def test_a_recognizer_is_a_row_without_training(tmp_path, monkeypatch):
    lfw, path = make_lfw(tmp_path), save_recognizer(tmp_path / "colors.onnx")
    flags = [f"--config.dev.path={lfw}", f"--config.dev.pairs={tmp_path / 'pairs.txt'}"]
    pairs, how = run_grid.open_dev(flags, {}), run_grid.dev_degradation({"views.resolution": 8, "dev.path": "lfw"})
    assert how == Degradation(8, "area")
    stored, (model,) = baselines.opened([str(path)])
    others = run_grid.opened([f"--protocol lfw --data {lfw} --pairs {tmp_path / 'pairs.txt'} --resolution 8 16 native"])
    row = baselines.judged(model, how, pairs, others, tmp_path)
    assert not stored and row.name == "colors_8" and row.seed is None and row.about["resolution"] == 8
    assert list(row.judged) == [DEV, "lfw 8"]  # others have larger faces than the runs that it is compared with
    np.testing.assert_array_equal(row.judged[DEV].right, row.judged["lfw 8"].right)
    judges.check_baseline(judges.dev_subject(pairs), [row])
    monkeypatch.setattr(judges, "of_model", None)  # is not called again
    again = baselines.judged(model, how, pairs, others, tmp_path)
    assert grid_table.compared({row.name: [again]}, None) == grid_table.compared({row.name: [row]}, None)
    with raises("model-missing", "nothing.onnx"):
        baselines.opened([str(tmp_path / "nothing.onnx")])
    with raises("super-resolver", "--super-resolve"):
        baselines.opened([str(save_student(tmp_path / "run"))], "sr")
    with raises("flag-value", "colors", "--configs"):
        run_grid.work([f"--rows={tmp_path}", "--baseline", str(path)])


def test_iasr_is_a_row_beside_the_papers_figure(tmp_path):
    drawn = SimpleNamespace(
        method="iasr", low_size=16, size=32, fingerprint="0", super_resolve=lambda lr, seed: resize_all(lr, 32)
    )
    path = str(save_recognizer(tmp_path / "colors.onnx"))
    plain, model = open_model(path), open_model(path, super_resolver=drawn)
    baselines.check_sizes([plain, model], [Degradation(8, "area"), Degradation(16, "area")])
    with raises("baseline-size", "colors_iasr", "16x16", "32"):
        baselines.check_sizes([plain, model], [Degradation(32, "area")])
    flags = [f"--config.dev.path={make_lfw(tmp_path)}", f"--config.dev.pairs={tmp_path / 'pairs.txt'}"]
    row = baselines.judged(model, Degradation(16, "area"), run_grid.open_dev(flags, {}), (), tmp_path)
    row = Row(row.name, None, {**row.judged, "uccs stand-in": row.judged[DEV]}, row.about)
    row.save(tmp_path)
    text = grid_table.table(grid_table.compared(grid_rows.read_rows([tmp_path]), None))
    assert text.count("IASR (our reading) `colors_iasr_16`") == 2 and "| our reading |" in text
    assert "the paper's uccs %" in text and "| 89.7 |" in text
    row = Row(row.name, None, row.judged, {**row.about, "super_resolution": "sr_diffusion"})
    text = grid_table.table(grid_table.compared({row.name: [row]}, None))
    assert "SR diffusion `colors_iasr_16`" in text and "paper's" not in text


def grid_command(tmp_path, faces_folder, *words):
    """A command line of small runs, with an LFW of made people."""
    lfw = make_faces(tmp_path / "made", 8, 2)
    for person in sorted(lfw.iterdir()):
        for i, image in enumerate(sorted(person.iterdir())):
            image.rename(person / f"{person.name}_{i + 1:04}.png")
    own = [f"p{i}\t1\t2" for i in range(8)]
    other = [f"p{i}\t1\tp{(i + 1) % 8}\t2" for i in range(8)]
    lines = [line for start in (0, 4) for line in own[start : start + 4] + other[start : start + 4]]
    (tmp_path / "pairs.txt").write_text("\n".join(["2\t4", *lines]))
    return [
        sys.executable, "tools/run_grid.py", f"--out={tmp_path / 'out'}", *words, "--",
        f"--config.data.path={faces_folder}", f"--config.dev.path={lfw}",
        f"--config.dev.pairs={tmp_path / 'pairs.txt'}",
        "--config.discriminative.path=sface", "--config.sr.size=16", "--config.sr.channels=(8,16,16)",
        "--config.sr.steps=4", "--config.sr.batch=2", "--config.student.width=0.0625", "--config.student.hidden=(16,)",
        "--config.gen.steps=6", "--config.gen.batch=8", "--config.dis.steps=6", "--config.dis.batch=8",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_grid_is_run_shared_and_not_run_again(tmp_path, faces_folder):
    modes = "--configs=configs/ablation.py:{none,sr,gen,dis,gen_dis,end_to_end,plain,frozen,ours}"
    command = grid_command(tmp_path, faces_folder, modes, "--against=gen_dis", "--seeds", "1", "2")
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert first.stderr.count("views: done in") == 1  # shared by all
    assert first.stderr.count("stage gen: 8 faces a step") == 2  # once a seed
    assert first.stdout.count("\n") >= 9
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "faces a step" not in second.stderr and second.stdout == first.stdout


@pytest.mark.slow
def test_two_equal_commands_share_the_runs(tmp_path, faces_folder):
    command = grid_command(tmp_path, faces_folder, "--configs=configs/ablation.py:{none,plain}", "--seeds", "1", "2")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    (table, log), (other_table, other_log) = (process.communicate(timeout=600) for process in both)
    assert [process.returncode for process in both] == [0, 0] and "error" not in log + other_log
    assert table == other_table and "| plain | 2 |" in table
    assert [text.count("stage dis: 8 faces a step") > 0 for text in (log, other_log)] == [True, True]
    assert (log + other_log).count("stage dis: 8 faces a step") == 4


@pytest.mark.slow
def test_sigterm_saves_the_run_and_the_same_command_continues(tmp_path, faces_folder):
    command = [
        *grid_command(tmp_path, faces_folder, "--configs=configs/ablation.py:plain", "--seeds", "1"),
        "--config.dis.steps=4000",
    ]
    log = tmp_path / "out" / "plain-seed1" / "dis" / "metrics.jsonl"
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (log.exists() and log.stat().st_size):
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    _, told = first.communicate(timeout=120)
    assert first.returncode == 0 and "stage dis at step" in told and told.count("the same command continues") == 2
    assert not (tmp_path / "out" / "table.md").exists()
    checkpoints = log.parent / "checkpoints"
    assert max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) > 1
    # Settings of before would be finished, were they asked for; a run of others that is stopped must not count as done.
    second = subprocess.run(
        [*command, "--config.dis.steps=6"], cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert "| plain | 1 |" in second.stdout
