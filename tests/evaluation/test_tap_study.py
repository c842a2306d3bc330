"""The linear probe on features that are known to be good, bad, or pixels."""

import json

import numpy as np
import pytest
from conftest import make_faces, raises

from gdrd_jax.cli import __main__ as commands
from gdrd_jax.cli import study_taps
from gdrd_jax.data.degradation import Views
from gdrd_jax.data.readers import open_faces
from gdrd_jax.evaluation import tap_study
from gdrd_jax.evaluation.lfw import LFW
from gdrd_jax.teachers import load_generative
from gdrd_jax.teachers.sr_training import SrSettings, train

VIEWS = Views.plain(8, "area")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    make_faces(root / "made", people=12, images=4)
    for person in range(12):
        (root / "lfw" / f"p{person}").mkdir(parents=True)
        for image in range(4):
            old = root / "made" / f"p{person}" / f"{image}.png"
            old.rename(root / "lfw" / f"p{person}" / f"p{person}_{image + 1:04d}.png")
    lines = ["2\t4"]
    for fold in (0, 1):
        people = range(6 * fold, 6 * fold + 4)
        lines += [f"p{i}\t1\t2" for i in people] + [f"p{i}\t1\tp{i + 1}\t3" for i in people]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    make_faces(root / "train", people=10, images=8)
    pairs = LFW.open(root / "lfw", LFW.Config(str(root / "pairs.txt")))
    return tap_study.studied(open_faces(root / "train"), pairs, VIEWS, images=6)


def flat(images):
    return images.reshape(len(images), -1).astype(np.float32)


def test_at_most_so_many_images_of_each_person(faces):
    assert np.bincount(faces.labels).tolist() == [6] * 10 and faces.train.shape == (60, 8, 8, 3)
    assert len(faces.test) == len(faces.pairs.faces)


def test_pixels_tell_made_people_apart_and_noise_does_not(faces):
    pixels = tap_study.worth(flat(faces.train), flat(faces.test), faces, seed=0)
    assert pixels["identity"] == 100 and pixels["accuracy"] > 90
    random = np.random.default_rng(0)
    noise = tap_study.worth(
        random.normal(size=(len(faces.train), 40)), random.normal(size=(len(faces.test), 40)), faces, seed=0
    )
    assert noise["identity"] < 50 and noise["accuracy"] <= 85


def test_linear_r2_tells_what_is_linear_in_the_pixels_from_what_is_not():
    random = np.random.default_rng(0)
    train, test = (random.integers(256, size=(n, 4, 4, 3)).astype(np.uint8) for n in (2000, 500))
    mixed = random.normal(size=(48, 7))

    def r2(function):
        return tap_study._linear_r2(train, function(flat(train)), test, function(flat(test)))

    assert r2(lambda x: x @ mixed + 5) > 0.99
    assert r2(lambda x: np.sin(x @ mixed)) < 0.05
    half = r2(lambda x: np.concatenate([x @ mixed, np.sin(x @ mixed)], axis=1))
    assert half == pytest.approx(0.5, abs=0.05)


def test_features_are_averaged_to_four_positions_a_side():
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 8))
    found = tap_study.pooled(x).reshape(2, 3, 4, 4)
    np.testing.assert_allclose(found[1, 2, 3, 1], x[1, 2, 12:16, 2:4].mean())
    assert tap_study.pooled(x[:, :, :2, :2]).shape == (2, 12)


def test_every_tap_of_an_untrained_network(faces, tmp_path):
    settings = SrSettings(size=16, channels=(8, 16), layers=1, steps=0, batch=2, learning_rate=1e-3, ema=0.9)
    train(faces.pairs.faces, VIEWS, settings, tmp_path, seed=0)
    network = load_generative("diffusers", tmp_path)
    rows = tap_study.study(network, network.taps, faces, seed=0)
    assert {tap: row["shape"] for tap, row in rows.items()} == {
        "down0": [8, 8, 8], "down1": [16, 8, 8], "mid": [16, 8, 8]
    }  # fmt: skip
    assert all(row["identity"] > 50 for row in rows.values())
    named = {tap: {"name": "n", "timestep": 0, "tap": tap, **row} for tap, row in rows.items()}
    assert tap_study.table(named).count("\n") == 5 and "| n | 0 | mid | 16x8x8 |" in tap_study.table(named)
    assert tap_study.picture(named)[:4] == b"\x89PNG"


def test_people_with_one_face_cannot_be_probed(tmp_path, faces):
    alone = open_faces(make_faces(tmp_path / "alone", people=3, images=1))
    with raises("probe-people", "alone", "0 people"):
        tap_study.studied(alone, faces.pairs, VIEWS, images=6)


def test_mistakes_are_found_before_anything_is_measured(tmp_path):
    def given(*words):
        needed = ["--train", "faces", "--data", "faces", "--pairs", "p.txt", "--out", str(tmp_path / "out")]
        return study_taps.arguments([*needed, *map(str, words)])

    teacher = f"a=diffusers:{tmp_path}"
    with raises("teacher-twice"):
        study_taps.work(given("--teacher", teacher, "--teacher", teacher))
    with raises("probe-images", "--images 1"):
        study_taps.work(given("--teacher", teacher, "--images", 1))
    with raises("teacher-missing", "'nowhere'", "a=diffusers:nowhere"):
        study_taps.work(given("--teacher", "a=diffusers:nowhere"))


def test_a_study_goes_on_under_the_same_settings_only(tmp_path):
    path, settings = tmp_path / "taps.json", {"seed": 0, "images": 6}
    assert study_taps._rows_before(path, settings) == {}
    path.write_text(json.dumps({"settings": settings, "rows": {"a": {}}}))
    assert study_taps._rows_before(path, settings) == {"a": {}}
    with raises("study-settings", path, "images"):
        study_taps._rows_before(path, {"seed": 0, "images": 7})
    path.write_text("{")
    with raises("study-damaged", path):
        study_taps._rows_before(path, settings)


def test_a_teacher_of_any_kind_is_studied(faces, tmp_path, caplog):
    root = faces.pairs.faces.root.parent
    words = [
        "--train", root / "train", "--data", root / "lfw", "--pairs", root / "pairs.txt", "--resolution", 8,
        "--images", 6, "--teacher", f"t=tiny:{tmp_path}", "--timestep", 0, 500,
    ]  # fmt: skip
    words = list(map(str, words))
    command = ["--plugin", "tiny_teachers", "study-taps", *words, "--out", str(tmp_path / "out")]
    assert commands.main([*command, "--tap", "parts"]) == 0
    assert commands.main(command) == 0
    rows = json.loads((tmp_path / "out" / "taps.json").read_text(encoding="utf-8"))["rows"]
    assert [row for row in rows if row.startswith("t/")] == ["t/None/parts", "t/None/whole"]  # without a timestep
    assert rows["t/None/whole"]["shape"] == [16, 4, 4] and rows["t/None/parts"]["shape"] == [16, 8, 8]
    table = (tmp_path / "out" / "taps.md").read_text(encoding="utf-8")
    assert "| t |  | whole | 16x4x4 |" in table and "| pixels |" in table
    assert (tmp_path / "out" / "taps.png").exists()
    with raises("entry-unknown", "'tinny'", "'tiny'"):
        study_taps._parse(f"t=tinny:{tmp_path}")
    with raises("teacher-tap", "'nose'", "whole, parts"):
        study_taps.work(study_taps.arguments([*words, "--out", str(tmp_path / "new"), "--tap", "nose"]))
    assert not (tmp_path / "new").exists()
