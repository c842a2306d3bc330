"""Lists of pairs as the benchmarks have them."""

import numpy as np
import pytest
from conftest import raises

from gdrd_jax.evaluation.pair_files import Pair, find_images, read_pairs

# Twenty genuine pairs of ten people, and as many impostors.
GENUINE = [((f"P_{i % 10}", 1 + i // 10), (f"P_{i % 10}", 3 + i // 10)) for i in range(20)]
IMPOSTORS = [((f"P_{i % 10}", 1 + i // 10), (f"P_{(i + 1) % 10}", 2)) for i in range(20)]
LISTED = [*GENUINE, *IMPOSTORS]


def name(face, digits=4):
    return f"{face[0]}_{face[1]:0{digits}d}.jpg"


def numbered(separator, end=""):
    for a, b in LISTED:
        same = a[0] == b[0]
        yield separator.join(map(str, (*a, b[1]) if same else (*a, *b))) + (end if same else "")


def lines_of(kind):
    path = lambda face: f"{face[0]}/{name(face)}"  # noqa: E731
    flags = [(a, b, int(a[0] == b[0])) for a, b in LISTED]
    return {
        "lfw": ["1\t20", *numbered("\t")],
        "kaggle": ["name,imagenum1,imagenum2,", *numbered(",", ",")],
        "cplfw": [f"{name(f)} {flag}" for a, b, flag in flags for f in (a, b)],
        "calfw": [f"{name(f)} {flag * 7}" for a, b, flag in flags for f in (a, b)],  # the fold instead of 1
        "paths": [f"{path(a)} {path(b)} {flag}" for a, b, flag in flags],
        "commas": [f"{path(a)},{path(b)},{flag}" for a, b, flag in flags],
        "negative": [f"{path(a)}\t{path(b)}\t{flag or -1}" for a, b, flag in flags],
        "label_first": [f"{flag} {path(a)} {path(b)}" for a, b, flag in flags],
        "header": ["path1,path2,label", *(f"{path(a)},{path(b)},{flag}" for a, b, flag in flags)],
        "semicolons": [f"{path(a)};{path(b)};{'same' if flag else 'different'}" for a, b, flag in flags],
        "windows": [f"{path(a)} {path(b)} {flag}".replace("/", "\\") for a, b, flag in flags],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    (
        "lfw",
        "kaggle",
        "cplfw",
        "calfw",
        "paths",
        "commas",
        "negative",
        "label_first",
        "windows",
        "header",
        "semicolons",
    ),
)
@pytest.mark.parametrize(
    "written", (lambda text: text.encode(), lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
)
def test_every_kind_of_list_gives_the_same_pairs(tmp_path, kind, written):
    (tmp_path / "pairs.txt").write_bytes(written("\n".join(lines_of(kind)) + "\n"))
    pairs = read_pairs(tmp_path / "pairs.txt")
    assert [pair.people for pair in pairs] == [(a[0], b[0]) for a, b in LISTED]
    assert [tuple(image.split("/")[-1] for image in pair.images) for pair in pairs] == [
        (name(a)[:-4], name(b)[:-4]) for a, b in LISTED
    ]
    assert [pair.same for pair in pairs] == [True] * 20 + [False] * 20
    folds = np.array([pair.fold for pair in pairs])
    # As LFW's own: each fold has as many genuine pairs as impostors, in the order of the list.
    expected = np.zeros(40) if kind == "lfw" else np.tile(np.repeat(np.arange(10), 2), 2)
    np.testing.assert_array_equal(folds, expected)


def test_folds_of_a_list_without_them_are_lfws_if_it_has_lfws_order(tmp_path):
    lines = []
    for fold in range(10):
        chosen = slice(2 * fold, 2 * fold + 2)
        lines += [f"{name(a)} {name(b)} {int(a[0] == b[0])}" for a, b in GENUINE[chosen] + IMPOSTORS[chosen]]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    assert [pair.fold for pair in read_pairs(tmp_path / "p.txt")] == list(np.repeat(np.arange(10), 4))


def test_people_are_unknown_where_names_do_not_tell_them(tmp_path):
    (tmp_path / "p.txt").write_text("x/1.png y/2.png 1\nx/1.png y/3.png 0\n")
    assert [pair.people for pair in read_pairs(tmp_path / "p.txt")] == [("0", "0"), ("1", "1")]
    (tmp_path / "q.txt").write_text("A_1.png A_2.png 1\nA_1.png A_3.png 0\n")  # the label says that A is two people
    assert [pair.people for pair in read_pairs(tmp_path / "q.txt")] == [("0", "0"), ("1", "1")]
    (tmp_path / "r.txt").write_text("A_1.png A_2.png 1\nA_1.png B_3.png 0\n")
    assert read_pairs(tmp_path / "r.txt") == [
        Pair(("A_1", "A_2"), ("A", "A"), True, 0), Pair(("A_1", "B_3"), ("A", "B"), False, 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "code", "facts"),
    [
        ([], "pairs-format", []),
        (["P_0 1 2"], "pairs-format", []),
        (["", "10\t300"], "pairs-format", []),
        ([",", "a,b,1"], "pairs-format", []),
        (["a.jpg,b.jpg," + "1" * 200_000], "pairs-unreadable-line", ["line 1"]),
        (["a b c d e"], "pairs-format", []),
        (["a.jpg 1", "b.jpg 0"], "pairs-flags-differ", ["lines 1 and 2"]),
        (["a.jpg 1", "b.jpg 1", "c.jpg 0"], "pairs-odd", ["3 lines"]),
        (["a.jpg 1", "b.jpg one"], "pairs-line-flag", ["line 2:", "'b.jpg one'"]),
        (["a.jpg b.jpg 1", "a.jpg c.jpg 2"], "pairs-line-label", ["line 2:", "'a.jpg c.jpg 2'"]),
        (["1 1 1"], "pairs-format", []),
        (["0 a.jpg 1"], "pairs-line-label", ["line 1:", "'0 a.jpg 1'"]),
        (["name,imagenum1,imagenum2,", "A,1,2,", "A,1,A,2"], "pairs-line", ["line 3:", "genuine", "impostor"]),
    ],
)
def test_a_malformed_list_is_named_with_its_line(tmp_path, lines, code, facts):
    (tmp_path / "p.txt").write_text("\n".join(lines))
    with raises(code, "p.txt", *facts):
        read_pairs(tmp_path / "p.txt")


def test_contradictions_are_refused_and_repetitions_are_counted(tmp_path, caplog):
    (tmp_path / "p.txt").write_text("A_1.png A_2.png 1\nA_2.png A_1.png 0\n")
    with raises("pair-contradiction", "p.txt", "A_1", "A_2"):
        read_pairs(tmp_path / "p.txt")
    (tmp_path / "q.txt").write_text("A_1.png A_2.png 1\nA_2.png A_1.png 1\nA_1.png A_1.png 1\nA_1.png B_1.png 0\n")
    assert len(read_pairs(str(tmp_path / "q.txt"))) == 4
    assert "listed more than once: 1; that compare an image with itself: 1" in caplog.text


def test_images_are_found_by_as_many_folders_as_tell_them_apart():
    files = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "notes.txt"]
    assert find_images(files, {"a/1", "b/1"}) == {"a/1": [0], "b/1": [2]}
    assert find_images(files, {"lfw/a/1", "lfw/b/1"}) == {"lfw/a/1": [0], "lfw/b/1": [2]}  # more folders than there are
    assert find_images(["set/" + file for file in files], {"a/1", "b/1"}) == {"a/1": [0], "b/1": [2]}
    assert find_images(files, {"2", "1"}) == {"2": [1], "1": [0, 2]}  # two files fit: for the caller to refuse
    assert find_images(["1.jpg", "2.jpg"], {"x/1", "y/1"}) == {}  # nothing tells these two apart
    assert find_images(["c/1.jpg", "d/2.jpg"], {"a/1", "b/2"}) == {}  # folders of other names
    assert find_images(["1.jpg", "2.jpg"], {"a/1", "b/2"}) == {"a/1": [0], "b/2": [1]}
    assert find_images(["all/A_1.jpg", "all/B_2.jpg"], {"A/A_1", "B/B_2"}) == {"A/A_1": [0], "B/B_2": [1]}
