"""The tool that recognizes faces, as it is called."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PLUGINS, make_faces, save_calibrated, save_student

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from gdrd_jax.cli import recognize  # noqa: E402
from gdrd_jax.galleries.folder import is_gallery  # noqa: E402
from gdrd_jax.galleries.gallery import Gallery  # noqa: E402
from gdrd_jax.inference import tracks  # noqa: E402
from gdrd_jax.inference.recognizer import Recognizer  # noqa: E402
from gdrd_jax.inference.tracks import Track  # noqa: E402


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


@pytest.fixture(scope="module")
def scored(workdir, tmp_path_factory):
    """The student, with a quality score."""
    copy = Path(shutil.copytree(Path(workdir) / "dis" / "student", tmp_path_factory.mktemp("exported") / "student"))
    manifest = json.loads((copy / "manifest.json").read_text())
    score = {"slope": 2.0, "intercept": 0.5, "far": 0.01, "faces": 40, "name": "made up"}
    (copy / "manifest.json").write_text(json.dumps(manifest | {"quality": score}))
    return copy


def test_the_quality_of_faces_is_in_tables_and_searches(call, scored, faces, tmp_path):
    recognizer, out_file = Recognizer.load(scored), tmp_path / "embeddings.npz"
    for _ in range(2):  # it replaces its own file
        assert call("embed", faces, "--out", out_file, model=scored)[0] == 0
    stored = np.load(out_file)
    embeddings, quality = recognizer.embed(sorted(faces.rglob("*.png")), quality=True)
    np.testing.assert_allclose(stored["embeddings"], embeddings, atol=1e-6)
    np.testing.assert_allclose(stored["quality"], quality, atol=1e-6)
    assert call("enroll", faces, "--gallery", tmp_path / "known")[0] == 0
    search = ("search", faces / "p1" / "0.png", "--gallery", tmp_path / "known")
    assert json.loads(call(*search, "--json", model=scored)[1])["probes"][0]["quality"] == pytest.approx(
        quality[3], abs=1e-6
    )
    assert call(*search, model=scored)[1].splitlines()[0].endswith(f"  quality {quality[3]:.2f}")
    assert "quality" not in json.loads(call(*search, "--json")[1])["probes"][0]
    assert call(*search)[1].splitlines()[0] == str(faces / "p1" / "0.png")


@pytest.mark.parametrize("with_quality", [False, True])
def test_the_pictures_of_a_folder_are_one_track(call, workdir, scored, faces, tmp_path, with_quality):
    model, known, picture = scored if with_quality else workdir, tmp_path / "known", tmp_path / "tracks.png"
    recognizer = Recognizer.load(model)
    assert call("enroll", faces, "--gallery", known)[0] == 0
    status, out, _ = call(
        "search", faces, "--gallery", known, "--track", "--json", "-k", 1, "--pictures", picture, model=model
    )
    found = json.loads(out)["probes"]
    assert status == 0 and [(Path(track["path"]).name, track["faces"]) for track in found] == [
        (f"p{person}", 3) for person in range(4)
    ]
    gallery = Gallery.load(known)
    for track in found:
        pictures = sorted(Path(track["path"]).iterdir())
        template = recognizer.template(pictures)
        (match,) = gallery.search(template[None], 1)[0]
        assert track["matches"][0]["similarity"] == pytest.approx(match.similarity, abs=1e-5)
        assert track["matches"][0]["id"] == match.id == Path(track["path"]).name
        assert "frames" not in track and ("quality" in track) == with_quality
        if with_quality:
            assert track["quality"] == pytest.approx(recognizer.embed(pictures, quality=True)[1].max(), abs=1e-5)
    assert cv2.imread(str(picture)).shape[0] > 4 * 60
    out = call("search", faces, "--gallery", known, "--track", model=model)[1]
    assert f"{faces / 'p0'}  3 faces" in out and ("3 faces  quality" in out) == with_quality


def test_a_search_names_the_person_or_nobody(call, tmp_path):
    """Two of twelve people are enrolled."""
    people, known = make_faces(tmp_path / "people", 12, 3, size=32), tmp_path / "known"
    student = save_calibrated(tmp_path / "run", people)
    for person in ("p0", "p1"):
        shutil.copytree(people / person, tmp_path / "few" / person)
    assert call("enroll", tmp_path / "few", "--gallery", known, model=student)[0] == 0
    search, recognizer = ("search", people, "--gallery", known, "--fpir"), Recognizer.load(student)
    assert recognizer.threshold(fpir=0.1, gallery=6) == recognizer.threshold(1 - 0.9 ** (1 / 6))
    for words, how in (
        ((), {"gallery": 6}),
        (("--templates",), {"gallery": 2, "gallery_faces": 3}),
        (("--track",), {"gallery": 6, "probe_faces": 3}),
        (("--track", "--templates"), {"gallery": 2, "probe_faces": 3, "gallery_faces": 3}),
    ):
        status, out, _ = call(*search, 0.1, "--json", *words, model=student)
        threshold, probes = recognizer.threshold(fpir=0.1, **how), json.loads(out)["probes"]
        for probe in probes:
            best = probe["matches"][0]
            assert probe["decision"] == (best["id"] if best["similarity"] >= threshold else None)
        assert status == 0 and {"p0", "p1", None} <= {probe["decision"] for probe in probes}
    status, out, _ = call(*search, 0.1, model=student)
    assert "0.png: p0\n" in out and ": unknown\n" in out and "  accepted" in out
    assert f"  below {recognizer.threshold(fpir=0.1, gallery=6):.3f}\n" in out
    status, _, err = call(*search, 0.01, model=student)
    assert status == 2 and "[fpir-too-fine]" in err and "in a gallery of 6 " in err and "66 pairs" in err
    Gallery.load(known).remove("p0", "p1")
    status, _, err = call(*search, 0.1, model=student)
    assert status == 2 and "[gallery-empty]" in err and "gdrd enroll" in err


def test_who_a_probe_is_does_not_depend_on_the_length_of_the_list(call, faces, tmp_path, monkeypatch):
    """People with three faces are never accepted, and people with one, who are the least similar, always."""
    for person in ("p2", "p3"):
        for number in (1, 2):
            (faces / person / f"{number}.png").unlink()
    assert call("enroll", faces, "--gallery", tmp_path / "known")[0] == 0
    monkeypatch.setattr(Recognizer, "threshold", lambda *_, gallery_faces, **__: {1: -1.0, 3: 2.0}[gallery_faces])
    search = ("search", faces / "p0" / "0.png", "--gallery", tmp_path / "known", "--templates", "--json", "-k")
    (everyone,) = json.loads(call(*search, 4, "--fpir", 0.1)[1])["probes"]
    assert everyone["matches"][0]["id"] == "p0" and everyone["decision"] in ("p2", "p3")
    (one,) = json.loads(call(*search, 1, "--fpir", 0.1)[1])["probes"]
    assert one["decision"] == everyone["decision"] and [match["id"] for match in one["matches"]] == ["p0"]


def test_where_a_track_was_seen_is_listed(call, faces, tmp_path, monkeypatch):
    assert call("enroll", faces, "--gallery", tmp_path / "known")[0] == 0
    track = Track(
        tmp_path / "clip.mp4", np.zeros((3, 16, 16, 3), np.uint8), (4, 5, 9),
        np.float32([[10.4, 20.6, 30, 40], [11, 20, 30, 40], [-1.2, 20, 30, 40]]),
    )  # fmt: skip
    monkeypatch.setattr(tracks, "find", lambda *_, **__: ([track], []))
    search = ("search", track.path, "--gallery", tmp_path / "known", "--track")
    (found,) = json.loads(call(*search, "--json")[1])["probes"]
    assert (found["path"], found["frames"], found["faces"]) == (str(track.path), [4, 9], 3)
    boxes = [(4, [10, 21, 30, 40]), (5, [11, 20, 30, 40]), (9, [-1, 20, 30, 40])]
    assert found["boxes"] == [{"frame": frame, "box": box} for frame, box in boxes]
    assert call(*search)[1].splitlines()[0].startswith(f"{track.path}  frames 4 to 9  3 faces")


def test_a_video_needs_tracking(call, faces, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    assert call("enroll", faces, "--gallery", tmp_path / "known")[0] == 0
    status, _, err = call("search", tmp_path / "clip.mp4", "--gallery", tmp_path / "known")
    assert status == 2 and "[track-missing]" in err and "--track" in err


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
    printed, stored = json.loads(out), np.load(out_file)
    assert status == 1 and printed["faces"] == 12 and len(printed["left_out"]) == 3
    assert stored["embeddings"].shape == (12, 24) and stored["paths"][0].endswith("p0/0.png")
    np.testing.assert_allclose(np.linalg.norm(stored["embeddings"], axis=1), 1, atol=1e-5)


def test_more_people_can_be_added(call, faces, tmp_path):
    (tmp_path / "known").mkdir()  # somebody made room beforehand
    more = tmp_path / "more"
    more.mkdir()
    (faces / "p3" / "0.png").rename(more / "zoe.png")
    assert call("enroll", faces, "--gallery", tmp_path / "known")[0] == 0
    status, _, err = call("enroll", more, "--gallery", tmp_path / "known")
    assert status == 2 and "[gallery-exists]" in err and "--add" in err and "--update" in err
    status, _, err = call("enroll", more, "--gallery", more / "zoe.png" / "known")
    assert status == 2 and "[not-writable]" in err and "zoe.png" in err
    status, out, _ = call("enroll", more, "--gallery", tmp_path / "known", "--add", "--json")
    assert status == 0
    assert json.loads(out) == {"gallery": str(tmp_path / "known"), "faces": 12, "people": 5, "new": 1}


def test_faces_are_updated(call, faces, tmp_path):
    """p0 gets one other face, p1 has only an unusable picture and keeps its faces, zoe is new."""
    known, more = tmp_path / "known", tmp_path / "more"
    status, _, err = call("enroll", faces, "--gallery", known, "--update")
    assert status == 2 and "[gallery-missing]" in err and str(known) in err
    assert call("enroll", faces, "--gallery", known)[0] == 0
    for name in ("p0", "p1", "zoe"):
        (more / name).mkdir(parents=True)
    (faces / "p3" / "0.png").rename(more / "p0" / "new.png")
    (more / "p1" / "bad.png").write_text("not a picture")
    (faces / "p3" / "1.png").rename(more / "zoe" / "0.png")
    status, out, _ = call("enroll", more, "--gallery", known, "--update", "--json")
    about = json.loads(out)
    assert status == 1 and (about["faces"], about["people"], about["new"], len(about["left_out"])) == (11, 5, 2, 1)
    assert about["replaced"] == {"people": 1, "faces": 3}
    assert Gallery.load(known).counts() == {"p1": 3, "p2": 3, "p3": 3, "p0": 1, "zoe": 1}
    status, out, _ = call("enroll", more, "--gallery", known, "--update")
    assert "11 faces of 5 people, 2 of them new, replacing 2 faces of 2 people" in out
    status, out, _ = call("search", more / "p0", "--gallery", known, "--json", "-k", 2)
    matches = {match["id"]: match for match in json.loads(out)["probes"][0]["matches"]}
    assert matches.keys() == {"p0", "p3"} and matches["p0"]["path"] == str(more / "p0" / "new.png")
    assert matches["p0"]["similarity"] == pytest.approx(1, abs=1e-5)
    status, _, err = call("enroll", more, "--gallery", known, "--update", "--add")
    assert status == 2 and "[command-usage]" in err and "--add" in err


def run(capsys, *words):
    """Calls a command that needs no student."""
    status = recognize.main([*map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_people_are_listed_and_removed(call, capsys, faces, tmp_path):
    known = tmp_path / "known"
    (faces / "p2").rename(faces / "Zoë")
    assert call("enroll", faces, "--gallery", known)[0] == 0
    assert b"/p1/0.png" in (known / "gallery.sqlite").read_bytes()
    status, out, _ = run(capsys, "gallery", known)
    assert status == 0 and "12 faces of 4 people" in out and "     3  Zoë\n" in out
    fingerprint = Gallery.load(known).fingerprint
    status, out, _ = run(capsys, "gallery", known, "--json")
    people = {"p0": 3, "p1": 3, "p3": 3, "Zoë": 3}
    about = {"gallery": str(known), "recognizer": fingerprint[:12], "faces": 12, "people": people}
    assert status == 0 and json.loads(out) == about
    status, out, _ = run(capsys, "remove", "p1", "Zoe\u0308", "--gallery", known)  # as macOS writes it
    assert status == 0 and "6 faces removed, 6 faces of 2 people left" in out
    status, out, _ = run(capsys, "remove", "--gallery", known, "--path", faces / "p0" / "0.png", "--json")
    assert json.loads(out) == {"gallery": str(known), "removed": 1, "faces": 5, "people": 2}
    stored = (known / "gallery.sqlite").read_bytes()
    assert b"/p1/" not in stored and b"/p0/0.png" not in stored and b"/p0/1.png" in stored
    status, out, _ = call("search", faces / "p1", "--gallery", known, "--json")
    assert {match["id"] for probe in json.loads(out)["probes"] for match in probe["matches"]} == {"p0", "p3"}


def test_a_person_who_is_not_in_the_gallery_cannot_be_removed(call, capsys, faces, tmp_path):
    known = tmp_path / "known"
    assert call("enroll", faces, "--gallery", known)[0] == 0
    for words, code, fact in [
        (["P1"], "gallery-person-unknown", "did you mean 'p1'?"),
        (["--path", faces / "p1" / "7.png"], "gallery-path-unknown", f"did you mean '{faces / 'p1'}"),
        ([], "remove-nothing", "--path"),
    ]:
        status, _, err = run(capsys, "remove", "--gallery", known, *words)
        assert status == 2 and f"[{code}]" in err and str(fact) in err and len(err.strip().splitlines()) == 1
    status, _, err = run(capsys, "remove", "p1", "--gallery", faces)
    assert status == 2 and "[gallery-missing]" in err
    assert len(Gallery.load(known)) == 12


@pytest.mark.parametrize("add", [False, True])
def test_killed_in_the_middle_of_enrolling_the_same_command_does_it(call, workdir, faces, tmp_path, add):
    """The first process dies after its faces were written, before the transaction or the file is complete."""
    known, words = tmp_path / "known", ["enroll", str(faces), "--gallery", str(tmp_path / "known")]
    if add:
        assert call(*words)[0] == 0
        words.append("--add")
    script = (
        "import os, sys\nimport tiny_student\nfrom gdrd_jax.cli import recognize\n"
        "from gdrd_jax.galleries import sqlite\n"
        "def die(*_):\n    os.kill(os.getpid(), 9)\n"
        "insert = sqlite.SqliteFaces.insert\n"
        "if sys.argv.pop(1) == 'True':\n"
        "    sqlite.SqliteFaces.insert = lambda self, rows: (insert(self, rows), die())\n"
        "os.replace = die\n"
        "recognize.main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(add), *words, "--model", workdir], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(PLUGINS)])},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert is_gallery(known) == add and (not add or len(Gallery.load(known)) == 12)
    assert call(*words)[0] == 0
    assert len(Gallery.load(known)) == (24 if add else 12)
    assert sorted(file.name for file in known.iterdir()) == [".lock", "gallery.sqlite"]


@pytest.mark.parametrize(
    ("words", "code", "fact"),
    [
        (("search", "none.png", "--gallery", "known"), None, "'none.png'"),
        (("search", "FACES", "--gallery", "known", "-k", "0"), "search-k", "-k is 0"),
        (("search", "FACES", "--gallery", "FACES"), "gallery-missing", "people"),
        (
            ("search", "FACES", "--gallery", "known", "--far", "0.01", "--fpir", "0.1"),
            "command-usage",
            "--fpir",
        ),
        (("search", "FACES", "--gallery", "known", "--far", "0.01", "--track"), "threshold-missing", "export it"),
        (("search", "A", "--gallery", "known", "--track"), "track-is-picture", "0.png"),
        (("search", "FACES", "--gallery", "known", "--far", "0.01"), None, "no thresholds; export it"),
        (("search", "FACES", "--gallery", "known", "--fpir", "0.01"), "threshold-missing", "export it"),
        (("verify", "A", "A"), None, "no thresholds; export it"),
        (("embed", "empty", "--out", "x.npz"), None, "holds no images"),
        (("embed", "FACES", "--out", "nowhere/x.npz"), None, "nowhere/x.npz cannot be written; choose a file"),
        (("search", "FACES", "--gallery", "known", "--pictures", "empty"), None, "empty cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_sentence(call, faces, tmp_path, monkeypatch, words, code, fact):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    call("enroll", faces / "p0", "--gallery", "known")
    status, _, err = call(*({"FACES": faces, "A": faces / "p0" / "0.png"}.get(word, word) for word in words))
    assert status == 2 and fact in err and len(err.strip().splitlines()) == 1
    assert code is None or f"[{code}]" in err


def test_a_gallery_of_another_student(call, faces, tmp_path):
    other = save_student(tmp_path / "other", seed=1)
    call("enroll", faces, "--gallery", tmp_path / "known", model=other)
    status, _, err = call("search", faces, "--gallery", tmp_path / "known")
    assert status == 2 and "[gallery-space]" in err and str(tmp_path / "known") in err
    status, _, err = call("search", faces, "--gallery", tmp_path / "known", model=tmp_path)
    assert status == 2 and "holds no trained weights" in err
    assert Recognizer.load(other).fingerprint() == Gallery.load(tmp_path / "known").fingerprint
