"""Every format but RecordIO's own records: what is found, in which order, and what is refused."""

import json
import os
import shutil
import tarfile

import grain
import numpy as np
import pytest
from conftest import LABELS, PAYLOADS, raises
from conftest import write_records as write

from gdrd_jax.data.prepare import checked, prepare
from gdrd_jax.data.readers import list_files, open_faces
from gdrd_jax.pipeline.inputs import locate
from gdrd_jax.utils.errors import GdrdError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def listed(root, **how):
    faces = open_faces(root, **how)
    return [(faces.identities[label], name) for label, name in zip(faces.labels, faces.names)]


def test_people_and_images_come_in_natural_order(tmp_path):
    touch(tmp_path, "s10/1.png", "s2/10.png", "s2/9.png", "s2/notes.txt", "stray.png")
    assert listed(tmp_path) == [("s2", "s2/9.png"), ("s2", "s2/10.png"), ("s10", "s10/1.png")]
    assert listed(tmp_path, pattern="1*") == [("s2", "s2/10.png"), ("s10", "s10/1.png")]


def test_the_order_does_not_depend_on_the_file_system(tmp_path):
    touch(tmp_path, "p/01.png", "p/1.png", "p/²1.png")
    assert [path for _, path in listed(tmp_path)] == ["p/01.png", "p/1.png", "p/²1.png"]


def test_people_may_lie_deeper(tmp_path):
    touch(tmp_path, "lfw/B_B/B_B_0001.jpg", "lfw/A_A/A_A_0002.jpg", "lfw/A_A/A_A_0001.jpg")
    assert listed(tmp_path) == [
        ("A_A", "lfw/A_A/A_A_0001.jpg"), ("A_A", "lfw/A_A/A_A_0002.jpg"), ("B_B", "lfw/B_B/B_B_0001.jpg"),
    ]  # fmt: skip


def test_a_tar_is_read_like_the_folder_in_it(tmp_path, faces_folder):
    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        archive.add(faces_folder, "faces")
    inside, outside = checked(open_faces(tmp_path / "f.tar")), checked(open_faces(faces_folder))
    assert inside.identities == outside.identities and inside.names[4] == "faces/" + outside.names[4]
    assert inside.fingerprint == outside.fingerprint
    np.testing.assert_array_equal(inside[11], outside[11])


def test_compressed_and_truncated_tars_are_refused(tmp_path, faces_folder):
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(faces_folder, "faces")
    with raises("tar-damaged", tmp_path / "z.tar", "unpack"):
        open_faces(tmp_path / "z.tar")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(faces_folder, "faces")
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[:200_000])
    with raises("tar-damaged", tmp_path / "t.tar"):
        open_faces(tmp_path / "t.tar")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("l.txt", "{path} {person}"),
        ("l.txt", "{path}\t{person}"),
        ("l.csv", "{path},{person}"),
        ("l.lst", "7\t{person}\t{path}"),
        ("l.lst", "7\t{person}\t0.5\t{path}"),
    ],
)
def test_a_list_names_paths_and_identities(tmp_path, name, line):
    touch(tmp_path, "a b.jpg", "x/2.jpg", "x/3.jpg")
    rows = [("a b.jpg", "12"), ("x/3.jpg", "2"), ("x/2.jpg", "12")]
    (tmp_path / name).write_text("# comment\n\n" + "".join(line.format(path=p, person=i) + "\n" for p, i in rows))
    faces = open_faces(tmp_path / name)
    assert faces.names == ("a b.jpg", "x/3.jpg", "x/2.jpg") and faces.identities == ("2", "12")
    np.testing.assert_array_equal(faces.labels, [1, 0, 1])


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        ("nowhere.jpg 1", "list-file-missing", "line 1: there is no file"),
        ("alone", "list-line", "PATH IDENTITY"),
        ("", "list-empty", "l.txt"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, code, fact):
    (tmp_path / "l.txt").write_text(text)
    with raises(code, fact):
        open_faces(tmp_path / "l.txt")


def test_an_insightface_folder_is_its_rec_file(tmp_path):
    write(tmp_path / "train.rec", PAYLOADS, LABELS)
    (tmp_path / "property").write_text("3,112,112\n")
    assert len(open_faces(tmp_path)) == 5
    write(tmp_path / "other.rec", PAYLOADS, LABELS)
    with raises("rec-several", "2 .rec files", "other.rec, train.rec"):
        open_faces(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(GdrdError, match="data.path is not set"):
        locate("")
    with raises("path-missing", "'nowhere'"):
        open_faces(locate("nowhere"))
    with raises("faces-none", tmp_path, "FOLDER/PERSON/IMAGE"):
        open_faces(tmp_path)
    (tmp_path / "f.zip").touch()
    with raises("faces-format", tmp_path / "f.zip"):
        open_faces(tmp_path / "f.zip")
    with raises("path-missing", tmp_path / "nowhere"):
        list_files(tmp_path / "nowhere")


@pytest.mark.integration
def test_the_embedded_set_is_40_people_with_10_images():
    faces = open_faces(locate("orl"), pattern="*.pgm")
    assert len(faces) == 400 and faces.identities == tuple(f"s{i}" for i in range(1, 41))


def test_the_signature_sees_what_changes_but_reads_nothing(tmp_path, faces_folder):
    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        archive.add(faces_folder, "faces")
    whole = open_faces(tmp_path / "f.tar")
    assert whole.signature() == open_faces(tmp_path / "f.tar").signature()
    assert whole.signature() != open_faces(tmp_path / "f.tar", pattern="0*").signature()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "0.png").write_bytes((faces_folder / "p0" / "0.png").read_bytes())
    before = open_faces(tmp_path, pattern="*.png").signature()
    (tmp_path / "p" / "0.png").write_bytes((faces_folder / "p0" / "1.png").read_bytes())
    assert open_faces(tmp_path, pattern="*.png").signature() != before


def test_a_damaged_store_is_named(tmp_path, faces_folder):
    prepare(open_faces(faces_folder), tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "faces.json").read_text())
    (tmp_path / "s" / "faces.json").write_text(json.dumps(manifest | {"names": manifest["names"][1:]}))
    with raises("store-mismatch", "21 faces of 7 people", "20 faces of 7"):
        open_faces(tmp_path / "s")
    (tmp_path / "s" / "faces.json").write_text("{}")
    with raises("store-damaged", tmp_path / "s" / "faces.json"):
        open_faces(tmp_path / "s")


def test_the_description_is_a_source_for_grain(faces_folder):
    faces = open_faces(faces_folder)
    decoded = list(grain.MapDataset.source(faces).to_iter_dataset())
    assert len(decoded) == 21
    np.testing.assert_array_equal(decoded[20], faces[20])


def tarred(folder, path):
    with tarfile.open(path, "w") as archive:
        archive.add(folder, "faces")
    return path


def test_a_damaged_head_in_a_tar_is_not_taken_for_its_end(tmp_path, faces_folder):
    path = tarred(faces_folder, tmp_path / "f.tar")
    with tarfile.open(path) as archive:
        heads = [member.offset for member in archive if member.isfile()]
    whole = path.read_bytes()
    for damaged in (
        whole[: heads[7] + 100] + b"X" + whole[heads[7] + 101 :],
        whole[: heads[9]],
        whole[: heads[9] + 99],
    ):
        path.write_bytes(damaged)
        with raises("tar-damaged", path):
            open_faces(path)


def test_links_in_a_tar_are_faces_too(tmp_path, faces_folder):
    shutil.copytree(faces_folder, tmp_path / "faces")
    (tmp_path / "faces" / "p1" / "hard.png").hardlink_to(tmp_path / "faces" / "p1" / "0.png")
    (tmp_path / "faces" / "p1" / "soft.png").symlink_to("0.png")
    faces = open_faces(tarred(tmp_path / "faces", tmp_path / "f.tar"))
    rows = [faces.names.index(f"faces/p1/{name}.png") for name in ("0", "hard", "soft")]
    assert len(faces) == 23 and len({faces.read(row) for row in rows}) == 1


def test_a_link_to_a_folder_around_it_is_not_followed(tmp_path, faces_folder):
    shutil.copytree(faces_folder, tmp_path / "faces")
    (tmp_path / "faces" / "p1" / "up").symlink_to(tmp_path / "faces")
    (tmp_path / "linked").symlink_to(faces_folder)
    assert len(open_faces(tmp_path / "faces")) == 21 == len(open_faces(tmp_path / "linked"))


def test_odd_names_are_names(tmp_path):
    touch(tmp_path, "p/" + "9" * 200 + ".png", "p/007.png", "p/7.png")
    (tmp_path / os.fsdecode(b"q\xff")).mkdir()
    (tmp_path / os.fsdecode(b"q\xff") / "1.png").touch()
    faces = open_faces(tmp_path)
    assert len(faces) == 4 and len(faces.signature()) == 64 and faces.names[0] == "p/007.png"
    (tmp_path / "l.txt").write_bytes(b"\xff\xfd 1")
    with raises("text-not-utf-8", tmp_path / "l.txt"):
        open_faces(tmp_path / "l.txt")


def test_a_pattern_for_records_is_refused(tmp_path):
    write(tmp_path / "a.rec", PAYLOADS, LABELS)
    with raises("rec-pattern", "a.rec", "'*.jpg'"):
        open_faces(str(tmp_path / "a.rec"), pattern="*.jpg")


def test_a_missing_relative_path_is_named_with_the_folder_that_it_is_looked_for_in(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with raises("path-missing", "'nowhere'", tmp_path):
        open_faces("nowhere")
