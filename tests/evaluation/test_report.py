import base64
import csv
import json
import re

import cv2
import numpy as np
import pytest

from gdrd_jax.evaluation import held_out, report


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 5)
    made = {}
    for name, noise in (("student", 0.6), ("pixels_16", 3.0)):
        faces = rng.normal(size=(4, 8))[labels] + noise * rng.normal(size=(20, 8))
        faces /= np.linalg.norm(faces, axis=1, keepdims=True)
        made[name] = held_out.evaluate(faces, labels, faces, labels)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("report")
    picture = report.grid([[np.full((16, 16, 3), 200, np.uint8)] * 3])
    report.write(folder, rows, title="A <b>", summary="s", pictures=[(picture, "caption & more")], settings="{}")
    return folder


def test_metrics_json_holds_percentages_by_row(folder, rows):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["student", "pixels_16"]
    for name, row in metrics.items():
        assert row == rows[name].metrics
        assert all(0 <= row[key] <= 100 for key in ("accuracy", "auc", "eer", "rank_1"))
    assert metrics["student"]["auc"] > metrics["pixels_16"]["auc"]


def test_roc_csv_gives_back_the_area(folder, rows):
    points = list(csv.DictReader((folder / "roc.csv").open()))
    for name, row in rows.items():
        far, tar = np.array([(float(p["far"]), float(p["tar"])) for p in points if p["row"] == name]).T
        assert 100 * np.trapezoid(tar, far) == pytest.approx(row.metrics["auc"], abs=0.01)


def test_the_report_needs_no_other_file_and_shows_every_picture(folder):
    page = (folder / "report.html").read_text()
    assert "A &lt;b&gt;" in page and "caption &amp; more" in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2
    for source in sources:
        png = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).std() > 0
    assert "http" not in page


def test_grid_frames_and_enlarges_without_smoothing():
    face = np.zeros((2, 2, 3), np.uint8)
    face[0, 0] = 255
    picture = report.grid([[face]], [[(1, 2, 3)]])
    assert set(np.unique(picture)) <= {0, 255, 1, 2, 3}
    assert (picture[1, 1] == (1, 2, 3)).all()
