"""Open sets: how people are divided, and figures of made embeddings."""

import json

import cv2
import numpy as np
import pytest
from conftest import called, raises, save_recognizer

from gdrd_jax.cli import evaluate as command
from gdrd_jax.evaluation.open_set import OpenSet

PEOPLE, IMAGES = 24, 3


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((112, 112, 3), [value, 255 - value, 7 * value % 256], np.uint8))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open") / "faces"
    for person in range(PEOPLE):
        for image in range(IMAGES if person else 1):
            write(folder / f"p{person:02}" / f"{image}.png", 10 * person + image)
    return folder


def test_people_are_divided_and_the_first_images_are_enrolled(people):
    protocol = OpenSet.open(people)
    known = set(protocol.labels[protocol.gallery])
    assert len(known) == len(protocol.gallery) == PEOPLE // 2
    assert all(protocol.faces.names[row].endswith("/0.png") for row in protocol.gallery)
    assert sorted([*protocol.gallery, *protocol.probes]) == [*range(len(protocol.faces))]
    other = OpenSet.open(people, OpenSet.Config(unknown=0.25, enrolled=2, division=1))
    assert len(set(other.labels[other.gallery])) == PEOPLE * 3 // 4 != len(other.gallery)
    with raises("open-set-probes", " 0 and"):
        OpenSet.open(people, OpenSet.Config(enrolled=IMAGES))


def test_folders_say_who_is_known(tmp_path):
    for part, person in (("gallery", "ann"), ("gallery", "bob"), ("mated", "ann"), ("unmated", "eve")):
        if part == "unmated":  # the people of both others would be divided at random, each as one person
            with raises("open-set-parts", "gallery, mated of"):
                OpenSet.open(tmp_path)
        write(tmp_path / part / person / "1.png", 100)
    protocol = OpenSet.open(tmp_path)
    assert [protocol.faces.names[row] for row in protocol.gallery] == ["gallery/ann/1.png", "gallery/bob/1.png"]
    assert [protocol.faces.names[row] for row in protocol.probes] == ["mated/ann/1.png", "unmated/eve/1.png"]
    write(tmp_path / "unmated" / "bob" / "1.png", 100)
    with raises("open-set-person", "'bob'", "unmated", "mated"):
        OpenSet.open(tmp_path)
    (tmp_path / "unmated" / "bob").rename(tmp_path / "mated" / "joe")
    with raises("open-set-person", "'joe'", "mated", "unmated"):
        OpenSet.open(tmp_path)


@pytest.mark.parametrize("templates", [False, True])
def test_figures_are_those_of_a_direct_computation(people, templates):
    protocol = OpenSet.open(people, OpenSet.Config(enrolled=2, templates=templates))
    random, labels = np.random.default_rng(0), protocol.labels
    centers = random.normal(size=(PEOPLE, 8))
    probes, full = (centers[labels] + random.normal(size=(len(labels), 8)) for _ in range(2))
    probes, full = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (probes, full))
    result = protocol.evaluate(probes, full, seed=0)
    best, right, strangers = [], [], []
    for row in protocol.probes:
        score = {}
        for person in set(labels[protocol.gallery]):
            faces = full[[r for r in protocol.gallery if labels[r] == person]]
            mean = faces.mean(axis=0)
            score[person] = probes[row] @ mean / np.linalg.norm(mean) if templates else (faces @ probes[row]).max()
        if labels[row] in score:
            best.append(max(score.values()))
            right.append(max(score, key=score.get) == labels[row])
        else:
            strangers.append(max(score.values()))
    best, right, strangers = np.array(best), np.array(right), np.sort(strangers)[::-1]
    assert result.metrics["rank_1"] == pytest.approx(100 * right.mean(), abs=1e-4)
    expected = 100 * (right & (best > strangers[int(0.1 * len(strangers))])).mean()
    assert result.figure("tpir_at_fpir.0.1") == pytest.approx(expected, abs=1e-4)
    assert result.figure("tpir_at_fpir.0.01") is None  # fewer than 100 probes of strangers
    for name, (low, high) in result.intervals.items():
        assert low <= result.figure(name) <= high
    assert set(result.arrays["nearest"]) <= set(protocol.gallery)


def test_the_command_draws_the_curve_and_the_worst_probes(people, tmp_path):
    network = save_recognizer(tmp_path / "colors.onnx")
    words = ["--protocol", "open_set", "--data", people, "--model", network, "--resolution", "8:native"]
    called(command.main, *words, "--unknown", "0.4", "--templates", "--out", tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"].values()
    assert row["n_unknown_people"] == round(0.4 * PEOPLE) and row["tpir_at_fpir"]["0.001"] is None
    assert (tmp_path / "out" / "det.png").read_bytes()
    assert "[entry-setting" in called(command.main, *words, "--unknown", "1", "--out", tmp_path / "b", status=2)
