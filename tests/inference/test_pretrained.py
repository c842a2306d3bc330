"""Students by name, and their probes against galleries that their teacher embeds."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_faces, make_lfw, raises, save_recognizer, save_student

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import gdrd_jax  # noqa: E402
from gdrd_jax.cli import (
    evaluate,  # noqa: E402
    export,  # noqa: E402
    recognize,  # noqa: E402
)
from gdrd_jax.data.degradation import Degradation  # noqa: E402
from gdrd_jax.evaluation.dev import open_pairs  # noqa: E402
from gdrd_jax.galleries.gallery import Gallery  # noqa: E402
from gdrd_jax.inference import pretrained  # noqa: E402
from gdrd_jax.inference.embedders import open_model  # noqa: E402
from gdrd_jax.inference.recognizer import Recognizer  # noqa: E402
from gdrd_jax.models import weights

DIM = 48  # of the teacher
pytestmark = pytest.mark.usefixtures("quick_speeds", "no_figures")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_recognizer(tmp_path_factory.mktemp("teacher") / "colors.onnx")


@pytest.fixture(scope="module")
def workdir(teacher, tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("run"), dim=DIM, teacher=teacher)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("people"), people=6, images=3)


@pytest.fixture(scope="module")
def package(workdir, teacher, people, tmp_path_factory):
    """A folder of pretrained students, with one in it."""
    folder = tmp_path_factory.mktemp("weights")
    words = [workdir, folder / "gdrd-16", "--half", "--teacher", teacher, "--calibration", people]
    assert export.main([*map(str, words)]) == 0
    return folder


@pytest.fixture
def named(package, monkeypatch, tmp_path):
    """The students of `package` are the pretrained ones."""
    monkeypatch.setattr(pretrained, "WEIGHTS", package)
    monkeypatch.chdir(tmp_path)
    return "gdrd-16"


def test_a_student_loads_by_name(named, package, workdir):
    assert gdrd_jax.list_pretrained() == [named]
    recognizer = Recognizer.load(named)
    assert recognizer.fingerprint() == Recognizer.load(package / named).fingerprint()
    assert recognizer.teacher == Recognizer.load(workdir).teacher and recognizer.teacher["name"] == "colors"
    assert recognizer.thresholds.people == recognizer.native_thresholds.people == 6


@pytest.mark.parametrize("text", ["gdrd-61", "gdrd16", "GDRD-16"])
def test_a_name_that_does_not_exist_is_told_with_the_nearest(named, text):
    with raises("student-unknown", f"'{text}'", "did you mean 'gdrd-16'?") as error:
        Recognizer.load(text)
    assert str(error.value).count("gdrd-16") == 2  # also in the list of all
    with raises("model-missing", f"'{text}'", "gdrd-16"):
        open_model(text)


def test_a_path_counts_before_a_name(named, workdir):
    Path(named).symlink_to(workdir)
    assert Recognizer.load(named).fingerprint() == Recognizer.load(workdir).fingerprint()
    assert not pretrained.is_pretrained(named)


def test_changed_weights_are_refused(named, package):
    file = package / named / "student.safetensors"
    before = file.read_bytes()
    try:
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with raises("weights-damaged", file):
            Recognizer.load(named)
    finally:
        file.write_bytes(before)


def test_half_the_bytes_and_nearly_the_same_embeddings(package, workdir, people):
    half, whole = Recognizer.load(package / "gdrd-16"), Recognizer.load(workdir)
    files = sorted(people.rglob("*.png"))
    cosines = np.einsum("nd,nd->n", half.embed(files), whole.embed(files))
    assert cosines.min() > 0.9999 and half.fingerprint() != whole.fingerprint()
    arrays = weights.load_safetensors(package / "gdrd-16" / "student.safetensors")[0]
    kernels = [array for array in arrays.values() if array.ndim > 1]
    assert all((array == array.astype(np.float16)).all() for array in kernels)
    size = sum(array.size * (2 if array.ndim > 1 else 4) for array in arrays.values())
    assert size < (package / "gdrd-16" / "student.safetensors").stat().st_size < size + 12_000


def test_a_pretrained_student_is_exported_with_its_thresholds(named, package, tmp_path, capsys):
    assert export.main([named, str(tmp_path / "out"), "--format", "onnx"]) == 0
    before, after = Recognizer.load(named), Recognizer.load(tmp_path / "out")
    assert after.quality == before.quality
    assert after.fingerprint() == before.fingerprint() and (tmp_path / "out" / "student.onnx").exists()
    assert (after.thresholds, after.native_thresholds) == (before.thresholds, before.native_thresholds)
    assert "made-up images" in (tmp_path / "out" / "README.md").read_text()
    assert export.main([named, str(tmp_path / "out8"), "--format", "int8"]) == 2
    error = capsys.readouterr().err
    assert "int8" in error and "--calibration" in error and error.endswith(" [calibration-missing]\n")
    assert export.main([str(package / named), str(package / named)]) == 2
    error = capsys.readouterr().err
    assert str(package / named) in error and error.endswith(" [output-is-input]\n")


def evaluated(out, folder, *words):
    command = ["--protocol", "lfw", "--data", folder, "--pairs", folder.parent / "pairs.txt", "--out", out, *words]
    return evaluate.main([*map(str, command)])


def test_probes_are_compared_with_a_gallery_of_the_teacher(named, teacher, tmp_path):
    folder = make_lfw(tmp_path)
    words = ["--model", named, "--model", teacher, "--resolution", "16", "16:native", "--blur", 2]
    assert evaluated(tmp_path / "out", folder, *words) == 0
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert list(results) == ["gdrd-16_16", "gdrd-16_16:native", "colors_16", "colors_16:native"]
    scores = np.load(tmp_path / "out" / "scores.npz")
    pairs, cross = len(scores["same"]), scores["gdrd-16_16:native/scores"]
    assert results["gdrd-16_16:native"]["n_pairs"] == len(cross) == 2 * pairs
    student, network = open_model(named), open_model(str(teacher))
    found, how = open_pairs(folder, tmp_path / "pairs.txt"), Degradation(16, "area", blur=2.0)
    for pair in (0, pairs - 1):  # each face as the probe, degraded, and the other as it is
        for order, (probe, other) in enumerate([(found.first, found.second), (found.second, found.first)]):
            seen = student.input_of(found.faces, probe[pair], how, 0)
            expected = student.embed(seen[None])[0] @ network.embed(found.faces[other[pair]][None])[0]
            assert cross[order * pairs + pair] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resolution", "16:native"], "give that file as another --model"),
        (["--resolution", "16:17"], "the resolution '16:17' is not known"),
        (["--resolution", "16:8:native"], "PROBE:GALLERY such as 16:native"),
        (["--resolution", "60"], "it can be native, 112, 64, 48, 32, 24, 16, 8"),
    ],
)
def test_a_resolution_that_cannot_be_is_told_first(named, tmp_path, capsys, words, message):
    assert evaluated(tmp_path / "out", make_lfw(tmp_path), "--model", named, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_gallery_of_the_teacher_is_searched_with_the_student(named, teacher, people, tmp_path, capsys):
    enroll = ["enroll", people, "--gallery", tmp_path / "good", "--with", teacher, "--model", named]
    assert recognize.main([*map(str, enroll)]) == 0
    assert Gallery.load(tmp_path / "good").fingerprint == Recognizer.load(named).teacher["fingerprint"]
    capsys.readouterr()
    search = ["search", people / "p2", "--gallery", tmp_path / "good", "--far", "0.2", "--json", "--model", named]
    assert recognize.main([*map(str, search)]) == 0
    threshold = Recognizer.load(named).threshold(0.2, native=True)
    probes = json.loads(capsys.readouterr().out)["probes"]
    gallery = open_model(str(teacher)).embed(np.stack([Recognizer.load(named).face(people / "p0" / "0.png")]))[0]
    for probe in probes:
        for match in probe["matches"]:
            assert match["accepted"] == (match["similarity"] >= threshold)
            if match["path"].endswith("p0/0.png"):
                own = Recognizer.load(named).embed(probe["path"])[0]
                assert match["similarity"] == pytest.approx(float(own @ gallery), abs=1e-5)


def test_a_gallery_of_another_space_is_refused(named, teacher, people, tmp_path, capsys):
    other = save_recognizer(tmp_path / "other.onnx", cells=2)
    enroll = ["enroll", people, "--gallery", tmp_path / "bad", "--with", other, "--model", named]
    assert recognize.main([*map(str, enroll)]) == 2
    error = capsys.readouterr().err
    assert "is not the teacher of this student" in error and "its teacher is colors" in error
    assert not (tmp_path / "bad").exists()
    stranger = save_student(tmp_path / "stranger", dim=DIM, seed=3)
    assert recognize.main([*map(str, ["enroll", people, "--gallery", tmp_path / "known", "--model", stranger])]) == 0
    search = ["search", people, "--gallery", tmp_path / "known", "--model", named]
    assert recognize.main([*map(str, search)]) == 2
    assert "is of another recognizer" in capsys.readouterr().err
    enroll = ["enroll", people, "--gallery", tmp_path / "bad", "--with", teacher, "--model", stranger]
    assert recognize.main([*map(str, enroll)]) == 2
    assert "it names none" in capsys.readouterr().err


def test_the_card_shows_what_was_evaluated(package, teacher, workdir, people, tmp_path, capsys):
    folder = make_lfw(tmp_path)
    words = ["--model", f"ours={package / 'gdrd-16'}", "--model", teacher, "--resolution", "16", "16:native"]
    assert evaluated(tmp_path / "hard", folder, *words, "--jpeg", 50) == 0
    words = [workdir, tmp_path / "out", "--half", "--calibration", people, "--evaluation", tmp_path / "hard"]
    assert export.main([*map(str, words)]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    figure = json.loads((tmp_path / "hard" / "metrics.json").read_text())["results"]["ours_16:native"]["accuracy"]
    row = next(line for line in card.splitlines() if line.startswith("| ours_16:native |"))
    assert "degraded by jpeg 50" in card and f"| {figure:.1f} (" in row
    words = [workdir, tmp_path / "other", "--calibration", people, "--evaluation", tmp_path / "hard"]
    assert export.main([*map(str, words)]) == 2  # float32 is another student
    error = capsys.readouterr().err
    assert str(tmp_path / "hard") in error and error.endswith(" [evaluation-other-student]\n")
    words[-1] = tmp_path
    assert export.main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} " in error and "metrics.json" in error and error.endswith(" [evaluation-missing]\n")
    assert not (tmp_path / "other").exists()


def test_the_package_carries_three_students():
    assert gdrd_jax.list_pretrained() == ["gdrd-16", "gdrd-16-small", "gdrd-8"]


@pytest.mark.parametrize("name", pretrained.list_pretrained())
def test_what_the_package_carries_is_whole(name):
    recognizer = Recognizer.load(name)
    assert recognizer.teacher and recognizer.thresholds.supports(1e-4) and recognizer.native_thresholds.supports(1e-4)
    shortest, longest = recognizer.quality(np.array([12.0, 50.0]))  # most lengths are between these
    assert 0.01 < shortest < 0.5 < longest < 1
    card = (pretrained.WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    assert f"{recognizer.resolution}x{recognizer.resolution}" in card and "degraded by" in card and "research" in card
    manifest = (pretrained.WEIGHTS / name / "manifest.json").read_text(encoding="utf-8")
    assert '"/' not in manifest and "/root" not in card  # no paths of the machine
    assert {path.name for path in (pretrained.WEIGHTS / name).iterdir()} == {
        "README.md", "manifest.json", "student.safetensors"
    }  # fmt: skip


def test_a_file_is_no_student(tmp_path):
    (tmp_path / "face.onnx").touch()
    with raises("student-is-file", tmp_path / "face.onnx"):
        Recognizer.load(tmp_path / "face.onnx")
