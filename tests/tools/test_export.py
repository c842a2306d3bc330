"""The tool that exports a student, and what loads what it wrote."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import make_faces, raises, save_recognizer, save_student
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from gdrd_jax.cli import (
    export,  # noqa: E402
    recognize,  # noqa: E402
)
from gdrd_jax.config import default  # noqa: E402
from gdrd_jax.data.degradation import STRENGTHS, resize  # noqa: E402
from gdrd_jax.data.task import ObjectTask  # noqa: E402
from gdrd_jax.export import exporter, model_card, networks  # noqa: E402
from gdrd_jax.export.formats import FORMATS
from gdrd_jax.inference.recognizer import Recognizer  # noqa: E402
from gdrd_jax.inference.thresholds import Thresholds  # noqa: E402
from gdrd_jax.models.student import abstract_student  # noqa: E402

PEOPLE = 12
pytestmark = pytest.mark.usefixtures("quick_speeds")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"), PEOPLE, 3)


@pytest.fixture(scope="module")
def lfw(faces, tmp_path_factory):
    """The same faces under LFW's names, with two folds of three genuine and three impostor pairs."""
    root = tmp_path_factory.mktemp("lfw")
    for person in range(PEOPLE):
        (root / f"P{person}").mkdir()
        for image in range(3):
            pixels = cv2.imread(str(faces / f"p{person}" / f"{image}.png"))
            cv2.imwrite(str(root / f"P{person}" / f"P{person}_{image + 1:04}.jpg"), pixels)
    lines = ["2\t3"]
    for fold in range(2):
        lines += [f"P{i}\t1\t2" for i in range(6 * fold, 6 * fold + 3)]
        lines += [f"P{i}\t1\tP{i + 1}\t2" for i in range(6 * fold, 6 * fold + 3)]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("run"), name="gdrd")


@pytest.fixture(scope="module")
def exported(workdir, faces, lfw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "student"
    other = save_recognizer(tmp_path_factory.mktemp("teacher") / "cells.onnx")
    words = ["--format", "onnx", "onnx_nchw", "onnx_112", "int8", "stablehlo", "--calibration", faces, "--lfw", lfw]
    words += ["--pairs", lfw / "pairs.txt", "--baseline", f"cells={other}"]
    assert export.main([*map(str, (workdir, folder, *words))]) == 0
    return folder


def low(faces):
    files = sorted(faces.rglob("*.png"))
    return np.stack([resize(cv2.cvtColor(cv2.imread(str(f)), cv2.COLOR_BGR2RGB), 16, "area") for f in files])


def test_the_exported_folder_is_the_student(exported, workdir, faces):
    before, after = Recognizer.load(workdir), Recognizer.load(exported)
    assert after.fingerprint() == before.fingerprint()
    np.testing.assert_allclose(after.embed(low(faces)), before.embed(low(faces)), atol=1e-6)
    with raises("far-too-fine", "66 pairs", "0.001"):
        after.verify(low(faces)[0], low(faces)[1], far=1e-3)
    found = after.verify(low(faces)[0], low(faces)[0], far=0.1)
    assert found.same and found.threshold == after.thresholds.at(0.1)


def test_the_onnx_file_runs_alone_and_says_what_it_is(exported, workdir, faces):
    expected = Recognizer.load(workdir).embed(low(faces))
    session = onnxruntime.InferenceSession(exported / "student.onnx")
    np.testing.assert_allclose(session.run(None, {"faces": low(faces)})[0], expected, atol=1e-5)
    remarks = session.get_modelmeta().custom_metadata_map
    assert (remarks["resolution"], remarks["kernel"], remarks["colors"]) == ("16", "area", "RGB")
    assert remarks["fingerprint"] == Recognizer.load(workdir).fingerprint()
    assert json.loads(remarks["thresholds"])["between"] == PEOPLE * (PEOPLE - 1) / 2 and "terms" in remarks["license"]
    other = onnxruntime.InferenceSession(exported / "student.nchw.onnx")
    x = np.float32(low(faces).transpose(0, 3, 1, 2) / 127.5 - 1)
    np.testing.assert_allclose(other.run(None, {"faces": x})[0], expected, atol=1e-5)


def test_every_file_has_proved_itself(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    rows = {row["name"]: row for row in manifest["proof"]["rows"]}
    beside = "cells, faces enlarged to 112"
    assert list(rows) == ["JAX", "safetensors", "onnx", "onnx_nchw", "onnx_112", "int8", "stablehlo", beside]
    for name in ("safetensors", "onnx", "onnx_nchw", "onnx_112", "stablehlo"):
        assert rows[name]["least_cosine"] > 0.99999 and rows[name]["largest_difference"] < 1e-4
        assert rows[name]["accuracy"] == rows["JAX"]["accuracy"]
    for row in rows.values():
        assert 0 <= row["accuracy"] <= 100 and row["faces_per_second"] > 1 and row["one_face_ms"] > 0
    card = (exported / "README.md").read_text()
    assert "16x16" in card and "| int8 |" in card and f"{PEOPLE} people, 66 pairs" in card and "| 0.1 |" in card
    assert "not for finding people" in card and not list(exported.parent.glob("student.*"))


def test_quality_is_a_second_output_of_a_file_of_its_own(exported, faces, tmp_path, capsys, monkeypatch):
    known = shutil.copytree(exported, tmp_path / "known")
    manifest = json.loads((known / "manifest.json").read_text())
    quality = {"slope": 2.0, "intercept": 0.0, "far": 0.1, "faces": 36, "name": "made up"}
    words = [str(known), str(tmp_path / "out"), "--format", "onnx_quality"]
    (known / "manifest.json").write_text(json.dumps(manifest | {"quality": None}))
    assert export.main(words) == 2 and "[quality-missing]" in capsys.readouterr().err
    (known / "manifest.json").write_text(json.dumps(manifest | {"quality": quality}))
    assert export.main(words) == 0
    session = onnxruntime.InferenceSession(tmp_path / "out" / "student.quality.onnx")
    embeddings, scores = Recognizer.load(tmp_path / "out").embed(low(faces), quality=True)
    for found, expected in zip(session.run(["embedding", "quality"], {"faces": low(faces)}), (embeddings, scores)):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    proof = json.loads((tmp_path / "out" / "manifest.json").read_text())["proof"]["rows"]
    differences = {row["name"]: row.get("quality_difference") for row in proof}
    assert differences.keys() == {"JAX", "safetensors", "onnx_quality"} and max(differences.values()) < 1e-5
    assert "| quality difference |" in (tmp_path / "out" / "README.md").read_text()
    score = networks._score
    monkeypatch.setattr(networks, "_score", lambda *x: score(*x[:2], dataclasses.replace(x[2], slope=1.9)))
    assert export.main([*words[:1], str(tmp_path / "wrong"), *words[2:]]) == 2
    assert "onnx_quality: its quality scores differ" in capsys.readouterr().err and not (tmp_path / "wrong").exists()


def test_the_card_describes_a_file_of_every_format():
    manifest = {"student": {"resolution": 16}, "files": dict.fromkeys(FORMATS.values(), "0")}
    assert len(model_card._files(manifest).splitlines()) == len(FORMATS)


def test_a_student_without_the_mirror_image_is_another_one(exported, workdir, faces, tmp_path):
    known = shutil.copytree(exported, tmp_path / "known")
    manifest = json.loads((known / "manifest.json").read_text())
    quality = {"slope": 2.0, "intercept": 0.0, "far": 0.1, "faces": 36, "name": "made up"}
    (known / "manifest.json").write_text(json.dumps(manifest | {"quality": quality}))
    assert export.main([str(known), str(tmp_path / "out"), "--format", "onnx_112", "--no-mirror"]) == 0
    both, one = Recognizer.load(workdir), Recognizer.load(tmp_path / "out")
    assert one.fingerprint() != both.fingerprint()
    learned = Recognizer.load(known)
    for name in ("thresholds", "template_scores", "quality"):  # of other embeddings
        assert getattr(learned, name) is not None and getattr(one, name) is None
    assert manifest["held_out"] and json.loads((tmp_path / "out" / "manifest.json").read_text())["held_out"] == {}
    ready = low(faces)
    found, mirrored = one.embed(ready), one.embed(ready[:, :, ::-1].copy())
    assert np.abs(found - mirrored).max() > 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "out" / "student.112.onnx")
    files = sorted(faces.rglob("*.png"))
    x = cv2.dnn.blobFromImages([cv2.imread(str(file)) for file in files], 1 / 127.5, mean=(127.5,) * 3, swapRB=True)
    np.testing.assert_allclose(session.run(None, {"data": x})[0], found, atol=1e-5)


def test_a_file_that_does_something_else_is_not_written(workdir, faces, tmp_path, monkeypatch, capsys):
    right = networks.onnx_model

    def wrong(*given, **settings):
        model = right(*given, **settings)
        kernel = next(w for w in model.graph.initializer if len(w.dims) == 4)
        kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(1.3), kernel.name))
        return model

    monkeypatch.setattr(networks, "onnx_model", wrong)
    assert export.main([*map(str, (workdir, tmp_path / "out", "--calibration", faces))]) == 2
    error = capsys.readouterr().err
    assert "onnx: " in error and "cosine" in error and error.endswith(" [export-inexact]\n")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_before_the_work(workdir, faces, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    out = tmp_path / "out"
    cases = [
        ((tmp_path / "full", "--calibration", faces), "[output-not-ours]", str(tmp_path / "full"), "thesis.tex"),
        ((workdir / "dis" / "student", "--calibration", faces), "[output-not-ours]", str(workdir / "dis" / "student")),
        ((out,), "[calibration-missing]", "kept 0 calibration people", "--calibration"),
        ((out, "--format", "onxx"), "[flag-value]", "--format onxx", "safetensors, onnx"),
        ((out, "--calibration", faces, "--baseline", "none.onnx"), "[model-missing]", "--baseline none.onnx"),
        ((out, "--best", "--calibration", faces), "[weights-missing]", str(workdir / "dis" / "best")),
        ((out, "--calibration", tmp_path / "none"), "[path-missing]", str(tmp_path / "none")),
        ((out, "--calibration", faces, "--lfw", faces), "pairs"),
        ((out, "--calibration", faces, "--pairs", faces), "[flag-missing]", "--pairs", "--lfw"),
    ]
    for words, *facts in cases:
        assert export.main([*map(str, (workdir, *words))]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and all(fact in error for fact in facts), error
    assert (tmp_path / "full" / "thesis.tex").exists() and not out.exists()


def test_the_student_of_a_run_is_not_replaced_by_an_export(workdir, faces, tmp_path, capsys):
    run = shutil.copytree(workdir, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (run / "dis" / "student").iterdir()}
    assert export.main([*map(str, (workdir, run / "dis" / "student", "--calibration", faces))]) == 2
    error = capsys.readouterr().err
    assert str(run / "dis" / "student") in error and error.endswith(" [output-not-ours]\n")
    assert {path.name: path.read_bytes() for path in (run / "dis" / "student").iterdir()} == before


def test_what_was_damaged_on_the_way_is_refused(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    data = (copy / "student.safetensors").read_bytes()
    (copy / "student.safetensors").write_bytes(data[:-4] + b"\0\0\0\1")
    with raises("weights-damaged", copy / "student.safetensors"):
        Recognizer.load(copy)
    (copy / "manifest.json").write_text("{}")
    with raises("manifest-invalid", copy):
        Recognizer.load(copy)


GOOD = {"people": 3, "faces": 6, "between": 3, "genuine": 3, "name": "x", "tars": [1.0]}
DAMAGED = ([], "x", {"far": 0.1}, GOOD | {"fars": 0.1, "values": [0.5]}, GOOD | {"fars": [], "values": []})


def test_a_manifest_of_something_else_is_refused(exported, tmp_path):
    for change, code in (
        ({"kernel": "lanczos"}, "manifest-invalid"),
        *(({"thresholds": damaged}, "manifest-invalid") for damaged in DAMAGED),
        ({"kernel": "bicubic"}, "fingerprint-mismatch"),
        ({"student": {"size": 3}}, "student-unsupported"),
    ):
        copy = shutil.copytree(exported, tmp_path / code, dirs_exist_ok=True)
        manifest = json.loads((exported / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | change))
        with raises(code, copy):
            Recognizer.load(copy)


def test_8_bits_have_thresholds_and_a_fingerprint_of_their_own(exported, faces):
    exact, small = (
        onnxruntime.InferenceSession(exported / name).get_modelmeta().custom_metadata_map
        for name in ("student.onnx", "student.int8.onnx")
    )
    assert small["fingerprint"] != exact["fingerprint"] and small["kernel"] == exact["kernel"]
    found = Thresholds(**json.loads(small["thresholds"]))
    files = sorted(faces.rglob("*.png"))
    embeddings = onnxruntime.InferenceSession(exported / "student.int8.onnx").run(None, {"faces": low(faces)})[0]
    expected = Thresholds.learn(embeddings, np.array([hash(file.parent) for file in files]), "x")
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    rows = {row["name"]: row for row in json.loads((exported / "manifest.json").read_text())["proof"]["rows"]}
    assert 0.5 < rows["int8"]["least_cosine"] < 0.99999


def test_only_an_exported_student_is_replaced(exported, workdir, faces, tmp_path, monkeypatch, capsys):
    web = tmp_path / "web"
    (web / "src").mkdir(parents=True)
    (web / "manifest.json").write_text('{"name": "my web app"}')
    calibration = ("--calibration", str(faces))
    assert export.main([str(workdir), str(web), *calibration]) == 2
    error = capsys.readouterr().err
    assert f"{web} " in error and "src" in error and error.endswith(" [output-not-ours]\n")
    (web / "src").rmdir()
    assert export.main([str(workdir), str(web), *calibration]) == 2
    error = capsys.readouterr().err
    assert f"{web} " in error and error.endswith(" [manifest-invalid]\n")
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "in").mkdir()
    for here, folder, fact in (
        (copy / "in", "..", " [output-in-use]\n"),
        (copy, ".", " [output-in-use]\n"),
        (tmp_path, "/proc", " [output-in-use]\n"),
        (tmp_path, "copy/README.md/out", " [not-writable]\n"),
    ):
        monkeypatch.chdir(here)
        assert export.main([str(workdir), folder, *calibration]) == 2
        assert fact in capsys.readouterr().err
    (copy / "in").rmdir()
    monkeypatch.chdir(tmp_path)
    assert export.main([str(copy), "copy", *calibration]) == 2
    assert capsys.readouterr().err.endswith(" [output-is-input]\n")
    assert export.main([str(workdir), "copy", *calibration]) == 0
    assert not (copy / "student.int8.onnx").exists() and (copy / "student.onnx").exists()


def test_the_card_says_where_training_was_stopped(tmp_path, faces):
    run = save_student(tmp_path / "run")
    (run / "dis" / "student").rename(run / "dis" / "best")
    description = json.loads((run / "dis" / "best" / "manifest.json").read_text())
    (run / "dis" / "best" / "manifest.json").write_text(json.dumps(description | {"step": 1234}))
    config = default()
    config.data.path = ",".join(str(tmp_path / "secret" / name) for name in ("train.rec", "more.rec"))
    config.dis.update(init="random", freeze=())
    config.degradation.random = True
    config.discriminative.preprocessing, config.outputs = "127.5/128", str(tmp_path / "secret")
    (run / "config.json").write_text(config.to_json())
    out = tmp_path / "out"
    words = [run, out, "--best", "--calibration", faces, "--license", "for tests only"]
    assert export.main([*map(str, words)]) == 0
    card = (out / "README.md").read_text()
    assert "taken at step 1,234" in card and "for tests only" in card
    assert "`train.rec, more.rec`" in card and "secret" not in (out / "manifest.json").read_text()
    assert "No generative teacher" in card and "blur 2.5, motion 10" in card
    assert json.loads((out / "manifest.json").read_text())["training"]["discriminative"]["preprocessing"] == "127.5/128"


def test_an_exported_student_verifies_and_marks_who_passes(exported, faces, tmp_path, capsys):
    def call(*words):
        status = recognize.main([*map(str, words), "--model", str(exported)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    a, b = faces / "p0" / "0.png", faces / "p0" / "1.png"
    threshold = Recognizer.load(exported).threshold(0.1)
    status, out = call("verify", a, a, "--far", "0.1")
    assert status == 0 and f"the same person: similarity 1.000, threshold {threshold:.3f}" in out
    status, out = call("verify", a, b, "--far", "0.001")
    assert status == 2 and "0.001" in out and "66 pairs" in out and out.endswith(" [far-too-fine]\n")
    assert call("enroll", faces, "--gallery", tmp_path / "known")[0] == 0
    status, out = call("search", a, "--gallery", tmp_path / "known", "-k", 36, "--far", "0.1", "--json")
    matches = json.loads(out)["probes"][0]["matches"]
    assert [match["accepted"] for match in matches] == [match["similarity"] >= threshold for match in matches]
    assert {match["accepted"] for match in matches} == {True, False}
    status, out = call("search", a, "--gallery", tmp_path / "known", "--far", "0.1", "--templates", "--json")
    stricter = Recognizer.load(exported).threshold(0.1, gallery_faces=3)
    assert stricter > threshold
    for match in json.loads(out)["probes"][0]["matches"]:
        assert match["faces"] == 3 and match["accepted"] == (match["similarity"] >= stricter)


def test_the_manifest_and_the_card_have_rates_of_people_held_out(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["template_scores"]["people"] == PEOPLE and manifest["native_template_scores"] is None
    assert manifest["held_out"] == {"thresholds": []}  # too few people for folds
    rates = [{"far": 0.1, "mean": 0.12, "low": 0.08, "high": 0.17}]
    card = model_card.text(manifest | {"held_out": {"thresholds": rates}})
    assert "0.12 (0.08 to 0.17) |" in card and "0.12" not in (exported / "README.md").read_text()


def test_another_student_is_not_replaced(exported, faces, tmp_path, capsys):
    copy, other = shutil.copytree(exported, tmp_path / "copy"), save_student(tmp_path / "other", seed=5)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert export.main([*map(str, (other, copy, "--calibration", faces))]) == 2
    error = capsys.readouterr().err
    assert f"{copy} " in error and error.endswith(" [output-other-student]\n")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_an_onnx_file_of_today_is_read_by_old_runtimes(exported):
    model = onnx.load(exported / "student.onnx")
    assert model.ir_version <= 8 and {each.version for each in model.opset_import if not each.domain} == {17}


@pytest.mark.parametrize("pairs", [{"pairs": "x/pairs.txt"}, {"protocol_settings": {"pairs": "x/pairs.txt"}}, {}])
def test_the_card_names_the_pairs_of_an_evaluation_also_of_an_earlier_version(tmp_path, pairs):
    settings = {"models": {"m": {"fingerprint": "f"}}, "data": "x/lfw", "kernel": "area", **dict.fromkeys(STRENGTHS, 0)}
    document = {"protocol": "lfw", "stand_in": None, "settings": settings | pairs, "results": {}}
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    assert model_card.evaluation(tmp_path, "f")["data"] == ("pairs.txt" if pairs else "lfw")


def test_the_card_has_the_rates_of_the_reports_table(tmp_path):
    settings = {"models": {"m": {"fingerprint": "f"}}, "data": "x", "kernel": "area", **dict.fromkeys(STRENGTHS, 0)}
    found = {"rank_1": 91.0, "tpir_at_fpir": {"0.1": 82.0}, "other": {"0.1": 1.0}}
    intervals = {"rank_1": [90, 92], "tpir_at_fpir.0.1": [80, 84], "other.0.1": [0, 2]}
    document = {
        "protocol": "open_set", "stand_in": None, "settings": settings,
        "results": {"m_16": {**found, "intervals": intervals}},
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    (row,) = model_card.evaluation(tmp_path, "f")["rows"]
    assert row == {"row": "m_16", "rank_1": [91.0, 90, 92], "tpir_at_fpir.0.1": [82.0, 80, 84]}


def test_lfw_is_for_students_of_rgb_faces(tmp_path):
    gray = Recognizer(abstract_student({"resolution": 8, "channels": 1, "width": 0.0625, "embedding_dim": 4}), "area")
    settings = exporter.Settings("gray", "student", (), None, lfw=tmp_path, pairs=None)
    for recognizer in (gray, dataclasses.replace(gray, task=ObjectTask(channels=1))):
        with raises("task-lfw", "--lfw", recognizer.task.images):
            exporter._benchmark(settings, recognizer)
