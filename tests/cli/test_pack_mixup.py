"""The command that embeds mixup images of a packed training set."""

import numpy as np
import pytest
from conftest import make_faces, save_recognizer

from gdrd_jax.cli import pack_mixup
from gdrd_jax.data import packed, packed_mixup
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces
from gdrd_jax.teachers import load_discriminative

DIM = 48  # of the teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_recognizer(tmp_path_factory.mktemp("teacher") / "colors.onnx")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return checked(open_faces(make_faces(tmp_path_factory.mktemp("faces"), 4, 2)))


def pack(faces, targets, folder):
    shape = targets.shape[1:]
    cache = FeatureStore.create(
        folder / "cache", rows=len(faces), views=1, shape=shape, dtype="float16", provenance={"faces": "x"}
    )
    cache.write(0, range(len(faces)), targets)
    rows, about = np.arange(len(faces)), {"name": "the-teacher", "fingerprint": "f" * 64}
    parts = [(faces, rows, faces.labels, cache)]
    packed.pack(parts, [folder / "faces.packed"], teacher=about, faces="x", size=48, quality=90, step=0.13)
    return folder / "faces.packed"


def call(*words):
    return pack_mixup.main([*map(str, words)])


def test_mixup_images_are_embedded_by_the_teacher_of_the_packed_faces(faces, teacher, tmp_path):
    targets = load_discriminative(teacher).embed(np.stack([faces[row] for row in range(len(faces))]))
    path = pack(faces, targets, tmp_path)
    assert call(path, "--recognizer", teacher, "--out", tmp_path / "m", "--each", 2) == 0
    stored = packed_mixup.load(tmp_path / "m", packed.load([path]))
    assert stored["mixup_targets"].values.shape == (len(faces), 2, DIM)


@pytest.mark.parametrize("dim", [DIM, 5])
def test_another_teacher_is_refused(faces, teacher, tmp_path, capsys, dim):
    path = pack(faces, np.random.default_rng(0).normal(size=(len(faces), dim)), tmp_path)
    capsys.readouterr()
    assert call(path, "--recognizer", teacher, "--out", tmp_path / "m") == 2
    error = capsys.readouterr().err
    assert error.endswith(" [teacher-mismatch]\n") and error.count("\n") == 1, error
    assert f"--recognizer {teacher}" in error and str(path) in error and "the-teacher" in error
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("words", "code", "fact"),
    [
        (["--each", 0], "flag-value", "--each 0"),
        (["--seed", -1], "flag-value", "--seed -1"),
        (["--minutes", 0], "flag-value", "--minutes 0"),
        (["--minutes", "nan"], "flag-value", "--minutes nan"),
        (["--recognizer", "none.onnx"], "file-missing", "--recognizer: there is no file 'none.onnx'"),
        (["--precision", "float16"], "command-usage", "--precision"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(teacher, tmp_path, capsys, words, code, fact):
    assert call(tmp_path / "none.packed", "--recognizer", teacher, "--out", tmp_path / "m", *words) == 2
    error = capsys.readouterr().err
    assert error.endswith(f" [{code}]\n") and fact in error, error
