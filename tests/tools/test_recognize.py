"""The tool that recognizes faces, as it is called."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import make_faces, save_student

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from gdrd_jax.cli import recognize  # noqa: E402
from gdrd_jax.inference.recognizer import Recognizer  # noqa: E402


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("run"))


@pytest.fixture
def faces(tmp_path):
    return make_faces(tmp_path / "people", 4, 3)


@pytest.fixture
def call(workdir, capsys):
    def called(*words, model=workdir):
        status = recognize.main([*map(str, words), "--model", str(model)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return called


def test_people_are_enrolled_and_found_again(call, faces, tmp_path):
    probes = tmp_path / "probes"
    probes.mkdir()
    for person in range(4):
        (faces / f"p{person}" / "2.png").rename(probes / f"{person}.png")
    status, out, _ = call("enroll", faces, "--gallery", tmp_path / "known")
    assert status == 0 and "8 faces of 4 people, 8 of them new" in out
    status, out, _ = call("search", probes, "--gallery", tmp_path / "known", "--json", "-k", 3)
    found = json.loads(out)["probes"]
    assert status == 0 and [Path(probe["path"]).name for probe in found] == [f"{i}.png" for i in range(4)]
    for person, probe in enumerate(found):
        assert len(probe["matches"]) == 3 and probe["matches"][0]["id"] == f"p{person}"
        assert probe["matches"][0]["path"].startswith(str(faces / f"p{person}"))
        similarities = [match["similarity"] for match in probe["matches"]]
        assert similarities == sorted(similarities, reverse=True)
    picture = tmp_path / "matches.png"
    status, out, _ = call("search", probes, "--gallery", tmp_path / "known", "--templates", "--pictures", picture)
    assert status == 0 and "\n  1  " in out and out.count("p2") == 4  # once for each probe
    drawn = cv2.imread(str(picture))
    assert drawn.shape[0] > 4 * 60 and drawn.std() > 10


def test_bad_pictures_are_counted_and_named_and_the_others_done(call, faces, tmp_path, caplog):
    (faces / "p0" / "note.jpg").write_text("not a picture")
    (faces / "p0" / "readme.txt").write_text("not meant to be one")
    (faces / "p2" / "pipe.png").symlink_to("/proc/self/mem")
    cv2.imwrite(str(faces / "p1" / "dot.png"), np.zeros((3, 3, 3), np.uint8))
    caplog.set_level("INFO", "gdrd_jax")
    status, out, _ = call("enroll", faces, "--gallery", tmp_path / "known")
    assert status == 1 and "12 faces of 4 people" in out and "left out: 3" in out
    assert "pipe.png cannot be read" in out and "1 files are not images" in caplog.text
    assert "note.jpg is not a readable image" in out and "dot.png is 3x3, too small" in out
    status, _, err = call("embed", faces, "--out", faces / "p1" / "dot.png" / "x.npz")
    assert status == 2 and "x.npz cannot be written" in err
    out_file = tmp_path / "embeddings.npz"
    status, out, _ = call("embed", faces, "--out", out_file, "--json")
    told, stored = json.loads(out), np.load(out_file)
    assert status == 1 and told["faces"] == 12 and len(told["left_out"]) == 3
    assert stored["embeddings"].shape == (12, 24) and stored["paths"][0].endswith("p0/0.png")
    np.testing.assert_allclose(np.linalg.norm(stored["embeddings"], axis=1), 1, atol=1e-5)


def test_more_people_can_be_added(call, faces, tmp_path):
    (tmp_path / "known").mkdir()  # somebody made room beforehand
    more = tmp_path / "more"
    more.mkdir()
    (faces / "p3" / "0.png").rename(more / "zoe.png")
    assert call("enroll", faces, "--gallery", tmp_path / "known")[0] == 0
    status, _, err = call("enroll", more, "--gallery", tmp_path / "known")
    assert status == 2 and "exists already; add to it with --add" in err
    status, _, err = call("enroll", more, "--gallery", more / "zoe.png" / "known")
    assert status == 2 and "zoe.png is no folder of yours" in err
    status, out, _ = call("enroll", more, "--gallery", tmp_path / "known", "--add", "--json")
    assert status == 0
    assert json.loads(out) == {"gallery": str(tmp_path / "known"), "faces": 12, "people": 5, "new": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "none.png", "--gallery", "known"), "there is no file or folder 'none.png'"),
        (("search", "FACES", "--gallery", "known", "-k", "0"), "-k is 0"),
        (("search", "FACES", "--gallery", "FACES"), "no gallery.json of a gallery"),
        (("search", "FACES", "--gallery", "known", "--far", "0.01"), "no thresholds; export it"),
        (("verify", "A", "A"), "no thresholds; export it"),
        (("embed", "empty", "--out", "x.npz"), "holds no images"),
        (("embed", "FACES", "--out", "nowhere/x.npz"), "nowhere/x.npz cannot be written; choose a file in a folder"),
        (("search", "FACES", "--gallery", "known", "--pictures", "empty"), "empty cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_sentence(call, faces, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    call("enroll", faces / "p0", "--gallery", "known")
    status, _, err = call(*({"FACES": faces, "A": faces / "p0" / "0.png"}.get(word, word) for word in words))
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1


def test_a_gallery_of_another_student(call, faces, tmp_path):
    other = save_student(tmp_path / "other", seed=1)
    call("enroll", faces, "--gallery", tmp_path / "known", model=other)
    status, _, err = call("search", faces, "--gallery", tmp_path / "known")
    assert status == 2 and "is of another recognizer" in err
    status, _, err = call("search", faces, "--gallery", tmp_path / "known", model=tmp_path)
    assert status == 2 and "holds no trained weights" in err
    assert Recognizer.load(other).fingerprint()[:12] in (tmp_path / "known" / "gallery.json").read_text()
