"""The examples of docs/extending.md: a loss and a student outside the package, trained, evaluated and exported."""

import json
import re
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import onnxruntime
import pytest
from conftest import raises, tiny_config
from flax import nnx

from gdrd_jax import registry
from gdrd_jax.cli import __main__ as commands
from gdrd_jax.cli import export
from gdrd_jax.data.degradation import resize
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.losses import DataInfo, Outputs
from gdrd_jax.pipeline import planning, runner, train_stages

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def code_of(page, first_line):
    """The Python block of a page that begins with this docstring."""
    return re.search(rf"```python\n(\"\"\"{first_line}.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]


def example(module, folder, monkeypatch):
    """Writes the example of a module into a folder, from which it can be imported."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(code_of(PAGE, f"{module}.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    return module


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    yield example("my_losses", tmp_path / "plugins", monkeypatch)
    registry.losses._entries.pop("my_arcface", None)
    sys.modules.pop("my_losses", None)


def test_a_sampler_of_another_module_is_a_pure_function_of_seed_and_step():
    names = {}
    try:
        exec(code_of(PAGE, "my_samplers.py"), names)
        labels = np.repeat([0, 1, -1], [30, 3, 10]).astype(np.int32)
        sampler = registry.samplers["my_identities"](registry.samplers.settings("my_identities", {}), labels, 2)
        rows = sampler(0, range(50), 40)
        np.testing.assert_array_equal(sampler(0, range(20, 22), 40)["rows"], rows["rows"][20:22])
        shares = np.bincount(labels[rows["rows"]].ravel(), minlength=2) / 2000
        np.testing.assert_allclose(shares, [0.5, 0.5], atol=0.05)
    finally:
        registry.samplers._entries.pop("my_identities", None)


def test_a_task_of_another_module_says_how_images_are_read(tmp_path):
    try:
        exec(code_of(PAGE, "my_tasks.py"), {"__name__": "my_tasks"})
        thermal = np.random.default_rng(0).integers(0, 16383, size=(3, 2, 64, 64)).astype(np.uint16)
        thermal[0, 0, 0, 0] = 20000
        for person in range(3):
            (tmp_path / "faces" / f"p{person}").mkdir(parents=True)
            for image in range(2):
                cv2.imwrite(str(tmp_path / "faces" / f"p{person}" / f"{image}.png"), thermal[person, image])
        config = tiny_config(tmp_path / "faces")
        config.task.name = "my_thermal_faces"
        config.data.update(test_people=1, calibration_people=0, mixup_per_face=0.0)
        runner.run(config, tmp_path / "run", ("views",))
        views = FeatureStore.open(tmp_path / "run" / "views" / "train").read(0)
        read = np.rint(np.minimum(thermal[0, 0], 16383) * (255 / 16383)).astype(np.uint8)
        np.testing.assert_array_equal(views[0, ..., 0], resize(read[..., None], 16, "area")[..., 0])
        assert views.shape == (4, 16, 16, 1)
        config.data.test_people = 3
        with raises("people-too-few", "3 people"):
            runner.validate(config, tmp_path / "run", ("views",))
    finally:
        registry.tasks._entries.pop("my_thermal_faces", None)


def test_the_assistant_of_the_page_on_training_is_planned_before_the_student(faces_folder, tmp_path):
    names = {}
    exec(code_of(PAGE.with_name("training.md"), "assistant.py"), names)
    config = names["get_config"]()
    config.data.update(path=str(faces_folder), test_people=2, calibration_people=2, mixup_per_face=0.0)
    config.discriminative.path = "sface"
    steps = [step.name for step in planning.plan(config, tmp_path / "run")]
    order = [steps.index(name) for name in ("hr_small", "assistant", "assistant_embeddings", "dis", "report")]
    assert order == sorted(order) and "gen" not in steps


@pytest.fixture
def student_plugin(tmp_path, monkeypatch):
    yield example("my_students", tmp_path / "plugins", monkeypatch)
    registry.students._entries.pop("my_separable", None)
    sys.modules.pop("my_students", None)


def test_a_loss_of_another_module_trains_a_student(plugin, faces_folder, tmp_path):
    config = tiny_config(faces_folder)
    config.plugins = (plugin,)
    config.dis.losses = {"my_arcface": {"weight": 1.0, "margin": 0.3}, "embedding_cosine": {"weight": 0.5}}
    config.dis.steps = 20
    runner.run(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "dis" / "metrics.json").read_text(encoding="utf-8"))
    assert {"my_arcface", "own_cosine", "embedding_cosine", "dev_accuracy"} <= metrics.keys()
    assert metrics["loss"] == pytest.approx(metrics["my_arcface"] + 0.5 * metrics["embedding_cosine"], rel=1e-5)
    origin = json.loads((tmp_path / "run" / "dis" / "step.json").read_text(encoding="utf-8"))["origin"]
    assert origin["settings"]["dis"]["losses"]["my_arcface"] == {"margin": 0.3, "weight": 1.0}
    assert not list((tmp_path / "run" / "dis" / "student").rglob("*classes*"))  # thrown away
    assert "student" in json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["results"]
    config.dis.losses.my_arcface.margin = 2.0
    with raises("entry-setting", "'my_arcface'", "margin is 2.0"):
        planning.validate(config, tmp_path / "run")


def test_it_is_arcface(plugin):
    registry.load_plugins((plugin,))
    rng = np.random.default_rng(0)
    embedding, label = rng.normal(size=(6, 8)).astype(np.float32), np.array([0, 1, 2, -1, 1, 0])
    info = DataInfo(identities=3, embedding_dim=8)
    settings = registry.losses.settings("my_arcface", {"scale": 16.0, "margin": 0.4})
    loss = registry.losses["my_arcface"](settings, info, rngs=nnx.Rngs(0))
    found, _ = loss(Outputs(features=embedding, embedding=embedding), {"label": label}, jax.random.key(0))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    cosine = unit(np.float64(embedding)) @ unit(np.float64(loss.classes[...]).T).T
    expected = []
    for row, own in enumerate(label):
        if own >= 0:
            logits = 16.0 * cosine[row]
            logits[own] = 16.0 * np.cos(np.arccos(cosine[row, own]) + 0.4)
            expected.append(np.log(np.exp(logits).sum()) - logits[own])
    assert found == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_list_shows_losses_and_those_of_plugins(plugin, capsys):
    assert commands.main(["--plugin", plugin, "list", "losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(registry.losses.names())
    assert "my_arcface: Cross-entropy of scaled cosines" in "\n".join(lines) and "margin=0.5" in "\n".join(lines)
    assert any(line.startswith("rcd: ") and "tau=0.4" in line for line in lines)


def test_a_student_of_another_module_is_trained_evaluated_exported_and_continued(
    student_plugin, faces_folder, tmp_path
):
    config = tiny_config(faces_folder)
    config.plugins = (student_plugin,)
    config.student.update(name="my_separable", settings={"channels": 8}, width=1.0, hidden=(), head_stages=0)
    config.dis.update(init="random", freeze=(), steps=5)
    config.until = "dis"
    runner.run(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "dis" / "metrics.json").read_text(encoding="utf-8"))
    assert 0 <= metrics["dev_accuracy"] <= 100
    folder = tmp_path / "exported"
    words = ["--format", "onnx", "stablehlo", "--calibration", faces_folder]
    assert export.main([*map(str, (tmp_path / "run", folder, *words))]) == 0
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["student"] == {
        "name": "my_separable", "module": "my_students", "settings": {"channels": 8}, "resolution": 16, "channels": 3,
        "embedding_dim": 128,
    }  # fmt: skip
    assert "Network `my_separable`, channels 8." in (folder / "README.md").read_text(encoding="utf-8")
    recognizer = Recognizer.load(folder)
    faces = np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    wanted, session = recognizer.embed(faces), onnxruntime.InferenceSession(folder / "student.onnx")
    for count in (1, 3):
        found = session.run(None, {"faces": faces[:count]})[0]
        np.testing.assert_allclose(found, wanted[:count], atol=1e-5)
    config.student.init = str(folder)
    begun = train_stages._student(config, 128)
    np.testing.assert_array_equal(begun.backbone.stem.kernel[...], recognizer.student.backbone.stem.kernel[...])
    config.views.resolution = 8
    with raises("student-resolution", "'my_separable'", "16, 32"):
        planning.validate(config, tmp_path / "run")


def test_a_command_imports_a_plugin_first(student_plugin, capsys):
    assert commands.main(["--plugin", student_plugin, "list", "students"]) == 0
    assert "my_separable: Two blocks of depthwise separable convolutions" in capsys.readouterr().out
    assert commands.main(["--plugin", "not_there", "list", "students"]) == 2
    assert "[plugin-import]" in capsys.readouterr().err
