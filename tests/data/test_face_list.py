"""Lists of faces as other programs write them."""

import logging
import os
import unicodedata

import pytest
from conftest import raises

from gdrd_jax.data.readers import open_faces

FILES = ("ann/1.jpg", "ann/2.jpg", "bob, jr/1.jpg", "José/1.jpg")


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def listed(folder, name, data, **how):
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    faces = open_faces(folder / name, **how)
    return {name: faces.identities[label] for name, label in zip(faces.names, faces.labels)}


RIGHT = {"ann/1.jpg": "a", "ann/2.jpg": "a", "bob, jr/1.jpg": "b"}
TABBED = "ann/1.jpg\ta\nann/2.jpg\ta\nbob, jr/1.jpg\tb\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.txt", TABBED),
        ("l.tsv", TABBED),
        ("bom.txt", b"\xef\xbb\xbf" + TABBED.encode()),
        ("utf16.txt", TABBED.encode("utf-16")),
        ("windows.txt", TABBED.replace("\n", "\r\n").replace("/", "\\")),
        ("mac.txt", TABBED.replace("\n", "\r")),
        ("comment.txt", "# faces\n\n" + TABBED),
        ("blanks.txt", "ann/1.jpg a\nann/2.jpg   a\nbob, jr/1.jpg b\n"),
        ("quoted.csv", 'ann/1.jpg,a\nann/2.jpg,a\n"bob, jr/1.jpg",b\n'),
        ("semicolons.csv", "ann/1.jpg;a\nann/2.jpg;a\nbob, jr/1.jpg;b\n"),
        ("pandas.csv", ',path,label\n0,ann/1.jpg,a\n1,ann/2.jpg,a\n2,"bob, jr/1.jpg",b\n'),
        ("other_order.csv", 'Label,"Path",score\na,ann/1.jpg,1\na,ann/2.jpg,0.5\nb,"bob, jr/1.jpg",0\n'),
        ("numbered.csv", 'id,file,identity\n7,ann/1.jpg,a\n8,ann/2.jpg,a\n9,"bob, jr/1.jpg",b\n'),
        ("L.CSV", 'Index,Filename,Person ID\n7,ann/1.jpg,a\n8,ann/2.jpg,a\n9,"bob, jr/1.jpg",b\n'),
        ("trailing.txt", TABBED.replace("\n", "\t \n")),
        ("named.csv", 'name,filename\na,ann/1.jpg\na,ann/2.jpg\nb,"bob, jr/1.jpg"\n'),
        ("twice.txt", TABBED + "ann/1.jpg\ta\n"),
    ],
)
def test_lists_of_every_kind_give_the_same_faces(folder, name, data):
    assert listed(folder, name, data) == RIGHT


@pytest.mark.parametrize(
    "data",
    [
        "0\t5.000000\tann/1.jpg\n1\t5\tann/2.jpg\n2\t9\tbob, jr/1.jpg\n",  # mxnet's im2rec
        "1\tann/1.jpg\t5\n1\tann/2.jpg\t5\n1\tbob, jr/1.jpg\t9\n",  # InsightFace's face2rec2
    ],
)
def test_both_kinds_of_lst_are_read(folder, data):
    assert listed(folder, "train.lst", data) == {"ann/1.jpg": "5", "ann/2.jpg": "5", "bob, jr/1.jpg": "9"}


def test_long_labels_are_not_rounded(folder):
    text = "0\t9007199254740993\tann/1.jpg\n1\t9007199254740992\tann/2.jpg\n2\t7.5\tbob, jr/1.jpg\n"
    assert set(listed(folder, "a.lst", text).values()) == {"7.5", "9007199254740992", "9007199254740993"}


def test_insightfaces_boxes_and_landmarks_mean_that_faces_are_not_aligned(folder, caplog):
    numbers = "\t".join(map(str, range(14)))
    with caplog.at_level(logging.WARNING, "gdrd_jax"):
        assert listed(folder, "a.lst", f"0\tann/1.jpg\t5\t{numbers}\n1\tann/2.jpg\t5\n").keys() == {
            "ann/1.jpg",
            "ann/2.jpg",
        }
    assert "marks 1 faces as not aligned" in caplog.text


@pytest.mark.parametrize("form", ("NFC", "NFD"))
def test_accents_in_either_form_name_the_same_file_and_person(folder, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    os.rename(folder / "José", folder / unicodedata.normalize(form, "José"))
    text = f"{unicodedata.normalize(other, 'José')}/1.jpg\t{unicodedata.normalize('NFD', 'José')}\nann/1.jpg\t"
    text += unicodedata.normalize("NFC", "José")
    assert set(listed(folder, "l.txt", text).values()) == {unicodedata.normalize("NFC", "José")}


@pytest.mark.parametrize(
    ("name", "data", "code", "facts"),
    [
        ("a.txt", "ann/1.jpg a\nann/3.jpg a\n", "list-file-missing", ("line 2", "there is no file", "ann/3.jpg")),
        ("b.txt", "ann/1.jpg a\nann/1.jpg b\n", "list-face-twice", ("line 2: ann/1.jpg", "'b'", "'a' in line 1")),
        ("c.txt", "ann/1.jpg\n", "list-line", ("line 1: 'ann/1.jpg'",)),
        ("d.txt", "ann a\n", "list-file-missing", ("ann cannot be read", "not a regular file")),
        ("e.csv", "ann/1.jpg,a,1\n", "list-line", ("line 1: 'ann/1.jpg,a,1'",)),
        ("f.csv", "file,size\nann/1.jpg,3\n", "list-columns", ("line 1", "file, size")),
        ("m.csv", "id,path,owner\n1,ann/1.jpg,a\n", "list-columns", ("line 1", "id, path, owner")),
        ("n.csv", "path,subject_id,label\nann/1.jpg,a,1\n", "list-columns", ("line 1", "path, subject_id, label")),
        ("o.csv", "a.jpg,b\n", "list-file-missing", ("line 1: there is no file", "a.jpg", "`PATH IDENTITY`")),
        ("p.csv", "path,identity\nann/1.jpg,\n", "list-identity", ("line 2: ann/1.jpg", "''")),
        ("q.lst", "0\tnan\tann/1.jpg\n", "list-identity", ("line 1: ann/1.jpg", "'nan'")),
        ("r.txt", "ann/1.jpg a\n./ann//1.jpg b\n", "list-face-twice", ("line 2", "'b'", "'a' in line 1")),
        ("numbers.csv", "id,path\n1,ann/1.jpg\n", "list-columns", ("line 1", "id, path")),
        ("long.csv", "ann/1.jpg," + "a" * 200_000, "list-csv", ("line 1",)),
        ("g.lst", "1 5 ann/1.jpg\n", "list-line", ("line 1: '1 5 ann/1.jpg'", "separated by tabs")),
        ("h.lst", "0\tann/1.jpg\tbob\n", "list-line", ("line 1: '0\\tann/1.jpg\\tbob'",)),
        ("i.txt", b"ann/1.jpg \xff\xff\n", "text-not-utf-8", ("i.txt", "UTF-8")),
        ("j.txt", "# nothing\n", "list-empty", ("j.txt",)),
        ("k.txt", "ann/\0.jpg a\n", "list-file-missing", ("line 1: there is no file",)),
    ],
)
def test_a_bad_line_is_named(folder, name, data, code, facts):
    with raises(code, name, *facts):
        listed(folder, name, data)


def test_missing_files_are_left_out_and_listed_on_request(folder):
    (folder / "ann" / "gone.jpg").symlink_to("/nowhere/1.jpg")
    (folder / "l.txt").write_text("ann/1.jpg a\nann/3.jpg a\nann/gone.jpg a\nann b\n")
    faces = open_faces(folder / "l.txt", skip_bad=True)
    assert faces.names == ("ann/1.jpg",)
    assert dict(faces.skipped) == {
        "ann/3.jpg": "no such file or directory", "ann/gone.jpg": "it is a link to a file that does not exist",
        "ann": "it is not a regular file",
    }  # fmt: skip
