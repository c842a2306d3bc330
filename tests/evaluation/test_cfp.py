"""CFP in its official layout: Protocol/Pair_list_F.txt, Pair_list_P.txt, Split/FP/01/same.txt and so on."""

from pathlib import PurePosixPath

import pytest
from conftest import raises
from made_faces import face, made, save

from gdrd_jax.evaluation import cfp


@pytest.fixture(scope="module")
def cfp_dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("cfp") / "cfp-dataset"
    lists = {"F": [], "P": []}
    for person in range(1, 5):
        for kind in ("frontal", "profile"):
            for image in (1, 2):
                save(root / f"Data/Images/{person:03d}/{kind}/{image:02d}.jpg", face(person, image))
                name = f"../Data/Images/{person:03d}/{kind}/{image:02d}.jpg"
                lists["FP"[kind == "profile"]].append(name)
    for kind, names in lists.items():
        text = "".join(f"{number} {name}\n" for number, name in enumerate(names, 1))
        (root / "Protocol").mkdir(exist_ok=True)
        (root / "Protocol" / f"Pair_list_{kind}.txt").write_text(text)
    for split in ("FP", "FF"):
        for fold, (first, second) in enumerate([(1, 3), (5, 7)], 1):  # the numbers of two people's first images
            folder = root / "Protocol" / "Split" / split / f"{fold:02d}"
            folder.mkdir(parents=True)
            (folder / "same.txt").write_text(f"{first},{first + 1}\n{second},{second + 1}\n")
            (folder / "diff.txt").write_text(f"{first},{second}\n{second + 1},{first + 1}\n")
    (root / "Data/Images/001/frontal/01.txt").write_text("1,2\n")  # such as its fiducials
    return root


def test_cfps_numbers_are_those_of_frontal_and_profile_images(cfp_dataset):
    found = cfp.read_split(cfp_dataset / "Protocol", "FP")
    assert [pair.images for pair in found[:4]] == [
        ("001/frontal/01", "001/profile/02"), ("002/frontal/01", "002/profile/02"),
        ("001/frontal/01", "002/profile/01"), ("002/frontal/02", "001/profile/02"),
    ]  # fmt: skip
    assert [pair.same for pair in found] == 2 * [True, True, False, False]
    assert [pair.fold for pair in found] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert cfp.read_split(cfp_dataset / "Protocol", "FF")[0].images == ("001/frontal/01", "001/frontal/02")


def test_cfp_is_read_from_its_folder_and_with_lists_from_elsewhere(cfp_dataset, tmp_path):
    whole = cfp.CFP.open(cfp_dataset, cfp.CFP.Config())
    assert whole.same.sum() == 4 and len(whole.faces) == 12
    people = [int(PurePosixPath(name).parts[-3]) for name in whole.faces.names]
    pairs = whole.score(made(people, 0.01))
    assert pairs.scores[pairs.same].min() > pairs.scores[~pairs.same].max()
    save(tmp_path / "001/frontal/01.png", face(1))
    with raises("pair-image-missing", "FF", "001/frontal/02"):
        cfp.CFP.open(tmp_path, cfp.CFP.Config("FF", str(cfp_dataset / "Protocol")))
    with pytest.raises(ValueError, match="split"):
        cfp.CFP.Config("PF")


@pytest.mark.parametrize(
    ("file", "text", "code", "facts"),
    [
        ("Pair_list_F.txt", "1 a/001/frontal/01.jpg\n3 a/001/frontal/02.jpg\n", "cfp-line", ("line 2", "`2 ")),
        ("Pair_list_F.txt", "1 01.jpg\n", "cfp-line", ("line 1", "01.jpg")),
        ("Split/FP/01/same.txt", "1,2\n1;2\n", "cfp-line", ("same.txt", "line 2", "1;2")),
        ("Split/FP/01/same.txt", "1,2\n1,99\n", "cfp-number", ("line 2", "99", "1 to 8")),
        ("Split/FP/01/same.txt", "1,3\n", "cfp-line", ("line 1", "002/profile/01")),
        ("Split/FP/02/diff.txt", "5,6\n", "cfp-line", ("diff.txt", "line 1", "003")),
        ("Split/FP/02/diff.txt", None, "file-missing", ("diff.txt",)),
    ],
)  # fmt: skip
def test_a_mistake_in_cfps_lists_is_named_with_its_line(cfp_dataset, tmp_path, file, text, code, facts):
    for path in (cfp_dataset / "Protocol").rglob("*.txt"):
        copy = tmp_path / path.relative_to(cfp_dataset / "Protocol")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text)
    with raises(code, *facts):
        cfp.read_split(tmp_path, "FP")


def test_a_folder_without_cfps_splits_is_refused(tmp_path, cfp_dataset):
    (tmp_path / "Pair_list_F.txt").write_text("")
    with raises("cfp-lists", tmp_path / "Split" / "FF"):
        cfp.read_split(tmp_path, "FF")
