import dataclasses
import os
import shutil

import cv2
import numpy as np
import pytest
import simplejpeg
from conftest import LABELS, PAYLOADS, raises, write_records

from gdrd_jax.data.align import MIDDLE_TEMPLATE, TEMPLATE
from gdrd_jax.data.faces import Faces, decode, joined, packaged
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import list_files, open_faces
from gdrd_jax.utils.errors import GdrdError

FACE = cv2.GaussianBlur(np.random.default_rng(0).integers(256, size=(112, 112, 3), dtype=np.uint8), (0, 0), 3)
JPEG = simplejpeg.encode_jpeg(FACE, quality=90, colorspace="RGB")


def index(root):
    return checked(open_faces(root))


def test_an_indexed_folder_gives_back_the_faces(faces_folder):
    faces = index(faces_folder)
    assert len(faces) == 21 and faces.identities[0] == "p0"
    np.testing.assert_array_equal(faces.labels, np.repeat(np.arange(7), 3))
    expected = cv2.imread(str(faces_folder / "p1" / "2.png"))[:, :, ::-1]
    np.testing.assert_array_equal(faces[5], expected)


def test_split_by_people_and_save(tmp_path, faces_folder):
    train, test = index(faces_folder).split(2)
    assert train.identities == ("p0", "p1", "p2", "p3", "p4") and test.identities == ("p5", "p6")
    np.testing.assert_array_equal(test.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(train.rows_of_last_identities(2, 1), [9, 12])
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


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n truncated", b"\xff\xd8", b"\xff\xd8\xff"])
def test_an_image_that_does_not_decode_is_named(data):
    with raises("image-unreadable", "x.png"):
        decode(data, "x.png")


def test_a_jpeg_is_decoded_as_opencv_does():
    np.testing.assert_array_equal(decode(JPEG, "x"), cv2.imdecode(np.frombuffer(JPEG, np.uint8), 1)[:, :, ::-1])
    gray = cv2.imencode(".jpg", FACE[:, :, 0])[1].tobytes()
    assert decode(gray, "x").shape == (112, 112, 3)


def test_a_damaged_jpeg_is_refused_where_others_fill_it_with_gray():
    for cut in (len(JPEG) // 2, len(JPEG) - 30):
        with raises("image-unreadable", "x.jpg", "JPEG"):
            decode(JPEG[:cut], "x.jpg")
    refused = 0
    for at in range(700, len(JPEG) - 2, 7):
        data = bytearray(JPEG)
        data[at] = 0xFF
        try:
            decode(bytes(data), "x.jpg")
        except GdrdError:
            refused += 1
    assert refused > 0.8 * len(range(700, len(JPEG) - 2, 7))


def test_a_header_that_promises_gigapixels_is_not_believed():
    data = bytearray(JPEG)
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"
    with raises("image-too-large", "65500x65500"):
        decode(bytes(data), "x.jpg")


def test_a_picture_is_turned_as_its_exif_says():
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
    turned = JPEG[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + JPEG[2:]
    np.testing.assert_array_equal(decode(turned, "x"), np.rot90(decode(JPEG, "x"), -1))


def test_a_missing_package_is_named():
    with raises("package-missing", "no_such_package", "gdrd_jax[quickstart]"):
        packaged("no_such_package", "x")


def test_a_png_of_gigapixels_is_refused():
    huge = cv2.imencode(".png", np.zeros((12_000, 12_000), np.uint8))[1].tobytes()
    with raises("image-too-large", "12000x12000"):
        decode(huge, "x.png")


def test_several_sets_are_joined_whatever_they_are(tmp_path, faces_folder):
    write_records(tmp_path / "a.rec", PAYLOADS, LABELS)
    records, folder = open_faces(tmp_path / "a.rec"), open_faces(faces_folder)
    faces = joined([records, folder])
    assert len(faces) == len(records) + len(folder)
    assert faces.identities[0] == "a/0" and faces.identities[-1] == f"{faces_folder.stem}/p6"
    np.testing.assert_array_equal(faces.labels, np.concatenate([records.labels, folder.labels + 3]))
    some = faces.take([len(records), 0, len(records) + 4])
    some.save(tmp_path / "faces.json")
    for known in (some, Faces.load(tmp_path / "faces.json")):
        np.testing.assert_array_equal(known[0], folder[0])
        np.testing.assert_array_equal(known[1], records[0])
        np.testing.assert_array_equal(known[2], folder[4])
        assert str(faces_folder) in known.where(2) and known.where(1).endswith(f"of {tmp_path / 'a.rec'}")
        assert known.head(0) == folder.head(0) and known.head(1) == records.head(0)
    before = faces.signature()
    os.utime(tmp_path / "a.rec", ns=(1, 1))
    assert faces.signature() != before
    assert joined([records]) is records


@pytest.mark.parametrize("points", [5, 4])
def test_faces_with_landmarks_are_aligned_as_they_are_read(tmp_path, points):
    template = TEMPLATE if points == 5 else MIDDLE_TEMPLATE
    wide = np.random.default_rng(0).integers(0, 256, (14, 14, 3)).astype(np.float32)
    wide = cv2.resize(wide, (224, 224), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), wide[..., ::-1])
    moved = np.stack([template + [30, 60], template + [70, 20]])
    faces = dataclasses.replace(list_files(tmp_path), landmarks=moved)
    np.testing.assert_array_equal(faces[0], wide[60:172, 30:142])
    np.testing.assert_array_equal(faces.take([1])[0], wide[20:132, 70:182])
    faces.save(tmp_path / "described.json")
    np.testing.assert_array_equal(Faces.load(tmp_path / "described.json").take([1])[0], faces[1])
    known = checked(faces).fingerprint
    other = checked(dataclasses.replace(faces, landmarks=moved + 1)).fingerprint
    assert len({known, other, checked(list_files(tmp_path).take([0, 1]), stretch=True).fingerprint}) == 3
    with raises("landmarks-degenerate", tmp_path / "b.png"):
        checked(dataclasses.replace(faces, landmarks=np.stack([moved[0], np.zeros((points, 2))])))
