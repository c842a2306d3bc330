"""SCface in its official layout, with landmarks."""

import json

import cv2
import numpy as np
import pytest
from conftest import raises, save_recognizer
from made_faces import face, made, save

from gdrd_jax.data.align import MIDDLE_TEMPLATE
from gdrd_jax.evaluation import run_report, scface
from gdrd_jax.evaluation.run import evaluate_and_report
from gdrd_jax.evaluation.settings import Settings


@pytest.fixture(scope="module")
def scface_database(tmp_path_factory):
    """Faces inside larger images, with their landmarks."""
    root, lines = tmp_path_factory.mktemp("scface") / "SCface_database", ["# eyes, nose, mouth"]
    for person in (1, 2, 3):
        names = [("mugshot_frontal_cropped_all", f"{person:03d}_frontal", ".JPG", 1.5)]
        names += [
            (f"surveillance_cameras_distance_{d}/cam_{c}", f"{person:03d}_cam{c}_{d}", ".jpg", d / 4)
            for d in (1, 2, 3) for c in (1, 2, 6)
        ]  # fmt: skip
        for folder, name, suffix, scale in names:
            moved = np.array([[scale, 0, 7.0], [0, scale, 11.0]])
            save(root / folder / (name + suffix), cv2.warpAffine(face(person), moved, (190, 190)))
            points = MIDDLE_TEMPLATE * scale + [7, 11]
            lines.append("\t".join([name, *(f"{value:.1f}" for value in points.ravel())]))
            if name == "001_cam1_1":
                save(root / "surveillance_cameras_all" / (name + suffix), face(9))
    (root / "landmarks.txt").write_text("\n".join(lines) + "\n")
    return root


def test_scface_has_mugshots_and_five_cameras_at_three_distances(scface_database):
    found = scface.SCface.open(scface_database, scface.SCface.Config(str(scface_database / "landmarks.txt")))
    assert len(found.faces) == 3 * (1 + 3 * 2) and sorted(set(found.distances)) == [0, 1, 2, 3]
    mugshot = found.faces[int(np.flatnonzero(found.distances == 0)[0])].astype(int)
    assert mugshot.shape == (112, 112, 3) and np.abs(mugshot - face(1))[8:-8, 8:-8].mean() < 6  # aligned
    embeddings = made(found.faces.labels.tolist(), 0.05)
    wrong = np.flatnonzero((found.distances == 1) & (found.faces.labels == 2))
    embeddings[wrong] = -embeddings[wrong]
    metrics = found.evaluate(embeddings, seed=0).metrics
    assert metrics["rank_1_distance_1"] == pytest.approx(100 * 4 / 6) and metrics["rank_1_distance_3"] == 100
    assert metrics["rank_1"] == pytest.approx(100 * 16 / 18) and metrics["n_gallery"] == 3
    assert "landmarks" in found.about["alignment"]
    fewer = scface.SCface.open(scface_database, scface.SCface.Config(untested=1), stretch=True)
    assert len(fewer.faces.identities) == 2 and "stretched" in fewer.about["alignment"]
    assert fewer.faces.fingerprint != found.faces.fingerprint


def test_an_infrared_camera_is_no_probe(scface_database):
    found = scface.SCface.open(scface_database, stretch=True)
    assert not any("cam6" in name for name in found.faces.names)


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        (lambda lines: [*lines[:2], lines[2] + "\t5"], "scface-line", ("line 3", "001_cam1_1")),
        (lambda lines: [*lines, lines[1]], "scface-line", ("line 32", "001_frontal")),
        (lambda lines: [lines[0], lines[1].replace(".", "x"), *lines[2:]], "scface-line", ("line 2",)),
        (lambda lines: lines[:-2], "scface-landmarks", ("1 images", "003_cam2_3")),
    ],
)  # fmt: skip
def test_a_mistake_in_scfaces_landmarks_is_named(scface_database, tmp_path, change, code, facts):
    lines = (scface_database / "landmarks.txt").read_text().splitlines()
    (tmp_path / "landmarks.txt").write_text("\n".join(change(lines)) + "\n")
    with raises(code, *facts):
        scface.SCface.open(scface_database, scface.SCface.Config(str(tmp_path / "landmarks.txt")))


def test_scface_without_mugshots_or_probes_is_refused(tmp_path):
    with raises("scface-no-images", tmp_path):
        scface.SCface.open(tmp_path)
    save(tmp_path / "001_frontal.png", face(1))
    with raises("scface-no-probes", tmp_path):
        scface.SCface.open(tmp_path)
    save(tmp_path / "002_cam1_2.png", face(2))
    with raises("scface-no-mugshot", "002_cam1_2.png", "002_frontal"):
        scface.SCface.open(tmp_path)


def test_figures_and_report_name_the_policy(scface_database, tmp_path, monkeypatch):
    network = save_recognizer(tmp_path / "colors.onnx")
    drawn = []
    monkeypatch.setattr(run_report.pictures, "with_line", lambda png, text: drawn.append(text) or png)
    landmarks = {"landmarks": str(scface_database / "landmarks.txt")}
    models, resolutions = (str(network),), ("native",)
    evaluate_and_report(
        Settings("scface", scface_database, models, resolutions, protocol_settings=landmarks), tmp_path / "out"
    )
    policy = json.loads((tmp_path / "out" / "metrics.json").read_text())["data"]["alignment"]
    assert "aligned by the landmarks" in policy and drawn == [policy]
    assert (tmp_path / "out" / "report.html").read_text().count("aligned by the landmarks") >= 2
