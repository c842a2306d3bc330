"""Galleries as version 0.4 wrote them."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import raises
from known_faces import DIM, FACES, check_exact, content, embeddings, names, stored

from gdrd_jax.galleries import faiss_search, folder, sqlite
from gdrd_jax.galleries.gallery import Gallery

STRANGE = '{"format": 1, "fingerprint": "f", "dim": "4", "faces": 1, "version": "..", "sizes": []}'


def write_v04(folder, values, ids, metadata):
    """Writes a gallery as version 0.4 did, except for its codes."""
    version = folder / "gallery.1a2b3c4d"
    version.mkdir(parents=True)
    lines = [json.dumps([name, about]).encode() + b"\n" for name, about in zip(ids, metadata)]
    values.astype("<f4").tofile(version / "embeddings.f32")
    (version / "faces.jsonl").write_bytes(b"".join(lines))
    np.cumsum([0, *map(len, lines)], dtype="<i8").tofile(version / "starts.i64")
    sizes = {file.name: file.stat().st_size for file in version.iterdir()}
    manifest = {"format": 1, "fingerprint": "f" * 64, "dim": values.shape[1], "faces": len(values)}
    (folder / "gallery.json").write_text(json.dumps(manifest | {"version": version.name, "sizes": sizes}, indent=1))
    return folder


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(sqlite, "BLOCK", 11)
    monkeypatch.setattr(faiss_search, "PROBES", 3)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', STRANGE])
def test_what_is_no_gallery_is_refused(tmp_path, text):
    (tmp_path / "gallery.json").write_text(text)
    with raises("gallery-format", tmp_path / "gallery.json"):
        Gallery.load(tmp_path)


@pytest.fixture
def v04(tmp_path):
    metadata = [{"path": f"人/{i}\udcff.jpg", "row": i} for i in range(FACES)]
    return write_v04(tmp_path / "v04", embeddings(), names(), metadata)


def test_a_gallery_of_version_04_is_converted_and_its_files_stay(v04, small_blocks, caplog):
    caplog.set_level("INFO", "gdrd_jax")
    before = {file: file.read_bytes() for file in v04.rglob("*") if file.is_file()}
    gallery = Gallery.load(v04, "f" * 64)
    assert str(v04) in caplog.text and "0.4" in caplog.text
    for one in (gallery, Gallery.load(v04, "f" * 64)):
        assert (len(one), one.dim, one.people()) == (FACES, DIM, names()[::3])
        check_exact(one, embeddings(), 5)
        assert one.search(embeddings()[4:5], 1)[0][0].metadata == {"path": "人/4\udcff.jpg", "row": 4}
    assert {file: file.read_bytes() for file in before} == before
    gallery.add(embeddings(1, seed=3), ["new"], [{"row": FACES}])
    assert Gallery.load(v04).people()[-1] == "new"  # the converted one counts


def test_people_leave_a_converted_gallery_only_with_its_old_files(v04):
    gallery = Gallery.load(v04)
    for leave in (lambda: gallery.remove("p1"), lambda: gallery.update(embeddings(1), ["p1"])):
        with raises("gallery-old-files", v04, "gallery.json", "gallery.1a2b3c4d"):
            leave()
    assert len(gallery) == FACES
    (v04 / "gallery.json").unlink()
    with raises("gallery-old-files", v04, "gallery.1a2b3c4d"):
        gallery.remove("p1")
    shutil.rmtree(v04 / "gallery.1a2b3c4d")
    assert stored(embeddings()[3]) in content(v04) and gallery.remove("p1") == 3
    assert stored(embeddings()[3]) not in content(v04)


def test_a_gallery_of_version_04_that_cannot_be_written_is_read(v04, monkeypatch):
    monkeypatch.setattr(folder.os, "access", lambda *_: False)
    before = content(v04)
    gallery = Gallery.load(v04)
    check_exact(gallery, embeddings(), 5)
    for change in (lambda: gallery.add(embeddings(1), ["x"]), lambda: gallery.remove("p1")):
        with raises("gallery-not-written"):
            change()
    assert len(gallery) == FACES and content(v04) == before


def test_a_gallery_that_two_convert_at_once_keeps_what_the_first_added(v04, monkeypatch):
    read, calls = folder.version_04.read, []

    def and_convert(*arguments):
        if not calls:
            calls.append(1)
            Gallery.load(v04).add(embeddings(1, seed=3), ["new"])
        return read(*arguments)

    monkeypatch.setattr(folder.version_04, "read", and_convert)
    assert Gallery.load(v04).people()[-1] == "new"


def test_a_gallery_of_version_04_of_another_recognizer_is_refused(v04):
    with raises("gallery-space", v04, "f" * 12, "a" * 12):
        Gallery.load(v04, "a" * 64)
    assert not (v04 / "gallery.sqlite").exists()


@pytest.mark.parametrize("name", ["embeddings.f32", "faces.jsonl"])
def test_files_of_version_04_that_are_cut_short_or_missing_are_noticed(v04, name):
    file = v04 / "gallery.1a2b3c4d" / name
    os.truncate(file, file.stat().st_size - 1)
    with raises("gallery-damaged", file, file.stat().st_size):
        Gallery.load(v04)
    file.unlink()
    with raises("gallery-damaged", file):
        Gallery.load(v04)
    assert not (v04 / "gallery.sqlite").exists()


@pytest.mark.parametrize(
    ("name", "byte", "fact"),
    [("embeddings.f32", b"\xff", "unit length"), ("embeddings.f32", b"\0", "unit length"), ("faces.jsonl", b"?", 1)],
)
def test_other_contents_of_version_04_are_noticed(v04, name, byte, fact):
    file = v04 / "gallery.1a2b3c4d" / name
    file.write_bytes(byte * file.stat().st_size)
    with raises("gallery-damaged", v04, fact):
        Gallery.load(v04)
    assert not (v04 / "gallery.sqlite").exists()
