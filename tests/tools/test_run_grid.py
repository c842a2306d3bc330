"""The grid tool: what it runs and how it compares."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_faces

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import run_grid  # noqa: E402


def test_braces_are_every_combination():
    found = run_grid.expanded(
        ["--config=configs/ablation.py:{none,gen_dis}", "--config.views.resolution={8,16}", "--x"]
    )
    assert [name for name, _ in found] == ["none-8", "none-16", "gen_dis-8", "gen_dis-16"]
    assert found[1][1] == ["--config=configs/ablation.py:none", "--config.views.resolution=16", "--x"]
    assert run_grid.expanded(["--config=a.py"]) == [("", ["--config=a.py"])]


def written(folder, scores, same, folds):
    (folder / "dis").mkdir(parents=True)
    np.savez(folder / "dis" / "dev.npz", scores=scores, same=same, folds=folds)
    return folder


def test_differences_are_paired(tmp_path):
    """Two models that are right on the same pairs but for a few: the difference is surer than either figure."""
    rng, same, folds = np.random.default_rng(0), np.tile([True, False], 300), np.repeat(np.arange(5), 120)
    runs = {"worse": [], "better": []}
    for seed in range(3):
        sign = np.where(same, 1.0, -1.0) * np.where(rng.permutation(600) < 120, -1, 1)  # 120 of 600 are wrong
        runs["better"].append(written(tmp_path / f"b{seed}", sign, same, folds))
        changed = sign.copy()
        changed[np.flatnonzero(sign == np.where(same, 1.0, -1.0))[:12]] *= -1  # 2 % more
        runs["worse"].append(written(tmp_path / f"w{seed}", changed, same, folds))
    worse, better = run_grid.compared(runs, "better")
    assert better["accuracy"] == pytest.approx(80) and worse["accuracy"] == pytest.approx(78)
    assert worse["difference"] == pytest.approx(-2) and "difference" not in better
    assert 0.1 < worse["its_standard_error"] < 1.0
    text = run_grid.table([worse, better])
    assert text.count("\n") == 4 and "-2.00" in text


def test_a_dev_set_without_folds_is_told(tmp_path):
    folder = written(tmp_path, np.ones(4), np.array([True, False] * 2), np.zeros(4, int))
    with pytest.raises(run_grid.GdrdError, match="config.dev.pairs"):
        run_grid.right(folder)


@pytest.mark.slow
def test_a_grid_is_run_shared_and_not_run_again(tmp_path, faces_folder):
    lfw = make_faces(tmp_path / "made", 8, 2)
    for person in sorted(lfw.iterdir()):
        for i, image in enumerate(sorted(person.iterdir())):
            image.rename(person / f"{person.name}_{i + 1:04}.png")
    own = [f"p{i}\t1\t2" for i in range(8)]
    other = [f"p{i}\t1\tp{(i + 1) % 8}\t2" for i in range(8)]
    lines = [line for start in (0, 4) for line in own[start : start + 4] + other[start : start + 4]]
    (tmp_path / "pairs.txt").write_text("\n".join(["2\t4", *lines]))
    command = [
        sys.executable, "tools/run_grid.py", f"--out={tmp_path / 'out'}", "--against=gen_dis", "--seeds", "1", "2",
        "--configs=configs/ablation.py:{none,sr,gen,dis,gen_dis,end_to_end,plain}", "--",
        f"--config.data.path={faces_folder}", f"--config.dev.path={lfw}",
        f"--config.dev.pairs={tmp_path / 'pairs.txt'}",
        "--config.discriminative.path=sface", "--config.sr.size=16", "--config.sr.channels=(8,16,16)",
        "--config.sr.steps=4", "--config.sr.batch=2", "--config.student.width=0.0625", "--config.student.hidden=(16,)",
        "--config.gen.steps=6", "--config.gen.batch=8", "--config.dis.steps=6", "--config.dis.batch=8",
    ]  # fmt: skip
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert first.stderr.count("views: done in") == 1  # shared by all
    assert first.stderr.count("stage gen: 8 faces a step") == 2  # once a seed
    assert first.stdout.count("\n") >= 9
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "faces a step" not in second.stderr and second.stdout == first.stdout
