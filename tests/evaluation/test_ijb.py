"""IJB-B and IJB-C in the layout of InsightFace's release."""

import dataclasses
from pathlib import PurePosixPath

import cv2
import numpy as np
import pytest
from conftest import raises
from made_faces import face, made, save

from gdrd_jax.data.align import TEMPLATE
from gdrd_jax.evaluation import ijb
from gdrd_jax.evaluation.ijb_files import Release, read_numbers, read_subjects


def similarity(angle, scale, x, y):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, [x, y]])


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Six subjects; templates 1 to 6 are enrolled (G1: 1 to 3), templates 11 to 16 are probes of two images."""
    root = tmp_path_factory.mktemp("ijb") / "IJBC"
    meta, random = root / "meta", np.random.default_rng(0)
    media, points, number = [], [], 0
    for subject in range(1, 7):
        for template, count in ((subject, 1), (10 + subject, 2)):
            for image in range(count):
                number += 1
                moved = similarity(random.uniform(-0.5, 0.5), random.uniform(0.6, 1.6), 60, 40)
                save(root / "loose_crop" / f"{number}.jpg", cv2.warpAffine(face(subject, image), moved, (260, 250)))
                where = TEMPLATE @ moved[:, :2].T + moved[:, 2]
                media.append(f"{number}.jpg {template} {1000 + number}")
                score = 0.9 if image == 0 else 0.1
                points.append(f"{number}.jpg {' '.join(f'{value:.4f}' for value in where.ravel())} {score}")
    meta.mkdir()
    (meta / "ijbc_face_tid_mid.txt").write_text("\n".join(media) + "\n")
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(points) + "\n")
    pairs = [f"{a} {10 + b} {int(a == b)}" for a in range(1, 7) for b in range(1, 7)]
    (meta / "ijbc_template_pair_label.txt").write_text("\n".join(pairs) + "\n")
    header = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT"
    for name, templates in (
        ("1N_gallery_G1", {t: t for t in (1, 2, 3)}), ("1N_gallery_G2", {t: t for t in (4, 5, 6)}),
        ("1N_probe_mixed", {t: t - 10 for t in range(11, 17)}),
    ):  # fmt: skip
        lines = [f"{template},{900 + subject},img/{template}.png,1,0,0,9,9" for template, subject in templates.items()]
        (meta / f"ijbc_{name}.csv").write_text("\n".join([header, *lines, lines[0]]) + "\n")
    return root


def test_loose_crops_are_aligned_by_their_landmarks(release):
    found = ijb.IJBPairs.open(release, ijb.IJBPairs.Config())
    assert len(found.faces) == 18 and len(found.first) == 36 and found.same.sum() == 6
    for row, name in enumerate(found.faces.names):
        subject, image = divmod(int(PurePosixPath(name).stem) - 1, 3)
        aligned, wanted = found.faces[row].astype(int), face(subject + 1, max(image - 1, 0))
        assert np.abs(aligned - wanted)[10:-10, 10:-10].mean() < 8, name
    assert "ijbc_name_5pts_score.txt" in found.about["alignment"]


def test_images_count_by_the_detectors_score(release):
    weighted = ijb.IJBPairs.open(release, ijb.IJBPairs.Config()).templates
    alike = ijb.IJBPairs.open(release, ijb.IJBPairs.Config(detector_score=False)).templates
    embeddings = made([i // 3 for i in range(18)], 1.0)
    names = {int(PurePosixPath(name).stem): row for row, name in enumerate(weighted.faces.names)}
    template = weighted.names.index("11")
    for found, weights in ((weighted, (0.9, 0.1)), (alike, (1, 1))):
        wanted = sum(w * embeddings[names[number]] for w, number in zip(weights, (2, 3)))
        np.testing.assert_allclose(found.pool(embeddings)[template], wanted / np.linalg.norm(wanted), atol=1e-6)


@pytest.mark.parametrize(("gallery", "size", "mated"), [(0, 6, 6), (1, 3, 3), (2, 3, 3)])
def test_probes_of_the_other_gallery_are_strangers(release, gallery, size, mated):
    found = ijb.IJBSearch.open(release, ijb.IJBSearch.Config(gallery))
    names = np.array(found.templates.names)
    assert sorted(map(int, names[found.gallery])) == {0: [1, 2, 3, 4, 5, 6], 1: [1, 2, 3], 2: [4, 5, 6]}[gallery]
    people = [(int(PurePosixPath(name).stem) - 1) // 3 for name in found.faces.names]
    metrics = found.evaluate(made(people, 0.01), seed=0).metrics
    assert (metrics["n_gallery"], metrics["n_probes"], metrics["n_mated"], metrics["rank_1"]) == (size, 6, mated, 100)


def test_subjects_without_1n_lists_are_those_of_genuine_pairs(release, tmp_path):
    found = Release.find(release)
    known = found.subjects_of(found.pairs())
    alone = dataclasses.replace(found, folder=tmp_path)
    assert not alone.list("1N_probe_mixed.csv").exists()
    joined = alone.subjects_of(found.pairs())
    assert joined.keys() == known.keys() and len(set(joined.values())) == 6
    assert all((known[a] == known[b]) == (joined[a] == joined[b]) for a in known for b in known)


@pytest.mark.parametrize(
    ("file", "change", "code", "facts"),
    [
        ("face_tid_mid.txt", lambda t: t.replace("3.jpg 11", "3.jpg", 1), "ijb-line", ("line 3", "IMAGE TEMPLATE")),
        ("face_tid_mid.txt", lambda t: t.replace("1.jpg 1 ", "x.jpg 1 ", 1), "ijb-order", ("line 1", "x.jpg")),
        ("face_tid_mid.txt", lambda t: t.replace(" 11 ", " eleven ", 1), "ijb-line", ("line 2",)),
        ("face_tid_mid.txt", lambda t: t.replace("1.jpg 1 ", "1.jpg 77 ", 1), "template-empty", ("template 1",)),
        ("name_5pts_score.txt", lambda t: "\n".join(t.splitlines()[:-1]), "ijb-order", ("line 18", "18.jpg")),
        ("name_5pts_score.txt", lambda t: t.replace(" 0.9", "", 1), "ijb-line", ("line 1",)),
        ("name_5pts_score.txt", lambda t: t.replace("0.9", "high", 1), "ijb-line", ("line 1",)),
        ("template_pair_label.txt", lambda t: t + "1 11\n", "ijb-line", ("line 37", "TEMPLATE TEMPLATE LABEL")),
        ("template_pair_label.txt", lambda t: t + "1 11 yes\n", "ijb-line", ("line 37", "yes")),
        ("template_pair_label.txt", lambda t: t + "1 11 99999999999\n", "ijb-line", ("line 37", "99999999999")),
        ("template_pair_label.txt", lambda t: t + "1 11 \xe9\n", "ijb-line", ("line 37", "xe9")),
        ("template_pair_label.txt", lambda t: t + "1 11 0\n", "ijb-label", ("line 37",)),
        ("template_pair_label.txt", lambda t: "", "template-list-empty", ("template_pair_label.txt",)),
        ("1N_gallery_G1.csv", lambda t: t.replace("2,902", "2;902"), "ijb-line", ("line 3",)),
        ("1N_gallery_G1.csv", lambda t: t + "2,905,x\n", "template-two-subjects", ("line 6", "905", "902")),
        ("1N_gallery_G2.csv", lambda t: None, "template-list-missing", ("ijbc_1N_gallery_G2.csv",)),
    ],
)  # fmt: skip
def test_a_mistake_in_ijbs_lists_is_named_with_its_line(release, tmp_path, file, change, code, facts):
    (tmp_path / "meta").mkdir()
    (tmp_path / "loose_crop").symlink_to(release / "loose_crop")
    for path in (release / "meta").iterdir():
        text = path.read_text()
        changed = change(text) if path.name == f"ijbc_{file}" else text
        if changed is not None:
            (tmp_path / "meta" / path.name).write_text(changed, encoding="latin-1")
    with raises(code, *facts):
        ijb.IJBPairs.open(tmp_path, ijb.IJBPairs.Config())


def test_another_folder_is_no_release(tmp_path):
    with raises("ijb-folder", tmp_path, "loose_crop"):
        Release.find(tmp_path)


def test_landmarks_that_coincide_are_named_with_their_image(release, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "loose_crop").symlink_to(release / "loose_crop")
    for path in (release / "meta").iterdir():
        lines = path.read_text().splitlines()
        if path.name.endswith("5pts_score.txt"):
            lines[4] = f"5.jpg{' 7' * 10} 0.9"
        (tmp_path / "meta" / path.name).write_text("\n".join(lines) + "\n")
    with raises("landmarks-degenerate", "5.jpg"):
        ijb.IJBPairs.open(tmp_path, ijb.IJBPairs.Config())
    found = ijb.IJBPairs.open(tmp_path, ijb.IJBPairs.Config(), skip_bad=True)
    assert found.about["n_skipped"] == 1 and len(found.faces) == 17 and len(found.first) == 36


def test_millions_of_pairs_are_read_without_python_objects(tmp_path):
    lines = np.random.default_rng(0).integers(1, 9, (20000, 3))
    np.savetxt(tmp_path / "pairs.txt", lines, "%d")
    found = read_numbers(tmp_path / "pairs.txt", 3, "A B C")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, lines)
    (tmp_path / "empty.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n")
    with raises("template-list-empty", "empty.csv"):
        read_subjects(tmp_path / "empty.csv")
