import base64
import csv
import json
import re

import cv2
import numpy as np
import pytest

from gdrd_jax.evaluation import report
from gdrd_jax.evaluation.held_out import HeldOutPeople
from gdrd_jax.evaluation.result import Result
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.utils import pictures


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 5)
    made = {}
    for name, noise in (("student", 0.6), ("pixels_16", 3.0)):
        faces = rng.normal(size=(4, 8))[labels] + noise * rng.normal(size=(20, 8))
        faces /= np.linalg.norm(faces, axis=1, keepdims=True)
        both = HeldOutPeople(np.zeros((40, 16, 16, 3), np.uint8), np.tile(labels, 2), tested=20)
        made[name] = both.evaluate(np.tile(faces, (2, 1)))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("report")
    picture = pictures.grid([[np.full((16, 16, 3), 200, np.uint8)] * 3])
    curves = {name: Pairs(row.arrays["scores"], row.arrays["same"]) for name, row in rows.items()}
    report.write(
        folder, rows, columns=HeldOutPeople.columns, curves=curves, title="A <b>", summary="s", legend="l", settings={},
        figures=[(pictures.png(picture), "caption & more")], document={"protocol": "held_out"}, warning="a <stand-in>",
    )  # fmt: skip
    return folder


def test_metrics_json_holds_percentages_by_row(folder, rows):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["protocol"] == "held_out"
    metrics = metrics["results"]
    assert list(metrics) == ["student", "pixels_16"]
    for name, row in metrics.items():
        assert row == {**rows[name].metrics, "intervals": {}}
        assert all(0 <= row[key] <= 100 for key in ("accuracy", "auc", "eer", "rank_1"))
    assert metrics["student"]["auc"] > metrics["pixels_16"]["auc"]


def test_roc_csv_gives_back_the_area(folder, rows):
    points = list(csv.DictReader((folder / "roc.csv").open()))
    for name, row in rows.items():
        far, tar = np.array([(float(p["far"]), float(p["tar"])) for p in points if p["row"] == name]).T
        assert 100 * np.trapezoid(tar, far) == pytest.approx(row.metrics["auc"], abs=0.01)


def test_the_report_needs_no_other_file_and_shows_every_picture(folder):
    page = (folder / "report.html").read_text()
    assert "A &lt;b&gt;" in page and "a &lt;stand-in&gt;" in page and "caption &amp; more" in page
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert len(sources) == 2
    for source in sources:
        png = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).std() > 0
    assert "http" not in page


def test_grid_frames_and_enlarges_without_smoothing():
    face = np.zeros((2, 2, 3), np.uint8)
    face[0, 0] = 255
    picture = pictures.grid([[face]], [[(1, 2, 3)]])
    assert set(np.unique(picture)) <= {0, 255, 1, 2, 3}
    assert (picture[1, 1] == (1, 2, 3)).all()


def test_a_figure_that_does_not_exist_is_a_dash_and_intervals_stand_below():
    results = {"m": Result({"a": 12.345, "b": {"0.1": None}}, {"a": (10.0, 15.0)}, {})}
    columns = {"a": "A %", "b.0.1": "B %", "c": "C %"}
    assert report.text_table(results, columns).splitlines()[1].split() == ["m", "12.35", "-", "-"]
    assert "12.35<span>10.0 \N{EN DASH} 15.0</span>" in report.html_table(results, columns)


def test_every_chart_is_a_picture():
    line = {"native": (90.0, (85.0, 95.0)), "16": (80.0, (70.0, 85.0))}
    charts = [
        report.draw_sweep({"a": line, "b": {"16": (70.0, (60.0, 75.0))}}, y="accuracy %"),
        report.draw_bars({"a": [(50.0, (40.0, 60.0)), None]}, ["x", "y"], y="rank-1, %"),
        report.draw_points({"a": np.eye(2), "b": np.eye(2)}, ["p", "q"]),
        report.draw_lines({"a": (np.arange(3), np.arange(3))}, x="rank", y="share"),
    ]
    for chart in charts:
        assert cv2.imdecode(np.frombuffer(chart, np.uint8), cv2.IMREAD_COLOR).std() > 1


def test_others_figures_are_marked_with_a_note_where_there_are_any():
    results = {"m": Result({"a": 90.0, "b": 95.0}, {}, {}), "n": Result({"a": 80.0, "b": None}, {}, {})}
    page = report.html_table(results, {"a": "A %", "b": "theirs %"}, {"b": "other faces"})
    assert "<td>90.00</td><td class=quoted>95.00<span>other faces</span></td>" in page
    assert "<td>80.00</td><td class=quoted>-</td>" in page.replace("\N{EN DASH}", "-")
