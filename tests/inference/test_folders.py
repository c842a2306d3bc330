"""Folders of pictures, and what of them cannot be used."""

import numpy as np
import PIL.Image
import pytest
from conftest import make_faces, raises, save_student

from gdrd_jax.data.prepare import prepare
from gdrd_jax.data.readers import open_faces
from gdrd_jax.galleries import enroll
from gdrd_jax.inference import folders, preprocess
from gdrd_jax.inference.recognizer import Recognizer


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return Recognizer.load(save_student(tmp_path_factory.mktemp("run")))


def small(path):
    PIL.Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(path)


def test_unusable_pictures_are_named_with_their_reasons(recognizer, tmp_path):
    faces = make_faces(tmp_path / "faces", 1, 2)
    small(faces / "p0" / "9.png")
    embedded = folders.embed(recognizer, faces, align=False)
    assert [path.name for path in embedded.paths] == ["0.png", "1.png"] and embedded.embeddings.shape == (2, 24)
    ((path, reason),) = embedded.bad
    assert path == faces / "p0" / "9.png" and str(path) in reason and "3x3" in reason


def test_pictures_of_which_none_is_usable_are_an_error(recognizer, tmp_path):
    small(tmp_path / "a.png")
    with raises("face-too-small", tmp_path / "a.png", "3x3"):
        folders.embed(recognizer, tmp_path, align=False)
    small(tmp_path / "b.png")
    with raises("images-unusable", "2 pictures", tmp_path / "a.png", "3x3"):
        folders.embed(recognizer, tmp_path, align=False)


def test_a_folder_without_pictures_is_an_error(tmp_path):
    (tmp_path / "note.txt").write_text("no picture")
    with raises("images-missing", tmp_path):
        preprocess.find(tmp_path)
    with raises("path-missing", tmp_path / "none"):
        preprocess.find(tmp_path / "none")
    prepare(open_faces(make_faces(tmp_path / "faces", 2, 1)), tmp_path / "store")
    with raises("input-is-store", tmp_path / "store", "gdrd prepare"):
        preprocess.find(tmp_path / "store")


def test_a_gallery_is_extended_only_if_asked(recognizer, tmp_path):
    faces = make_faces(tmp_path / "faces", 2, 1)
    enroll.enroll(recognizer, faces, tmp_path / "known", align=False, add=False)
    with raises("gallery-exists", tmp_path / "known", "--add"):
        enroll.enroll(recognizer, faces, tmp_path / "known", align=False, add=False)
    gallery, _ = enroll.enroll(recognizer, faces, tmp_path / "known", align=False, add=True)
    assert len(gallery) == 4


def test_a_truncated_pil_image_is_an_error(recognizer, tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:700])
    with raises("image-unreadable", "PIL"):
        recognizer.embed(PIL.Image.open(tmp_path / "a.jpg"))


def test_pictures_outside_of_folders_are_people_of_their_own_with_a_warning(recognizer, tmp_path, caplog):
    faces = make_faces(tmp_path / "faces", 2, 2)
    enroll.enroll(recognizer, faces, tmp_path / "by_folder", align=False)
    assert "PERSON" not in caplog.text
    gallery, _ = enroll.enroll(recognizer, faces / "p0", tmp_path / "by_file", align=False)
    assert gallery.people() == ["0", "1"] and f"{faces / 'p0'} " in caplog.text and "PERSON/IMAGE" in caplog.text
