"""The four protocols on made faces in their official layouts, by the command; and their bad input."""

import csv
import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from conftest import called, raises, save_recognizer, save_student
from sklearn.metrics import roc_auc_score

from gdrd_jax.cli import evaluate as command
from gdrd_jax.data.degradation import Degradation
from gdrd_jax.data.readers import STAND_IN, stand_in
from gdrd_jax.evaluation import ar, lfw, tinyface, uccs
from gdrd_jax.evaluation.run import evaluate_and_report, open_protocol
from gdrd_jax.evaluation.settings import Settings
from gdrd_jax.inference.embedders import open_model, parse_model
from gdrd_jax.utils.errors import GdrdError

ROOT = Path(__file__).parents[2]
without_figures = pytest.mark.usefixtures("no_figures")


def face(person, image, size=112, noise=25.0):
    """A smooth picture a person, with the image's own noise, RGB."""
    base = np.random.default_rng([1, person]).integers(40, 216, size=(5, 5, 3)).astype(np.float32)
    base = cv2.resize(base, (112, 112), interpolation=cv2.INTER_CUBIC)
    rough = np.random.default_rng([2, person, image]).normal(scale=noise, size=(14, 14, 3)).astype(np.float32)
    noisy = base + cv2.resize(rough, (112, 112), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(np.clip(noisy, 0, 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_AREA)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[:, :, ::-1])


FOLDS, COUNT = 3, 6


def pair_lines():
    """Every fold its own people, as LFW has it."""
    lines = [f"{FOLDS}\t{COUNT}"]
    for fold in range(FOLDS):
        people = [f"P_{fold * COUNT + i}" for i in range(COUNT)]
        lines += [f"{p}\t1\t2" for p in people]
        lines += [f"{p}\t1\t{q}\t2" for p, q in zip(people, people[1:] + people[:1])]
    return lines


@pytest.fixture(scope="module")
def lfw_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("lfw")
    for person in range(FOLDS * COUNT):
        for image in (1, 2):
            save(root / "lfw" / f"P_{person}" / f"P_{person}_{image:04d}.png", face(person, image))
    (root / "pairs.txt").write_text("\n".join(pair_lines()) + "\n")
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return save_recognizer(tmp_path_factory.mktemp("network") / "colors.onnx")


def settings(protocol, data, network, **changes):
    if pairs := changes.pop("pairs", None):
        changes["protocol_settings"] = {"pairs": str(pairs)}
    return Settings(**{
        "protocol": protocol, "data": data, "models": (str(network),), "resolutions": ("native", "16"),
        **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def lfw_results(lfw_folder, network, tmp_path_factory):
    """By the command itself."""
    out = tmp_path_factory.mktemp("out") / "lfw"
    words = [
        "--protocol", "lfw", "--data", lfw_folder, "--pairs", lfw_folder / "pairs.txt", "--model", network,
        "--model", f"other={network}:in_graph", "--resolution", "native", "16", "8", "--kernel", "bicubic",
        "--out", out,
    ]  # fmt: skip
    return out, called(command.main, *words)


def test_lfw_writes_every_file_and_says_what_made_the_numbers(lfw_results, lfw_folder):
    out, printed = lfw_results
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["results"]) == [f"{m}_{r}" for m in ("colors", "other") for r in ("native", "16", "8")]
    row = metrics["results"]["colors_16"]
    keys = {
        "accuracy", "accuracy_std_error", "accuracy_by_fold", "threshold", "best_threshold_accuracy", "auc", "eer",
        "tar_at_far", "n_pairs", "n_genuine", "n_impostor", "paper", "intervals",
    }  # fmt: skip
    assert row.keys() == keys and row["n_pairs"] == 36 and row["paper"] is None
    assert row["tar_at_far"].keys() == {"0.1", "0.01", "0.001", "0.0001"} and row["tar_at_far"]["0.01"] is None
    for key, (low, high) in row["intervals"].items():
        if key in row:
            assert low - 5 <= row[key] <= high + 5, key
    assert metrics["settings"]["kernel"] == "bicubic" and len(metrics["settings"]["faces"]["fingerprint"]) == 64
    assert metrics["settings"]["models"]["other"]["preprocessing"] == "in_graph"
    for name in ("roc.csv", "roc.png", "scores.npz", "report.html", "sweep.png"):
        assert (out / name).stat().st_size > 0
    assert "colors_native" in printed and metrics["stand_in"] is None
    page = (out / "report.html").read_text()
    assert page.count("<img") == 2 + 6 and "bicubic" in page


def test_lfw_figures_are_those_of_the_saved_scores(lfw_results):
    out, _ = lfw_results
    metrics, scores = json.loads((out / "metrics.json").read_text())["results"], np.load(out / "scores.npz")
    same, folds = scores["same"], scores["fold"]
    assert scores["first"][0] == "lfw/P_0/P_0_0001.png" and scores["second"][0] == "lfw/P_0/P_0_0002.png"
    for row, values in metrics.items():
        s = scores[f"{row}/scores"]
        assert values["auc"] == pytest.approx(100 * roc_auc_score(same, s), abs=1e-4)
        shares = []
        for fold in range(FOLDS):
            rest = folds != fold
            tried = sorted(s[rest], reverse=True)
            best = max(tried, key=lambda t: ((s[rest] >= t) == same[rest]).mean())
            shares.append(((s[~rest] >= best) == same[~rest]).mean())
        assert values["accuracy"] == pytest.approx(100 * np.mean(shares), abs=1e-3)
        assert values["accuracy_std_error"] == pytest.approx(100 * np.std(shares, ddof=1) / np.sqrt(FOLDS), abs=1e-3)
    points = [line for line in csv.DictReader((out / "roc.csv").open()) if line["row"] == "colors_native"]
    assert float(points[-1]["far"]) == float(points[-1]["tar"]) == 1


def test_lfw_native_is_better_than_eight_pixels(lfw_results):
    rows = json.loads((lfw_results[0] / "metrics.json").read_text())["results"]
    assert rows["colors_native"]["auc"] > 80 and rows["colors_native"]["auc"] >= rows["colors_8"]["auc"] - 5


@without_figures
def test_a_repeated_run_embeds_nothing_again(lfw_folder, network, tmp_path, monkeypatch):
    how = settings("lfw", lfw_folder, network, pairs=lfw_folder / "pairs.txt", resolutions=("16",), noise=5.0)
    first = evaluate_and_report(how, tmp_path)
    from gdrd_jax.teachers.arcface import ArcFace

    run, batches = ArcFace._in_onnxruntime, []
    monkeypatch.setattr(ArcFace, "_in_onnxruntime", lambda self, faces: batches.append(len(faces)) or run(self, faces))
    second = evaluate_and_report(how, tmp_path)
    assert max(batches) <= 2  # only the try-out
    for row, result in first.items():
        np.testing.assert_array_equal(result.arrays["scores"], second[row].arrays["scores"])
    evaluate_and_report(dataclasses.replace(how, noise=6.0), tmp_path)
    assert max(batches) > 2  # another degradation is another embedding


@without_figures
def test_lfw_is_read_from_a_tar_and_from_a_store_alike(lfw_folder, network, tmp_path):
    with tarfile.open(tmp_path / "lfw.tar", "w") as archive:
        archive.add(lfw_folder / "lfw", "lfw")
    command = [sys.executable, "tools/prepare_faces.py", str(tmp_path / "lfw.tar"), str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "36 faces of 18 people, fingerprint" in done.stderr
    found = [
        evaluate_and_report(
            settings("lfw", data, network, pairs=lfw_folder / "pairs.txt", resolutions=("16",)), tmp_path / "out"
        )
        for data in (lfw_folder, tmp_path / "lfw.tar", tmp_path / "store")
    ]
    assert found[0]["colors_16"].metrics == found[1]["colors_16"].metrics == found[2]["colors_16"].metrics


@without_figures
def test_pairs_naming_missing_images_are_told_or_counted(lfw_folder, network, tmp_path):
    shutil.copytree(lfw_folder, tmp_path / "lfw")
    (tmp_path / "lfw" / "lfw" / "P_3" / "P_3_0002.png").unlink()
    how = settings("lfw", tmp_path / "lfw", network, pairs=lfw_folder / "pairs.txt", resolutions=("16",))
    with raises("pair-image-missing", "1 image ", "'P_3_0002'", "--skip-bad"):
        evaluate_and_report(how, tmp_path / "out")
    results = evaluate_and_report(settings(**{**vars(how), "network": network, "skip_bad": True}), tmp_path / "out")
    assert results["colors_16"].metrics["n_pairs"] == 34
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["data"]["n_skipped"] == 2 and document["data"]["skipped"] == [["P_3_0002", "it is missing"]]
    assert "Left out: 2" in (tmp_path / "out" / "report.html").read_text()


@without_figures
def test_a_corrupt_image_in_the_middle_is_told_or_counted(lfw_folder, network, tmp_path):
    shutil.copytree(lfw_folder, tmp_path / "lfw")
    bad = tmp_path / "lfw" / "lfw" / "P_9" / "P_9_0001.png"
    bad.write_bytes(bad.read_bytes()[:300])
    how = settings("lfw", tmp_path / "lfw", network, pairs=lfw_folder / "pairs.txt")
    with pytest.raises(GdrdError, match="P_9_0001.png is not a readable image"):
        evaluate_and_report(how, tmp_path / "out")
    results = evaluate_and_report(settings(**{**vars(how), "network": network, "skip_bad": True}), tmp_path / "out")
    assert results["colors_native"].metrics["n_pairs"] == 34
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["data"]["skipped"][0][0] == "lfw/P_9/P_9_0001.png"


def test_an_image_that_is_there_twice_is_told(lfw_folder, network, tmp_path):
    shutil.copytree(lfw_folder, tmp_path / "lfw")
    shutil.copytree(lfw_folder / "lfw" / "P_1", tmp_path / "lfw" / "other" / "P_1")
    with pytest.raises(GdrdError, match="twice: .*P_1_0001"):
        evaluate_and_report(
            settings("lfw", tmp_path / "lfw", network, pairs=lfw_folder / "pairs.txt"), tmp_path / "out"
        )


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        (lambda lines: lines[:-1], "pairs-count", ["3 folds", "36 lines; 35"]),
        (lambda lines: lines[1:], "pairs-format", []),
        (lambda lines: [], "pairs-format", []),
        (lambda lines: [lines[0], lines[8], *lines[2:]], "pairs-line", ["line 2:", "genuine"]),
        (lambda lines: [*lines[:7], lines[1], *lines[8:]], "pairs-line", ["line 8:", "impostor"]),
        (lambda lines: [*lines[:7], "P_1\t1\tP_1\t2", *lines[8:]], "pairs-line", ["line 8:"]),
        (lambda lines: [lines[0], "P_0\tone\t2", *lines[2:]], "pairs-line", ["line 2:"]),
    ],
)
def test_a_malformed_list_of_pairs_is_told_with_its_line(tmp_path, change, code, facts):
    (tmp_path / "pairs.txt").write_text("\n".join(change(pair_lines())))
    with raises(code, "pairs.txt", *facts):
        lfw.read_pairs(tmp_path / "pairs.txt")


@without_figures
def test_one_fold_has_no_cross_validated_accuracy(lfw_folder, network, tmp_path):
    (tmp_path / "pairs.txt").write_text("\n".join([str(COUNT), *pair_lines()[1 : 2 * COUNT + 1]]))
    how = settings("lfw", lfw_folder, network, pairs=tmp_path / "pairs.txt", resolutions=("16",))
    results = evaluate_and_report(how, tmp_path / "out")
    metrics = results["colors_16"].metrics
    assert "accuracy" not in metrics and metrics["n_pairs"] == 12 and metrics["best_threshold_accuracy"] > 50


@without_figures
def test_an_insightface_bin_gives_lfws_figures(lfw_folder, network, tmp_path):
    lines = lfw.read_pairs(lfw_folder / "pairs.txt")
    images = [(lfw_folder / "lfw" / name[:-5] / f"{name}.png").read_bytes() for line in lines for name in line.images]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, [line.same for line in lines]), protocol=4))
    how = settings("bin", tmp_path / "lfw.bin", network, resolutions=("16",))
    results = evaluate_and_report(how, tmp_path / "out")
    expected = evaluate_and_report(
        settings("lfw", lfw_folder, network, pairs=lfw_folder / "pairs.txt", resolutions=("16",)), tmp_path / "lfw_out"
    )
    for row in results:
        assert results[row].metrics["auc"] == expected[row].metrics["auc"]
        assert len(results[row].metrics["accuracy_by_fold"]) == 10
    broken = pickle.dumps((images[:5] + [images[5][:200]] + images[6:], [line.same for line in lines]), protocol=4)
    (tmp_path / "lfw.bin").write_bytes(broken)
    with pytest.raises(GdrdError, match="pair 2 b of .*lfw.bin"):
        evaluate_and_report(how, tmp_path / "out")
    results = evaluate_and_report(dataclasses.replace(how, skip_bad=True), tmp_path / "out")
    assert results["colors_16"].metrics["n_pairs"] == 35


@pytest.fixture
def tinyface_folder(tmp_path):
    root = tmp_path / "tinyface" / "Testing_Set"
    for person in range(1, 9):
        save(root / "Probe" / f"{person}_1.png", face(person, 1, size=20))
        for image in (2, 3):
            save(root / "Gallery_Match" / f"{person}_{image}.png", face(person, image, size=14 + person))
    for number in range(30):
        save(root / "Gallery_Distractor" / f"{number}.png", face(100 + number, 0, size=18))
    return tmp_path / "tinyface"


def write_lists(root, probes, matches):
    for file, key, names in (("probe", "probe", probes), ("gallery_match", "gallery", matches)):
        cells = np.array([[name] for name in names], dtype=object)
        ids = np.array([[int(name.split("_")[0])] for name in names], np.uint16)
        scipy.io.savemat(root / f"{file}_img_ID_pairs.mat", {f"{key}_set": cells, f"{key}_ids": ids})


@pytest.mark.parametrize("lists", [False, True])
@without_figures
def test_tinyface_finds_mates_among_distractors(tinyface_folder, network, tmp_path, lists):
    if lists:
        names = [
            [p.name for p in (tinyface_folder / "Testing_Set" / kind).iterdir()] for kind in ("Probe", "Gallery_Match")
        ]
        write_lists(tinyface_folder / "Testing_Set", *names)
    (tinyface_folder / STAND_IN).write_text("not the real thing")
    how = settings("tinyface", tinyface_folder, network, resolutions=("native",))
    results = evaluate_and_report(how, tmp_path / "out")
    metrics = results["colors_native"].metrics
    assert (metrics["n_probes"], metrics["n_gallery"], metrics["n_distractors"]) == (8, 46, 30)
    assert metrics["rank_1"] > 60 and metrics["rank_1"] <= metrics["rank_5"] <= metrics["rank_10"] <= 100
    assert metrics["map"] == pytest.approx(metrics["map_step"], abs=15)
    assert (tmp_path / "out" / "cmc.png").exists() and not (tmp_path / "out" / "roc.png").exists()
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["stand_in"] == "not the real thing"
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'class="warning">not the real thing' in page and "TinyFace stand-in" in page


def test_tinyface_lists_rule_over_names(tinyface_folder):
    root = tinyface_folder / "Testing_Set"
    write_lists(root, ["1_1.png"], ["1_2.png", "2_2.png"])
    with raises("tinyface-unlisted", "7 images", "Probe", "probe_img_ID_pairs.mat"):
        tinyface.TinyFace.open(tinyface_folder)
    protocol = tinyface.TinyFace.open(tinyface_folder, skip_bad=True)
    assert len(protocol.probes) == 1 and len(protocol.gallery) == 32 and protocol.about["n_skipped"] == 7 + 14
    write_lists(root, ["1_1.png", "77_1.png"], ["1_2.png"])
    with raises("tinyface-missing", "1 image ", "Probe", "'77_1.png'"):
        tinyface.TinyFace.open(tinyface_folder)
    assert ("77_1.png", "it is missing") in tinyface.TinyFace.open(tinyface_folder, skip_bad=True).about["skipped"]
    write_lists(root, ["1_1.png", "1_1.png"], ["1_2.png"])
    with raises("mat-list", "1 different names, 2 identities"):
        tinyface.TinyFace.open(tinyface_folder, skip_bad=True)
    (root / "probe_img_ID_pairs.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut short")
    with raises("mat-list", ".mat"):
        tinyface.TinyFace.open(tinyface_folder)


def test_tinyface_probes_without_a_mate_are_told_or_counted(tinyface_folder):
    save(tinyface_folder / "Testing_Set" / "Probe" / "55_1.png", face(55, 1, size=20))
    with raises("tinyface-no-mate", "1 probe,", "55_1.png"):
        tinyface.TinyFace.open(tinyface_folder)
    protocol = tinyface.TinyFace.open(tinyface_folder, skip_bad=True)
    assert len(protocol.probes) == 8 and protocol.about["n_skipped"] == 1
    shutil.rmtree(tinyface_folder / "Testing_Set" / "Gallery_Match")
    with raises("tinyface-folder", "'Gallery_Match'"):
        tinyface.TinyFace.open(tinyface_folder, skip_bad=True)


@pytest.fixture
def uccs_folder(tmp_path):
    for person in range(12):
        for image in range(8):
            part = "test" if image > 5 else "train"
            save(tmp_path / "uccs" / part / f"S{person}" / f"{image}.png", face(person, image))
    return tmp_path / "uccs"


def test_uccs_trains_a_softmax_layer_on_frozen_features(uccs_folder, network, tmp_path):
    results = evaluate_and_report(settings("uccs", uccs_folder, network), tmp_path / "out")
    metrics = results["colors_native"].metrics
    assert (metrics["n_train"], metrics["n_test"], metrics["n_identities"]) == (72, 24, 12)
    assert 50 < metrics["accuracy"] <= metrics["rank_5"] <= 100
    assert (tmp_path / "out" / "tsne.png").stat().st_size > 1000
    scores = np.load(tmp_path / "out" / "scores.npz")
    right = scores["colors_16/predicted"] == scores["truth"]
    assert 100 * right.mean() == pytest.approx(results["colors_16"].metrics["accuracy"], abs=1e-3)


def test_uccs_people_without_training_faces_are_told_or_counted(uccs_folder):
    shutil.rmtree(uccs_folder / "train" / "S3")
    with raises("uccs-strangers", "2 test faces"):
        uccs.UCCS.open(uccs_folder)
    assert len(uccs.UCCS.open(uccs_folder, skip_bad=True).test) == 22
    shutil.rmtree(uccs_folder / "train")
    with raises("uccs-layout", "train/PERSON/IMAGE"):
        uccs.UCCS.open(uccs_folder, skip_bad=True)


@pytest.fixture
def ar_folder(tmp_path):
    for person in range(1, 5):
        for number in range(1, 14):
            image = face(person, number)
            if number in ar.GROUPS["mouth"]:
                image[60:] = 20
            save(tmp_path / "ar" / f"{'mw'[person % 2]}-{person:03d}-{number:02d}.bmp", image)
    return tmp_path / "ar"


def test_ar_has_groups_and_a_gallery_of_neutral_faces(ar_folder, network, tmp_path):
    results = evaluate_and_report(settings("ar", ar_folder, network, resolutions=("native",)), tmp_path / "out")
    metrics = results["colors_native"].metrics
    assert metrics["n_gallery"] == 4 and metrics["n_probes"] == 48 and metrics["n_probes_eyes"] == 12
    assert metrics["rank_1_eyes"] > metrics["rank_1_mouth"]
    groups = [metrics[f"rank_1_{group}"] for group in ar.GROUPS]
    assert metrics["rank_1"] == pytest.approx(np.mean(groups), abs=1e-3)
    assert (tmp_path / "out" / "groups.png").stat().st_size > 1000


def test_ar_people_without_a_neutral_face_are_told_or_counted(ar_folder):
    (ar_folder / "w-001-01.bmp").unlink()
    with raises("ar-no-neutral", "01 or 14"):
        ar.AR.open(ar_folder)
    protocol = ar.AR.open(ar_folder, skip_bad=True)
    assert len(protocol.faces) == 39 and protocol.about["n_skipped"] == 12
    (ar_folder / "m-002-27.bmp").write_bytes((ar_folder / "m-002-01.bmp").read_bytes())
    with raises("ar-number", "01 to 26"):
        ar.AR.open(ar_folder, skip_bad=True)


@without_figures
def test_faces_that_are_not_aligned_are_refused_or_stretched(ar_folder, network, tmp_path):
    save(ar_folder / "m-002-02.bmp", np.ascontiguousarray(face(2, 2, size=150)[:, :100]))
    with pytest.raises(GdrdError, match="100x150.*gdrd prepare --align"):
        evaluate_and_report(settings("ar", ar_folder, network), tmp_path / "out")
    how = settings("ar", ar_folder, network, resolutions=("16",), stretch=True)
    assert evaluate_and_report(how, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--protocol", "lfw", "--data", "."], ["[pairs-not-given]", "--pairs"]),
        (["--protocol", "lfw", "--data", "nowhere", "--pairs", "nowhere.txt"], ["'nowhere.txt'", "[pairs-missing]"]),
        (["--protocol", "bin", "--data", "nowhere.bin"], ["nowhere.bin", "-missing]"]),
        (["--protocol", "tinyface", "--data", "nowhere"], ["'nowhere'", "-missing]"]),
        (["--protocol", "uccs", "--data", "docs"], ["[uccs-layout]", "docs", "train/PERSON/IMAGE"]),
        (["--protocol", "ar", "--data", "docs"], ["[ar-no-images]", "docs"]),
        (["--protocol", "ar", "--data", "docs", "--model", "nowhere.onnx"], ["[model-missing]", "'nowhere.onnx'"]),
        (["--protocol", "ar", "--data", "docs", "--model", "{network}:odd"], ["'odd'", "MEAN/STD"]),
        (["--protocol", "ar", "--data", "docs", "--model", "a=docs"], ["docs"]),
        (["--protocol", "ar", "--data", "docs", "--model", "{network}"], ["[model-twice]", "'colors'"]),
        (["--protocol", "ar", "--data", "docs", "--noise", "-1"], ["noise"]),
        (["--protocol", "uccsx", "--data", "docs"], ["[entry-unknown]", "'uccsx'", "'uccs'"]),
        (["--protocol", "ar", "--data", "docs", "--pairs", "pairs.txt"], ["[command-usage]", "--pairs"]),
    ],
)
def test_a_mistake_is_one_sentence(network, tmp_path, monkeypatch, capsys, arguments, facts):
    monkeypatch.chdir(ROOT)
    arguments = [argument.format(network=network) for argument in arguments]
    assert command.main(["--model", str(network), "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(fact in error for fact in facts), error
    assert error.count("\n") == 1 and error.startswith("error: "), error


def test_noise_belongs_to_a_face_whatever_others_there_are(ar_folder, network):
    model, how = open_model(str(network)), Degradation(16, "area", motion=8.0, noise=9.0)
    before = ar.AR.open(ar_folder).faces
    (ar_folder / "w-001-02.bmp").unlink()
    after = ar.AR.open(ar_folder).faces
    rows = before.names.index("w-003-05.bmp"), after.names.index("w-003-05.bmp")
    assert rows[0] != rows[1]
    np.testing.assert_array_equal(model.input_of(before, rows[0], how, 0), model.input_of(after, rows[1], how, 0))
    assert (model.input_of(before, rows[0], how, 1) != model.input_of(before, rows[0], how, 0)).any()


def test_what_is_left_out_is_part_of_the_fingerprint(ar_folder):
    (ar_folder / "w-001-01.bmp").unlink()
    first = ar.AR.open(ar_folder, skip_bad=True).faces
    (ar_folder / "w-003-01.bmp").rename(ar_folder / "w-001-01.bmp")
    second = ar.AR.open(ar_folder, skip_bad=True).faces
    assert len(first) == len(second) and first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    ("protocol", "copy"), [("ar", "m-002-02.png"), ("tinyface", "a/Probe/1_1.png"), ("uccs", "b/train/S1/1.png")]
)
def test_a_face_that_is_there_twice_is_told(ar_folder, tinyface_folder, uccs_folder, protocol, copy):
    folder = {"ar": ar_folder, "tinyface": tinyface_folder, "uccs": uccs_folder}[protocol]
    save(folder / copy, face(2, 2))
    opened = {
        "ar": lambda: ar.AR.open(folder, skip_bad=True),
        "tinyface": lambda: tinyface.TinyFace.open(folder, skip_bad=True),
        "uccs": lambda: uccs.UCCS.open(folder, skip_bad=True),
    }
    with pytest.raises(GdrdError, match="holds a face twice"):
        opened[protocol]()


@without_figures
def test_another_runs_figures_do_not_stay(ar_folder, lfw_folder, network, tmp_path):
    evaluate_and_report(settings("ar", ar_folder, network), tmp_path / "out")
    assert (tmp_path / "out" / "groups.png").exists() and (tmp_path / "out" / "sweep.png").exists()
    how = settings("lfw", lfw_folder, network, pairs=lfw_folder / "pairs.txt", resolutions=("16",))
    evaluate_and_report(how, tmp_path / "out")
    assert (tmp_path / "out" / "roc.png").exists()
    assert not (tmp_path / "out" / "groups.png").exists() and not (tmp_path / "out" / "sweep.png").exists()


def test_a_protocol_writes_the_figures_that_it_names(ar_folder, network, tmp_path, monkeypatch):
    monkeypatch.setattr(ar.AR, "files", ())
    with pytest.raises(ValueError, match="'ar' has no 'groups.png'"):
        evaluate_and_report(settings("ar", ar_folder, network, resolutions=("16",)), tmp_path / "out")


def test_settings_of_a_protocol_are_checked_before_the_models_are_loaded(ar_folder, tmp_path):
    how = settings("ar", ar_folder, "none.onnx", protocol_settings={"pairs": "x"})
    with raises("entry-setting", "'ar'", "'pairs'"):
        evaluate_and_report(how, tmp_path / "out")
    with raises("entry-setting", "'lfw'", "'pairs'", 3):
        evaluate_and_report(settings("lfw", ar_folder, "none.onnx", protocol_settings={"pairs": 3}), tmp_path / "out")


def test_a_stand_in_says_so_wherever_it_is_carried(ar_folder, tmp_path):
    assert stand_in(ar_folder) is None
    (ar_folder / "deeper").mkdir()
    (ar_folder / STAND_IN).write_text("not the\nreal thing")
    with tarfile.open(tmp_path / "ar.tar", "w") as archive:
        archive.add(ar_folder, "ar")
    for path in (ar_folder, ar_folder / "deeper", tmp_path / "ar.tar"):
        assert stand_in(path) == "not the real thing"
    command = [sys.executable, "tools/prepare_faces.py", tmp_path / "ar.tar", tmp_path / "store"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    assert stand_in(tmp_path / "store") == "not the real thing"


def test_stand_ins_are_not_written_over_other_things(lfw_folder, tmp_path):
    (tmp_path / "tinyface").mkdir()
    (tmp_path / "tinyface" / "precious.jpg").touch()
    command = [
        sys.executable, "tools/make_stand_ins.py", "--lfw", lfw_folder, "--distractors", lfw_folder, "--ar", "nowhere",
        "--out", tmp_path,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "holds other things, such as precious.jpg" in done.stderr
    assert (tmp_path / "tinyface" / "precious.jpg").exists()


def test_a_models_path_may_hold_signs(network, tmp_path):
    path = tmp_path / "lr=0.1:a"
    path.mkdir()
    shutil.copy(network, path / "m.onnx")
    model = open_model(f"{path / 'm.onnx'}")
    assert model.name == "m" and model.settings["preprocessing"] == "arcface"
    shutil.copy(network, tmp_path / "n.onnx")
    model = open_model(f"mine={tmp_path / 'n.onnx'}:imagenet")
    assert model.name == "mine" and model.settings["preprocessing"] == "imagenet"
    with raises("student-preprocessing", str(tmp_path)):
        open_model(f"{tmp_path}:imagenet")


def test_a_model_that_embeds_all_faces_alike_writes_plain_json(lfw_folder, network, tmp_path):
    protocol = lfw.LFW.open(lfw_folder, lfw.LFW.Config(str(lfw_folder / "pairs.txt")))
    embeddings = np.zeros((len(protocol.faces), 2))
    embeddings[:, 0] = 1
    result = protocol.evaluate(embeddings, seed=0)
    json.dumps(result.metrics, allow_nan=False)
    assert result.metrics["accuracy"] == 50 and result.metrics["threshold"] is None


@without_figures
def test_native_faces_are_degraded_but_not_reduced(ar_folder, network, tmp_path):
    clean = evaluate_and_report(settings("ar", ar_folder, network, resolutions=("native",)), tmp_path / "clean")
    degrading = settings("ar", ar_folder, network, resolutions=("native",), noise=90.0, blur=30.0)
    model, faces = open_model(str(network)), ar.AR.open(ar_folder).faces
    seen = model.input_of(faces, 0, degrading.degradation("native"), 0)
    assert seen.shape == (112, 112, 3) and np.abs(seen.astype(int) - faces[0]).mean() > 30
    found = evaluate_and_report(degrading, tmp_path / "degraded")
    assert found["colors_native"].metrics["rank_1"] < clean["colors_native"].metrics["rank_1"]
    assert "degraded by blur 30, noise 90" in (tmp_path / "degraded" / "report.html").read_text()


@without_figures
def test_a_bin_in_blocks_is_warned_of(network, tmp_path, caplog):
    images = [cv2.imencode(".png", face(p, i))[1].tobytes() for p in range(12) for i in (0, 1)]
    shifted = images[1:] + images[:1]
    (tmp_path / "b.bin").write_bytes(pickle.dumps((images + shifted, [True] * 12 + [False] * 12), protocol=4))
    evaluate_and_report(settings("bin", tmp_path / "b.bin", network, resolutions=("16",)), tmp_path / "out")
    assert "A fold has genuine or impostor pairs only" in caplog.text
    assert "draws pairs (a .bin" in (tmp_path / "out" / "report.html").read_text()


def test_pairs_of_one_kind_cannot_be_verified(network, tmp_path):
    images = [cv2.imencode(".png", face(p, i))[1].tobytes() for p in range(4) for i in (0, 1)]
    (tmp_path / "b.bin").write_bytes(pickle.dumps((images, [True] * 4), protocol=4))
    with raises("pairs-one-kind", "4 and 0"):
        evaluate_and_report(settings("bin", tmp_path / "b.bin", network), tmp_path / "out")
    (tmp_path / "b.bin").write_bytes(pickle.dumps(([b"no image", *images[1:]], [True, *[False] * 3]), protocol=4))
    with raises("pairs-one-kind", "0 and 3", "1 face ", "pair 0 a"):
        evaluate_and_report(settings("bin", tmp_path / "b.bin", network, skip_bad=True), tmp_path / "out")


def test_a_fold_that_leaves_one_kind_outside_is_refused(network, tmp_path):
    images = [cv2.imencode(".png", face(p, i))[1].tobytes() for p in range(2) for i in (0, 1)]
    (tmp_path / "b.bin").write_bytes(pickle.dumps((images, [True, False]), protocol=4))  # two pairs are two folds
    with raises("pairs-fold-one-kind"):
        evaluate_and_report(settings("bin", tmp_path / "b.bin", network), tmp_path / "out")


@pytest.mark.parametrize("protocol", ["lfw", "ar", "tinyface", "uccs"])
def test_the_share_of_right_decisions_is_the_main_figure(protocol, request, lfw_folder, network):
    data = lfw_folder if protocol == "lfw" else request.getfixturevalue(f"{protocol}_folder")
    pairs = {"pairs": lfw_folder / "pairs.txt"} if protocol == "lfw" else {}
    opened = open_protocol(settings(protocol, data, network, **pairs))
    random = np.random.default_rng(0).normal(size=(len(opened.faces), 8))
    result = opened.evaluate(random / np.linalg.norm(random, axis=1, keepdims=True), seed=0)
    right, people = opened.decisions(result)
    assert people.shape == (len(right), 2) and right.mean() < 1
    assert 100 * right.mean() == pytest.approx(result.figure(opened.main), abs=1e-3)
    if protocol != "lfw":
        assert (people[:, 0] == people[:, 1]).all()


@without_figures
def test_the_papers_figures_stand_beside_those_of_a_student(ar_folder, tmp_path):
    how = settings("ar", ar_folder, None, models=(str(save_student(tmp_path / "run")),), resolutions=("16", "8"))
    results = evaluate_and_report(how, tmp_path / "out")
    metrics = results["run_16"].metrics
    assert metrics["paper"] is None and metrics["paper_rank_1_eyes"] == 84.33
    assert not any("paper" in key for key in results["run_8"].metrics if key != "paper")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mouth % (WebFace)" in page and "expression % (WebFace)" not in page
    assert "<td class=quoted>84.33<span>" in page and "<td>run @ 16x16</td>" in page
    (ar_folder / STAND_IN).write_text("not the real thing")
    evaluate_and_report(how, tmp_path / "out")
    assert "mouth % (WebFace, the real benchmark)" in (tmp_path / "out" / "report.html").read_text()


@without_figures
def test_a_student_is_one_row_beside_its_teacher_and_the_paper(lfw_folder, network, tmp_path):
    save_student(tmp_path / "run")
    models = (str(network), f"student={tmp_path / 'run'}")
    how = settings("lfw", lfw_folder, network, models=models, pairs=lfw_folder / "pairs.txt")
    results = evaluate_and_report(how, tmp_path / "out")
    assert list(results) == ["colors_native", "colors_16", "student_16"]
    assert results["student_16"].metrics["paper"] == 96.13 and results["colors_16"].metrics["paper"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "student sees 16x16 pixels (reduced by area in training)" in page and "(WebFace)" in page
    how = settings("lfw", lfw_folder, network, models=models[1:], pairs=lfw_folder / "pairs.txt", kernel="bicubic")
    assert list(evaluate_and_report(how, tmp_path / "out")) == [
        "student_native",
        "student_16",
    ]  # by another kernel, so other faces


@without_figures
def test_a_student_has_no_row_at_more_pixels_than_it_is_made_for(lfw_folder, network, tmp_path):
    save_student(tmp_path / "run", resolution=8)
    models = (f"student={tmp_path / 'run'}", str(network))
    how = settings(
        "lfw", lfw_folder, network, models=models, pairs=lfw_folder / "pairs.txt", resolutions=("native", "16", "8")
    )
    rows = ["student_8", "colors_native", "colors_16", "colors_8"]  # native faces are the same to it
    assert list(evaluate_and_report(how, tmp_path / "out")) == rows
    with raises("model-without-row", "student", "8x8", "16;", "--resolution 8"):
        evaluate_and_report(dataclasses.replace(how, resolutions=("16",)), tmp_path / "other")


def test_an_existing_path_wins_over_every_other_reading(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("a=b/net.onnx", "C:odd/net.onnx", "x=C:odd/net.onnx", "home/net.onnx", "plain/b=c:d.onnx", "e.onnx"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(network, name)
    for run in ("runs/lr=0.1", "runs/at:10", "runs/a=b:c=d"):
        Path(run).mkdir(parents=True)
    for text, expected in {
        "a=b/net.onnx": ("net", "a=b/net.onnx", "auto"),
        "a=b/net.onnx:imagenet": ("net", "a=b/net.onnx", "imagenet"),
        "mine=a=b/net.onnx:imagenet": ("mine", "a=b/net.onnx", "imagenet"),
        "C:odd/net.onnx": ("net", "C:odd/net.onnx", "auto"),
        "y=C:odd/net.onnx:127.5/128": ("y", "C:odd/net.onnx", "127.5/128"),
        "x=C:odd/net.onnx": ("net", "x=C:odd/net.onnx", "auto"),  # all of it is there
        "plain/b=c:d.onnx:in_graph": ("b_c_d", "plain/b=c:d.onnx", "in_graph"),
        "n=plain/b=c:d.onnx": ("n", "plain/b=c:d.onnx", "auto"),
        "e.onnx:arcface": ("e", "e.onnx", "arcface"),
        "e.onnx:auto:160": ("e", "e.onnx", "auto", 160),
        "n=e.onnx:127.5/128:224": ("n", "e.onnx", "127.5/128", 224),
        "runs/lr=0.1": ("lr_0", "runs/lr=0.1", "auto"),
        "mine=runs/lr=0.1": ("mine", "runs/lr=0.1", "auto"),
        "lr=0.2=runs/lr=0.1": ("lr=0.2", "runs/lr=0.1", "auto"),
        "runs/at:10": ("at_10", "runs/at:10", "auto"),
        "mine=runs/a=b:c=d": ("mine", "runs/a=b:c=d", "auto"),
        "~/net.onnx:arcface": ("net", str(tmp_path / "home/net.onnx"), "arcface"),
    }.items():
        name, path, *how = parse_model(text)
        assert (name, str(path), *how) == (expected if len(expected) == 4 else (*expected, 0)), text
    for text in ("e.onnx:nonsense", "e.onnx:160", "e.onnx:auto:big"):
        with raises("preprocessing-unknown", "MEAN/STD"):
            parse_model(text)
    for text, code, fact in (
        ("nothing.onnx", "model-missing", "'nothing.onnx'"),
        ("x=nothing.onnx:imagenet", "model-missing", "'nothing.onnx'"),
        ("runs/lr=0.1:imagenet", "student-preprocessing", "runs/lr=0.1:imagenet"),
        ("runs/lr=0.1:auto:112", "student-preprocessing", "runs/lr=0.1:auto:112"),
        ("foo=", "model-missing", "--model foo="),
        (":imagenet", "model-missing", "--model :imagenet"),
        ("", "model-missing", "--model"),
    ):
        with raises(code, fact):
            parse_model(text)
