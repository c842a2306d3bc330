"""Folders and tars as people have them: what other programs leave there, and files that are no faces."""

import logging
import os
import shutil
import tarfile
import unicodedata

import numpy as np
import pytest
from conftest import jpeg, raises
from PIL import Image

from gdrd_jax.data.prepare import checked, prepare
from gdrd_jax.data.readers import list_files, open_faces
from gdrd_jax.inference.preprocess import find

CLUTTER = (
    ".DS_Store", "ann/._1.jpg", "ann/Thumbs.db", "ann/desktop.ini", ".ipynb_checkpoints/1-checkpoint.jpg",
    "ann/.ipynb_checkpoints/1-checkpoint.jpg", "ann/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/ann/._1.jpg",
    "__MACOSX/ann/1.jpg", "#recycle/1.jpg", "lost+found/1.jpg", "ann/1.jpg~", "bob/~$2.jpg", "bob/3.jpg.crdownload",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "faces"
    for name in ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg", *CLUTTER):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(100))
    return root


def packed(folder):
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, ".")
    return folder.with_suffix(".tar")


@pytest.mark.parametrize("given", (lambda folder: folder, packed))
def test_files_of_other_programs_are_skipped_and_counted(folder, given, caplog):
    path = given(folder)
    faces = open_faces(path)
    assert faces.identities == ("ann", "bob") and faces.names == ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg")
    skipped = dict(faces.skipped)
    assert skipped["__MACOSX/"] == "left by another program (2 files)"
    assert skipped["ann/@eaDir/"] == skipped["ann/._1.jpg"] == "left by another program (1 files)"
    assert len(skipped) == 13
    with caplog.at_level(logging.INFO, "gdrd_jax"):
        assert list_files(path).names == faces.names
    assert "14 files of other programs are ignored, such as " in caplog.text


def test_outputs_of_this_program_below_the_faces_are_no_people(folder):
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"name": "a", "student": {}, "views": {}}', encoding="utf-8")
    for name in ("roc.png", "previous/1/roc.png", "dis/curves.png"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(jpeg(9))
    faces = open_faces(folder)
    assert faces.identities == ("ann", "bob") and dict(faces.skipped)["runs/mine/"].endswith("(4 files)")
    (folder / "ann" / "config.json").write_text("{}", encoding="utf-8")  # of whatever else
    assert open_faces(folder).identities == ("ann", "bob")


def test_a_folder_that_is_itself_hidden_is_read(folder, tmp_path):
    (tmp_path / ".cache").mkdir()
    shutil.move(folder, tmp_path / ".cache" / "faces")
    assert len(open_faces(tmp_path / ".cache" / "faces")) == 3


def test_galleries_are_made_of_the_same_files(folder):
    assert [path.relative_to(folder).as_posix() for path in find(folder)] == ["ann/1.jpg", "ann/2.jpg", "bob/1.jpg"]


def test_images_are_told_by_their_first_bytes_where_the_suffix_does_not(tmp_path):
    face = Image.fromarray(np.full((112, 112, 3), 90, np.uint8))
    for number, suffix in enumerate(
        (".tif", ".TIFF", ".gif", ".jp2", ".avif", ".jfif", ".jpe", "", ".JPG_large", ".0")
    ):
        (tmp_path / f"p{number}").mkdir()
        kind = {".tif": "TIFF", ".TIFF": "TIFF", ".gif": "GIF", ".jp2": "JPEG2000", ".avif": "AVIF"}.get(suffix, "JPEG")
        face.save(tmp_path / f"p{number}" / f"1{suffix}", kind)
    for name, text in (
        ("p0/notes.txt", "PNG"),
        ("p1/list.jpg.txt", "P5 of them"),
        ("p2/BMI", "BM"),
        ("p3/a.mp4", "\0\0"),
    ):
        (tmp_path / name).write_text(text)
    face.save(tmp_path / "stray.png")
    faces = checked(open_faces(tmp_path))
    assert len(faces.identities) == 10 and len(faces) == 10
    assert dict(faces.skipped) == {
        **dict.fromkeys(("p0/notes.txt", "p1/list.jpg.txt", "p2/BMI", "p3/a.mp4"), "not an image"),
        "stray.png": "not in the folder of a person",
    }  # fmt: skip


def test_what_was_left_out_is_in_the_store(folder, tmp_path):
    store = prepare(open_faces(folder), tmp_path / "store", skip_bad=True)
    assert len(store) == 3 and ("__MACOSX/", "left by another program (2 files)") in store.skipped


@pytest.mark.parametrize("kind", ("dangling", "loop", "pipe"))
def test_what_cannot_be_read_is_named_or_left_out_and_listed(folder, tmp_path, kind):
    path = folder / "bob" / "2.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"dangling": "/nowhere/1.jpg", "loop": "2.jpg"}[kind])
    with raises("file-unreadable", "bob/2.jpg", "--skip-bad"):
        open_faces(folder)
    faces = open_faces(folder, skip_bad=True)
    assert len(faces) == 3 and "bob/2.jpg" in dict(faces.skipped)
    assert len(prepare(faces, tmp_path / "store", skip_bad=True)) == 3


def test_links_in_a_circle_are_followed_once(folder):
    (folder / "ann" / "others").symlink_to("../bob")
    (folder / "bob" / "others").symlink_to("../ann")
    (folder / "bob" / "all").symlink_to(folder)
    (folder / "bob" / "above").symlink_to(folder.parent)
    names = open_faces(folder).names
    assert names == (
        "ann/1.jpg", "ann/2.jpg", "ann/others/1.jpg", "bob/1.jpg", "bob/others/1.jpg", "bob/others/2.jpg"
    )  # fmt: skip


def test_a_file_that_vanishes_meanwhile_is_left_out_and_listed(folder):
    faces = open_faces(folder)
    (folder / "bob" / "1.jpg").unlink()
    with raises("file-unreadable", "bob/1.jpg", "No such file", "--skip-bad"):
        checked(faces)
    assert dict(checked(faces, skip_bad=True).skipped)["bob/1.jpg"].endswith(
        "cannot be read: No such file or directory"
    )


def test_both_unicode_forms_of_a_name_are_one_person(tmp_path):
    for number, form in enumerate(("NFC", "NFD")):
        name = tmp_path / unicodedata.normalize(form, "Zoë")
        name.mkdir()
        (name / f"{number}.jpg").write_bytes(jpeg(100))
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "1.jpg").write_bytes(jpeg(50))
    faces = open_faces(tmp_path)
    assert faces.identities == ("Zoë", "ann") and faces.labels.tolist() == [0, 0, 1]
    assert len(checked(faces)) == 3
