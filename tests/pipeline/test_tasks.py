"""Other tasks than faces: gray images of classes whose mirror images mean something else, from files to exports."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
from conftest import raises, save_recognizer, use_tiny_student

from gdrd_jax.cli import evaluate, export, recognize
from gdrd_jax.config import default
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.export.demo import Demo
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.pipeline import planning, records, runner, stages, train_stages
from gdrd_jax.pipeline.steps import generative, steps
from gdrd_jax.pipeline.targets import training_faces
from gdrd_jax.utils.arrays import to_rgb, unit

CLASSES, IMAGES, TESTED, SIDE = 4, 6, 2, 16


def make_symbols(root):
    """Gray images 20 x 16 pixels; the last class is the mirror image of the first."""
    rng = np.random.default_rng(0)
    bases = [rng.integers(40, 216, size=(4, 4)).astype(np.float32) for _ in range(CLASSES - 1)]
    for number, base in enumerate([*bases, bases[0][:, ::-1]]):
        (root / f"c{number}").mkdir(parents=True)
        for image in range(IMAGES):
            large = cv2.resize(base, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) + rng.normal(
                scale=8, size=(SIDE, SIDE)
            )
            wide = np.pad(large, ((0, 0), (2, 2)))
            cv2.imwrite(str(root / f"c{number}" / f"{image}.png"), np.clip(wide, 0, 255).astype(np.uint8))
    return root


def config_of(folder, teacher):
    config = use_tiny_student(default())
    config.task.update(name="objects", image_size=SIDE, channels=1, mirror=False)
    config.data.update(path=str(folder), test_people=0, calibration_people=0, test_images=TESTED, mixup_per_face=0.0)
    config.discriminative.path = str(teacher)
    config.views.update(resolution=8, count=1)
    config.degradation.update(random=True, shift=2.0)
    config.student.width = 0.0625
    config.dis.update(init="random", steps=3, batch=8, evaluate_every=0)
    return config


@pytest.fixture(scope="module")
def symbols(tmp_path_factory):
    return make_symbols(tmp_path_factory.mktemp("symbols") / "symbols")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_recognizer(tmp_path_factory.mktemp("teacher") / "teacher.onnx", size=SIDE)


@pytest.fixture(scope="module")
def run(symbols, teacher, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tasks") / "run"
    runner.run(config_of(symbols, teacher), workdir)
    return workdir


def test_a_student_of_gray_symbols(run):
    manifest = json.loads((run / "dis" / "student" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["student"]["channels"] == 1 and manifest["student"]["mirror"] is False
    assert manifest["task"]["image_size"] == SIDE and manifest["task"]["labels"] == "classes"
    views = FeatureStore.open(run / "views" / "test")
    assert views.manifest["shape"] == [8, 8, 1] and views.manifest["views"] == 1  # no mirror image
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["protocol"] == "classification"
    student = metrics["results"]["student"]
    assert (student["n_train"], student["n_test"], student["n_classes"]) == (16, 8, 4)
    assert metrics["results"]["teacher_native"]["top_1"] == 100  # the mirror image of a class is another class
    assert set(metrics["results"]) == {"student", "teacher_native", "teacher_8", "pixels_8"}  # none of faces
    page = (run / "report.html").read_text(encoding="utf-8")
    assert (
        "16 training images and 8 test images of 4 classes (k is 5; chance is 25 %)" in page
        and "people" not in page.split("<details")[0]
    )
    assert not (run / "roc.png").exists() and planning.finished(config_of_run(run), run, ("report",))


def config_of_run(run):
    from gdrd_jax.pipeline.run import Run

    return Run.open(run).config


def test_files_are_embedded_as_in_training_without_their_mirror_images(run, symbols):
    recognizer = Recognizer.load(run)
    stored = FeatureStore.open(run / "views" / "test").read(0)
    files = [symbols / f"c{c}" / f"{i}.png" for c in range(CLASSES) for i in range(IMAGES - TESTED, IMAGES)]
    np.testing.assert_array_equal(np.stack([recognizer.preprocess(file) for file in files]), stored)
    embeddings = recognizer.embed(files)
    np.testing.assert_allclose(embeddings, recognizer.embed(stored), atol=1e-6)
    raw = np.asarray(recognizer.student(stored))
    np.testing.assert_allclose(embeddings, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5)
    with raises("array-shape", "[N, H, W, 1]"):
        recognizer.embed(np.zeros((2, 8, 8, 3), np.uint8))
    with raises("task-align", "--align"):
        recognizer.embed(files, align=True)


def test_gdrd_evaluate_agrees_with_the_report(run, symbols, teacher, tmp_path, capsys):
    arguments = [
        "--protocol", "classification", "--data", symbols, "--test-images", TESTED, "--image-size", SIDE,
        "--resolution", "8", "native", "--no-mirror", "--model", f"student={run}", "--model", f"teacher={teacher}",
    ]  # fmt: skip
    assert evaluate.main([str(a) for a in [*arguments, "--channels", 1, "--out", tmp_path / "out"]]) == 0
    of_run = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["results"]
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["results"]
    for row, other in (("student_8", "student"), ("teacher_8", "teacher_8"), ("teacher_native", "teacher_native")):
        assert {k: found[row][k] for k in ("top_1", "knn")} == {k: of_run[other][k] for k in ("top_1", "knn")}, row
    assert found["teacher_native"]["top_1"] == 100
    capsys.readouterr()
    assert evaluate.main([str(a) for a in [*arguments, "--channels", 3, "--out", tmp_path / "rgb"]]) == 2
    assert "[model-channels]" in (error := capsys.readouterr().err) and "--channels 1" in error
    # With the mirror image the first and the last class are one.
    arguments.remove("--no-mirror")
    assert evaluate.main([str(a) for a in [*arguments, "--channels", 1, "--out", tmp_path / "mirrored"]]) == 0
    mirrored = json.loads((tmp_path / "mirrored" / "metrics.json").read_text(encoding="utf-8"))["results"]
    assert mirrored["teacher_native"]["top_1"] < 100 and mirrored["student_8"]["top_1"] == found["student_8"]["top_1"]
    arguments[arguments.index("--image-size") + 1] = 2 * SIDE
    assert evaluate.main([str(a) for a in [*arguments, "--channels", 1, "--out", tmp_path / "large"]]) == 0
    warnings = {
        name: json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))["warnings"]
        for name in ("out", "large")
    }
    assert not any("--image-size" in warning for warning in warnings["out"])
    assert [warning.split()[0] for warning in warnings["large"] if f"--image-size {SIDE}" in warning] == ["student"]


def test_an_exported_student_knows_its_task(run, symbols, tmp_path, capsys):
    assert export.main([str(run), str(tmp_path / "exported"), "--format", "onnx", "onnx_nchw", "stablehlo"]) == 0
    manifest = json.loads((tmp_path / "exported" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["task"]["channels"] == 1 and manifest["student"]["mirror"] is False
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "[N, 8, 8, 1]; unit length is inside" in card and "people" not in card and "aligned" not in card
    stored = FeatureStore.open(run / "views" / "test").read(0)
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "student.onnx")
    embeddings = Recognizer.load(run).embed(stored)
    np.testing.assert_allclose(session.run(None, {"faces": stored})[0], embeddings, atol=1e-5)
    other = session.run(None, {"faces": np.ascontiguousarray(stored[:, :, ::-1])})[0]
    assert np.abs(other - embeddings).max() > 0.01
    assert np.abs(Recognizer.load(tmp_path / "exported").embed(stored) - embeddings).max() < 1e-6
    out = tmp_path / "embeddings.npz"
    assert recognize.main(["embed", str(symbols / "c1"), "--model", str(tmp_path / "exported"), "--out", str(out)]) == 0
    assert np.load(out)["embeddings"].shape == (IMAGES, embeddings.shape[1])


def test_what_is_for_faces_refuses_other_tasks(run, teacher, tmp_path, capsys):
    with raises("task-packed", run):
        training_faces(run)
    assert export.main([str(run), str(tmp_path / "exported"), "--teacher", str(teacher)]) == 2
    assert "[task-native]" in (error := capsys.readouterr().err) and "--teacher" in error
    with raises("task-demo", run):
        Demo.load([run], None, None, align=False, far=0.01)


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        ({"task.image_size": 7}, "entry-setting", ("image_size is 7",)),
        ({"views.resolution": 32}, "task-image-size", ("32", "16 pixels")),
        ({"data.align": True}, "task-align", ("config.data.align",)),
        ({"data.test_people": 2}, "split-both", ("config.data.test_people=0",)),
        ({"data.test_images": IMAGES}, "class-few-images", ("'c0'", f"{IMAGES} images")),
        ({"task.name": "object"}, "entry-unknown", ("'objects'",)),
        ({"dev.path": "lfw.bin"}, "task-dev", ("config.dev.path",)),
        (
            {"data.test_images": 0, "data.test_people": 4, "data.calibration_people": 2},
            "people-too-few",
            ("4 classes",),
        ),
    ],
)
def test_mistakes_are_found_before_any_work(symbols, teacher, tmp_path, change, code, facts):
    config = config_of(symbols, teacher)
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        config[section][name] = value
    with raises(code, *facts):
        runner.validate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_steps_that_see_the_mirror_image_depend_on_it(symbols, teacher):
    config = config_of(symbols, teacher)
    config.discriminative.tap = "p"
    both = default()
    both.update(config)
    both.task.mirror = True
    changed = {}
    for step in steps(config):
        one, other = (
            records.origin_of(step, c, step.files(c), dict.fromkeys(step.after(c), "")) for c in (config, both)
        )
        changed[step.name] = one != other
    assert [name for name in changed if changed[name]] == [
        "faces", "views", "hr_small", "discriminative", "hr_features", "teacher",
    ]  # fmt: skip


@pytest.mark.parametrize("mirror", [True, False])
def test_a_head_on_features_of_a_teacher_is_judged_without_mirror_images_of_what_has_none(monkeypatch, mirror):
    images = np.random.default_rng(0).integers(256, size=(3, 8, 8, 1), dtype=np.uint8)
    network = SimpleNamespace(features=lambda images: images.transpose(0, 3, 1, 2).astype(np.float32))

    class Student:
        shape = SimpleNamespace(mirror=mirror)

        def __call__(self, features):
            return features.reshape(len(features), -1)

    monkeypatch.setattr(generative, "load", lambda run: network)
    monkeypatch.setattr(stages, "is_teacher_features", lambda config: True)
    found = train_stages._embedder(None, None, Student(), images)()
    wanted = to_rgb(images).transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(found, unit(wanted + wanted[..., ::-1] if mirror else wanted), rtol=1e-5)
