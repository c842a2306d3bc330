"""Thresholds at the faces of other people."""

import json

import numpy as np
import pytest
from conftest import make_faces, raises, save_calibrated

from gdrd_jax.cli import check_thresholds as command
from gdrd_jax.data.readers import open_faces
from gdrd_jax.evaluation import bootstrap, threshold_check, threshold_report
from gdrd_jax.inference import thresholds as thresholds_module
from gdrd_jax.inference.thresholds import Thresholds

NONE = {"blur": 0.0, "motion": 0.0, "noise": 0.0, "jpeg": 0}


def people(counts, noise=0.8, seed=0):
    random, labels = np.random.default_rng(seed), np.arange(len(counts)).repeat(counts)
    found = random.normal(size=(len(counts), 16))[labels] + noise * random.normal(size=(len(labels), 16))
    shuffled = random.permutation(len(labels))
    found = np.float32(found / np.linalg.norm(found, axis=1, keepdims=True))
    return found[shuffled], labels[shuffled]


@pytest.mark.parametrize("own_gallery", [True, False])
def test_realized_rates_are_those_of_counting_pairs(monkeypatch, own_gallery):
    embeddings, labels = people([1, 3, 2, 4, 2])
    gallery = None if own_gallery else people([1, 3, 2, 4, 2], seed=1)[0]
    drawn = np.array([[2, 1, 0, 1, 1], [0, 1, 2, 1, 1]], np.float32)
    monkeypatch.setattr(bootstrap, "draws", lambda *_: drawn)
    monkeypatch.setattr(bootstrap, "interval", tuple)
    scores = embeddings @ (embeddings if own_gallery else gallery).T
    for threshold, found in zip((0.1, 0.5), threshold_check.realized(embeddings, labels, (0.1, 0.5), gallery)):
        for counts, far, tar in zip(
            np.array([np.ones(5), *drawn]), (found.far, *found.far_interval), (found.tar, *found.tar_interval)
        ):
            accepted, weight = np.zeros(2), np.zeros(2)
            for i, a in enumerate(labels):
                for j, b in enumerate(labels):
                    if i != j:
                        kind, often = int(a == b), counts[a] * (1 if a == b else counts[b])
                        accepted[kind] += often * (scores[i, j] >= threshold)
                        weight[kind] += often
            assert (far, tar) == pytest.approx(accepted / weight, abs=1e-6)
        assert found.people == 5 and found.genuine == (11 if own_gallery else 22)


def test_a_threshold_holds_for_the_same_kind_of_people_and_not_for_others():
    thresholds = Thresholds.learn(*people([3] * 80), "made up")
    (same,) = threshold_check.realized(*people([3] * 80, seed=1), [thresholds.at(0.05)])
    assert same.holds(0.05) and same.far_interval[0] < same.far < same.far_interval[1]
    few = same._replace(far_interval=(0.0, 0.01))
    assert few.holds(1e-4) is None and few.holds(0.005) and few.holds(0.02) is False  # 3,160 pairs of people
    assert same.holds(1e-4) is False  # too many pass, however few people there are
    embeddings, labels = people([3] * 80, seed=1)
    alike = embeddings + 0.3 * embeddings[0]
    alike /= np.linalg.norm(alike, axis=1, keepdims=True)
    (other,) = threshold_check.realized(alike, labels, [thresholds.at(0.05)])
    assert other.holds(0.05) is False and other.far_interval[0] > 0.05


def test_held_out_people_are_judged_at_the_thresholds_of_others():
    embeddings, labels = people([2] * 60)
    rows = threshold_check.held_out(embeddings, labels, rates=(0.1, 0.05, 1e-3))
    assert [row["far"] for row in rows] == [0.1, 0.05]  # a fold has 66 pairs of people
    fold = np.random.default_rng(0).permutation(60) % threshold_check.FOLDS
    realized = []
    for number in range(threshold_check.FOLDS):
        kept, inside = (np.isin(labels, np.flatnonzero(of)) for of in (fold != number, fold == number))
        scores, own = embeddings[inside] @ embeddings[inside].T, labels[inside]
        impostors = scores[own[:, None] != own]
        value = np.sort((embeddings[kept] @ embeddings[kept].T)[labels[kept][:, None] != labels[kept]])[::-1]
        realized.append((impostors > value[int(0.1 * len(value))]).mean())
    row = rows[0]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(realized), min(realized), max(realized)))
    assert threshold_check.held_out(*people([2] * 9)) == []


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    faces = make_faces(tmp_path_factory.mktemp("faces") / "people", 30, 2, size=32)
    return save_calibrated(tmp_path_factory.mktemp("check"), faces), faces


def run(capsys, *words):
    status = command.main([*map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_says_which_thresholds_hold_also_by_group(student, capsys, caplog, tmp_path):
    folder, faces = student
    status, out, _ = run(capsys, faces, "--model", folder, "--far", 0.2, 0.1)
    assert status == 0 and out.count("  holds") == 2 and "made faces" in out
    groups = tmp_path / "groups.csv"
    groups.write_text("".join(f"p{i},{'odd' if i % 2 else 'even'}\n" for i in range(24)) + "p24,alone\n")
    status, out, _ = run(capsys, faces, "--model", folder, "--far", 0.2, "--groups", groups, "--json")
    rows = json.loads(out)["rows"]
    assert [(row["group"], row["people"]) for row in rows] == [("all people", 30), ("even", 12), ("odd", 12)]
    assert "group alone, which has 1 of" in caplog.text and "5 of the 30 people" in caplog.text
    assert all(row["holds"] for row in rows) is (status == 0) and rows[0]["genuine"] == 30
    status, out, _ = run(capsys, faces, "--model", folder, "--far", 0.1, "--blur", 60)
    assert status == command.NOT_HELD and "too loose" in out and "--calibration" in out


def test_a_group_is_judged_on_its_own_faces_where_there_are_too_many_of_everybody(student, tmp_path, monkeypatch):
    monkeypatch.setattr(thresholds_module, "FACES", 20)  # the first ten people's
    (tmp_path / "g.csv").write_text("".join(f"p{i},late\n" for i in range(25, 30)))
    found = threshold_report.check(student[1], student[0], [0.1], groups=tmp_path / "g.csv", strengths=NONE)
    assert [(row["group"], row["people"]) for row in found["rows"]] == [("all people", 10), ("late", 5)]


def test_folders_above_those_of_people_are_groups(tmp_path):
    for group in ("women", "men"):
        make_faces(tmp_path / "faces" / group, 2, 1, size=32)
    groups = threshold_report._groups(open_faces(tmp_path / "faces"), None)
    assert groups == {"men/p0": "men", "men/p1": "men", "women/p0": "women", "women/p1": "women"}
    assert threshold_report._groups(open_faces(tmp_path / "faces" / "men"), None) == {}


def test_nothing_that_can_be_judged_is_no_success(student, tmp_path, capsys):
    few = make_faces(tmp_path / "few", 3, 2, size=32)
    status, out, _ = run(capsys, few, "--model", student[0], "--far", 0.1)
    assert status == command.NOT_HELD and "too few people to judge any threshold" in out


def test_mistakes_are_one_sentence(student, tmp_path, capsys):
    folder, faces = student
    few = make_faces(tmp_path / "few", 2, 2, size=32)
    with raises("check-too-few", 2, "at least 3"):
        threshold_report.check(few, folder, strengths=NONE)
    for text, code in (
        ("p0\n", "groups-line"), ("", "groups-line"), ("p0, \n", "groups-line"), ("p0,a\np0,b\n", "groups-twice"),
        ("ann,a\n", "groups-unknown"),
    ):  # fmt: skip
        (tmp_path / "g.csv").write_text(text)
        with raises(code, "g.csv"):
            threshold_report.check(faces, folder, groups=tmp_path / "g.csv", strengths=NONE)
    with raises("groups-unreadable", "none.csv"):
        threshold_report.check(faces, folder, groups=tmp_path / "none.csv", strengths=NONE)
    assert run(capsys, faces, "--model", folder, "--far", 1e-6)[0] == 2
