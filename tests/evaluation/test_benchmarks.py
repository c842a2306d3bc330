"""Benchmarks in their official layouts: CFP, QMUL-SurvFace, SCface, IJB-B and IJB-C, TinyFace's two kinds of crops."""

import dataclasses
import json
import sys
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
import scipy.io
from conftest import raises, save_recognizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import make_stand_ins  # noqa: E402

from gdrd_jax.data.align import MIDDLE_TEMPLATE, TEMPLATE  # noqa: E402
from gdrd_jax.data.readers import list_files  # noqa: E402
from gdrd_jax.evaluation import cfp, ijb, run_report, scface, survface, tinyface
from gdrd_jax.evaluation.ijb_files import Release, read_numbers, read_subjects
from gdrd_jax.evaluation.run import evaluate_and_report
from gdrd_jax.evaluation.settings import Settings

SHARP = 8  # dimensions of made embeddings


def face(person, image=0, size=112):
    coarse = np.random.default_rng([person]).integers(40, 216, size=(6, 6, 3)).astype(np.float32)
    coarse += np.random.default_rng([person, image, 1]).normal(scale=12, size=coarse.shape)
    return cv2.resize(coarse.clip(0, 255), (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])


def cells(names):
    found = np.empty((len(names), 1), object)
    found[:, 0] = names
    return found


def made(people, noise, seed=0):
    """Embeddings of people (-1: a stranger each), unit length."""
    random = np.random.default_rng(seed)
    centers, people = random.normal(size=(max(people) + 1, SHARP)), np.array(people)
    own = np.where(people[:, None] >= 0, centers[people.clip(0)], random.normal(size=(len(people), SHARP)))
    found = own + noise * random.normal(size=own.shape)
    return np.float32(found / np.linalg.norm(found, axis=1, keepdims=True))


# CFP: Protocol/Pair_list_F.txt, Pair_list_P.txt, Split/FP/01/same.txt and so on


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


# QMUL-SurvFace: .mat lists


@pytest.fixture(scope="module")
def survface_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("survface") / "QMUL-SurvFace"
    test = root / "Face_Verification_Test_Set"
    for person in range(1, 7):
        for image in (1, 2):
            save(test / "verification_images" / f"{person}_cam{image}_1.jpg", face(person, image, 24)[:20])
    same = [(f"{p}_cam1_1.jpg", f"{p}_cam2_1.jpg") for p in range(1, 7)]
    other = [(f"{p}_cam1_1.jpg", f"{p % 6 + 1}_cam2_1.jpg") for p in range(1, 7)]
    for name, pairs in (("positive_pairs_names", same), ("negative_pairs_names", other)):
        table = np.empty((len(pairs), 2), object)
        for row, pair in enumerate(pairs):
            table[row] = [np.array([image]) for image in pair]
        scipy.io.savemat(test / f"{name}.mat", {name: table})
    test = root / "Face_Identification_Test_Set"
    lists = {"gallery": ([], []), "mated_probe": ([], [])}
    for person in range(1, 6):
        for kind, image in (("gallery", 1), ("gallery", 2), ("mated_probe", 3), ("mated_probe", 4)):
            name = f"{10 * person}_cam1_{image}.jpg"  # the list's identities are others than the names'
            save(test / kind / name, face(person, image, 20)[:18])
            lists[kind][0].append(name)
            lists[kind][1].append(person)
    for number in range(10):
        save(test / "unmated_probe" / f"u_cam2_{number}.jpg", face(50 + number, 0, 22))
    for kind, (names, ids) in lists.items():
        table = {f"{kind}_set": cells(names), f"{kind}_ids": np.array(ids, np.uint16)[:, None]}
        scipy.io.savemat(test / f"{kind}_img_ID_pairs.mat", table)
    return root


def test_survfaces_pairs_are_read_from_its_cells(survface_root):
    found = survface.SurvFacePairs.open(survface_root)
    names = [PurePosixPath(name).name for name in found.faces.names]
    listed = {(names[a], names[b]) for a, b in zip(found.first[~found.same], found.second[~found.same])}
    assert ("6_cam1_1.jpg", "1_cam2_1.jpg") in listed and found.same.sum() == len(listed) == 6
    result = found.evaluate(made([int(name.split("_")[0]) for name in names], 0.01), seed=0)
    assert result.metrics["auc"] == 100 and set(result.metrics["tar_at_far"]) == {"0.3", "0.1", "0.01", "0.001"}
    assert "stretched" in found.about["alignment"] and found.faces[0].shape[:2] == (20, 24)


def brute_force(embeddings, found, fpir, rank):
    """TPIR of templates, with loops."""
    people = sorted({found.ids[row] for row in found.gallery})
    templates = np.stack([embeddings[[r for r in found.gallery if found.ids[r] == p]].mean(axis=0) for p in people])
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    strangers, mates = [], []
    for row in found.probes:
        scores = templates @ embeddings[row]
        if found.ids[row] < 0:
            strangers.append(scores.max())
        else:
            own = scores[people.index(found.ids[row])]
            mates.append((own, (scores > own).sum() < rank))
    best = 0.0
    for threshold in [*strangers, *(own for own, _ in mates), 2.0]:
        if np.mean([score >= threshold for score in strangers]) <= fpir:
            best = max(best, np.mean([own >= threshold and near for own, near in mates]))
    return best


@pytest.mark.parametrize("rank", [1, 2])
def test_tpir_at_a_rank_is_that_of_loops(survface_root, monkeypatch, rank):
    found = survface.SurvFaceSearch.open(survface_root)
    assert (len(found.gallery), len(found.probes), (found.ids[found.probes] < 0).sum()) == (10, 20, 10)
    monkeypatch.setattr(survface, "RANK", rank)
    embeddings = made(found.ids.tolist(), 1.2, seed=3)
    result = found.evaluate(embeddings, seed=0)
    for fpir in (0.3, 0.2, 0.1):
        assert result.metrics["tpir_at_fpir"][f"{fpir:g}"] == pytest.approx(
            100 * brute_force(embeddings, found, fpir, rank)
        )
    assert result.metrics["tpir_at_fpir"]["0.01"] is None and 0 < result.metrics["tpir_at_fpir"]["0.3"] < 100


def test_bad_lists_of_survface_are_refused(survface_root, tmp_path):
    with raises("survface-list", "positive_pairs_names.mat", tmp_path):
        survface.SurvFacePairs.open(tmp_path)
    verification = survface_root / "Face_Verification_Test_Set"
    broken = tmp_path / "broken"
    save(broken / "verification_images" / "1_cam1_1.jpg", face(1))
    for name in ("positive", "negative"):
        content = (verification / "positive_pairs_names.mat").read_bytes()
        (broken / f"{name}_pairs_names.mat").write_bytes(content)
    with raises("mat-list", "negative_pairs_names"):  # the variable has another name
        survface.SurvFacePairs.open(broken)
    (broken / "positive_pairs_names.mat").write_bytes(b"MATLAB")
    with raises("mat-list", "positive_pairs_names.mat"):
        survface.SurvFacePairs.open(broken)


def test_missing_images_of_survface_are_refused_or_left_out(survface_root, tmp_path):
    for path in (survface_root / "Face_Identification_Test_Set").rglob("*"):
        if path.is_file() and path.name != "10_cam1_3.jpg":
            copy = tmp_path / path.relative_to(survface_root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    with raises("survface-missing", "1 image", "10_cam1_3.jpg"):
        survface.SurvFaceSearch.open(tmp_path)
    found = survface.SurvFaceSearch.open(tmp_path, skip_bad=True)
    assert found.about["n_skipped"] == 1 and len(found.probes) == 19


# SCface


@pytest.fixture(scope="module")
def scface_database(tmp_path_factory):
    """Faces inside larger images, with their landmarks."""
    root, lines = tmp_path_factory.mktemp("scface") / "SCface_database", ["# eyes, nose, mouth"]
    for person in (1, 2, 3):
        names = [("mugshot_frontal_cropped_all", f"{person:03d}_frontal", ".JPG", 1.5)]
        names += [
            (f"surveillance_cameras_distance_{d}/cam_{c}", f"{person:03d}_cam{c}_{d}", ".jpg", d / 4)
            for d in (1, 2, 3) for c in (1, 2, 6)
        ]  # fmt: skip
        for folder, name, suffix, scale in names:
            moved = np.array([[scale, 0, 7.0], [0, scale, 11.0]])
            save(root / folder / (name + suffix), cv2.warpAffine(face(person), moved, (190, 190)))
            points = MIDDLE_TEMPLATE * scale + [7, 11]
            lines.append("\t".join([name, *(f"{value:.1f}" for value in points.ravel())]))
            if name == "001_cam1_1":
                save(root / "surveillance_cameras_all" / (name + suffix), face(9))
    (root / "landmarks.txt").write_text("\n".join(lines) + "\n")
    return root


def test_scface_has_mugshots_and_five_cameras_at_three_distances(scface_database):
    found = scface.SCface.open(scface_database, scface.SCface.Config(str(scface_database / "landmarks.txt")))
    assert len(found.faces) == 3 * (1 + 3 * 2) and sorted(set(found.distances)) == [0, 1, 2, 3]
    mugshot = found.faces[int(np.flatnonzero(found.distances == 0)[0])].astype(int)
    assert mugshot.shape == (112, 112, 3) and np.abs(mugshot - face(1))[8:-8, 8:-8].mean() < 6  # aligned
    embeddings = made(found.faces.labels.tolist(), 0.05)
    wrong = np.flatnonzero((found.distances == 1) & (found.faces.labels == 2))
    embeddings[wrong] = -embeddings[wrong]
    metrics = found.evaluate(embeddings, seed=0).metrics
    assert metrics["rank_1_distance_1"] == pytest.approx(100 * 4 / 6) and metrics["rank_1_distance_3"] == 100
    assert metrics["rank_1"] == pytest.approx(100 * 16 / 18) and metrics["n_gallery"] == 3
    assert "landmarks" in found.about["alignment"]
    fewer = scface.SCface.open(scface_database, scface.SCface.Config(untested=1), stretch=True)
    assert len(fewer.faces.identities) == 2 and "stretched" in fewer.about["alignment"]
    assert fewer.faces.fingerprint != found.faces.fingerprint


def test_an_infrared_camera_is_no_probe(scface_database):
    found = scface.SCface.open(scface_database, stretch=True)
    assert not any("cam6" in name for name in found.faces.names)


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        (lambda lines: [*lines[:2], lines[2] + "\t5"], "scface-line", ("line 3", "001_cam1_1")),
        (lambda lines: [*lines, lines[1]], "scface-line", ("line 32", "001_frontal")),
        (lambda lines: [lines[0], lines[1].replace(".", "x"), *lines[2:]], "scface-line", ("line 2",)),
        (lambda lines: lines[:-2], "scface-landmarks", ("1 images", "003_cam2_3")),
    ],
)  # fmt: skip
def test_a_mistake_in_scfaces_landmarks_is_named(scface_database, tmp_path, change, code, facts):
    lines = (scface_database / "landmarks.txt").read_text().splitlines()
    (tmp_path / "landmarks.txt").write_text("\n".join(change(lines)) + "\n")
    with raises(code, *facts):
        scface.SCface.open(scface_database, scface.SCface.Config(str(tmp_path / "landmarks.txt")))


def test_scface_without_mugshots_or_probes_is_refused(tmp_path):
    with raises("scface-no-images", tmp_path):
        scface.SCface.open(tmp_path)
    save(tmp_path / "001_frontal.png", face(1))
    with raises("scface-no-probes", tmp_path):
        scface.SCface.open(tmp_path)
    save(tmp_path / "002_cam1_2.png", face(2))
    with raises("scface-no-mugshot", "002_cam1_2.png", "002_frontal"):
        scface.SCface.open(tmp_path)


# IJB


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


def test_stand_ins_have_these_layouts(tmp_path):
    for person in range(4):
        for image in range(4):
            save(tmp_path / "lfw" / f"P_{person}" / f"P_{person}_{image:04d}.png", face(person, image))
    lfw = list_files(tmp_path / "lfw")
    for make in (make_stand_ins.survface, make_stand_ins.scface, make_stand_ins.ijb):
        make(lfw, tmp_path / make.__name__)
    pairs = survface.SurvFacePairs.open(tmp_path / "survface")
    assert len(pairs.same) == 8 and len(survface.SurvFaceSearch.open(tmp_path / "survface").probes) == 4 + 8
    seen = scface.SCface.open(tmp_path / "scface", scface.SCface.Config(str(tmp_path / "scface" / "landmarks.txt")))
    assert sorted(seen.distances) == 4 * [0] + 4 * [1] + 4 * [2] + 4 * [3]
    found = ijb.IJBPairs.open(tmp_path / "ijb", ijb.IJBPairs.Config())
    assert (len(found.faces), len(found.first), found.same.sum()) == (16, 16, 4)
    aligned = found.faces[0].astype(int) - face(0)
    assert np.abs(aligned)[12:-12, 12:-12].mean() < 8
    assert len(ijb.IJBSearch.open(tmp_path / "ijb", ijb.IJBSearch.Config(2)).gallery) == 2


# The policy of alignment


def tiny_crops(root, size):
    for person in range(1, 4):
        save(root / "Probe" / f"{person}_1.jpg", face(person, 1, size))
        save(root / "Gallery_Match" / f"{person}_2.jpg", face(person, 2, size))
    save(root / "Gallery_Distractor" / "1.jpg", face(9, 0, size))
    return root


def test_tinyfaces_own_crops_and_adafaces_are_told_apart(tmp_path):
    own, aligned = tiny_crops(tmp_path / "Testing_Set", 20), tiny_crops(tmp_path / "aligned_pad_0.1_pad_high", 112)
    assert "stretched" in tinyface.TinyFace.open(own).about["alignment"]
    assert "AdaFace" in tinyface.TinyFace.open(aligned, tinyface.TinyFace.Config(True)).about["alignment"]
    with raises("image-size", "20x20"):
        tinyface.TinyFace.open(own, tinyface.TinyFace.Config(True))


def test_figures_and_report_name_the_policy(scface_database, tmp_path, monkeypatch):
    network = save_recognizer(tmp_path / "colors.onnx")
    drawn = []
    monkeypatch.setattr(run_report.pictures, "with_line", lambda png, text: drawn.append(text) or png)
    landmarks = {"landmarks": str(scface_database / "landmarks.txt")}
    models, resolutions = (str(network),), ("native",)
    evaluate_and_report(
        Settings("scface", scface_database, models, resolutions, protocol_settings=landmarks), tmp_path / "out"
    )
    policy = json.loads((tmp_path / "out" / "metrics.json").read_text())["data"]["alignment"]
    assert "aligned by the landmarks" in policy and drawn == [policy]
    assert (tmp_path / "out" / "report.html").read_text().count("aligned by the landmarks") >= 2
