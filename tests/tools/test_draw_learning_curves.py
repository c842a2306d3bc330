import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import pytest
from conftest import raises

SPEC = importlib.util.spec_from_file_location(
    "draw_learning_curves", Path(__file__).parents[2] / "tools" / "draw_learning_curves.py"
)
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "run" / "dis").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"dis": {"batch": 32}}))
    lines = [{"step": 5, "loss": 2.0}, {"step": 10, "dev_accuracy": 61.5}, {"step": 20, "dev_accuracy": 70.25}]
    (tmp_path / "run" / "dis" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "run"


def test_accuracy_is_shown_by_images_seen(workdir, tmp_path, capsys):
    other = shutil.copytree(workdir, tmp_path / "later" / workdir.name)
    (other / "config.json").write_text(json.dumps({"dis": {"batch": 64}}))
    tool.work([str(workdir), str(other), "--out", str(tmp_path / "a.png")])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines if line]
    assert head == ["images", str(workdir), str(other)]
    assert rows == [["320", "61.50", ""], ["640", "70.25", "61.50"], ["1,280", "", "70.25"]]
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] > 500 and picture.min() < 50 and picture.std() > 5


def test_a_run_without_dev_pairs_is_refused_before_anything_is_written(workdir, tmp_path):
    (workdir / "dis" / "metrics.jsonl").write_text(json.dumps({"step": 5, "loss": 2.0}))
    with raises("curve-none", workdir, "config.dev.path"):
        tool.work([str(workdir), "--out", str(tmp_path / "a.png")])
    assert not (tmp_path / "a.png").exists()


def test_a_workdir_that_does_not_exist_is_refused(tmp_path):
    with raises("curve-none", tmp_path / "runs"):
        tool.work([str(tmp_path / "runs"), "--out", str(tmp_path / "a.png")])
