"""QMUL-SurvFace in its official layout, with .mat lists."""

from pathlib import PurePosixPath

import numpy as np
import pytest
import scipy.io
from conftest import raises
from made_faces import cells, face, made, save

from gdrd_jax.evaluation import survface


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
