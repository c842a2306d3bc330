"""The examples of docs/extending.md: entries outside the package train a student, which is evaluated and exported."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import raises, tiny_config
from flax import nnx

from gdrd_jax import registry
from gdrd_jax.cli import list_entries
from gdrd_jax.data.degradation import resize_all
from gdrd_jax.losses import DataInfo, Outputs
from gdrd_jax.pipeline import planning, runner
from gdrd_jax.pipeline.run import Run

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def save_example(name, folder):
    """Writes the module NAME.py of the page into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code_of(PAGE, f"{name}.py"), encoding="utf-8")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    save_example("my_losses", tmp_path / "plugins")
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    yield "my_losses"
    registry.losses._entries.pop("my_arcface", None)
    sys.modules.pop("my_losses", None)


def code_of(page, first_line):
    """The Python block of a page that begins with this docstring."""
    return re.search(rf"```python\n(\"\"\"{first_line}.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]


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


def test_the_assistant_of_the_page_on_training_is_planned_before_the_student(faces_folder, tmp_path):
    names = {}
    exec(code_of(PAGE.with_name("training.md"), "assistant.py"), names)
    config = names["get_config"]()
    config.data.update(path=str(faces_folder), test_people=2, calibration_people=2, mixup_per_face=0.0)
    config.discriminative.path = "sface"
    steps = [step.name for step in planning.plan(config, tmp_path / "run")]
    order = [steps.index(name) for name in ("hr_small", "assistant", "assistant_embeddings", "dis", "report")]
    assert order == sorted(order) and "gen" not in steps


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
    assert list_entries.main(["losses", "--plugin", plugin]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(registry.losses.names())
    assert "my_arcface: Cross-entropy of scaled cosines" in "\n".join(lines) and "margin=0.5" in "\n".join(lines)
    assert any(line.startswith("rcd: ") and "tau=0.4" in line for line in lines)
    assert list_entries.main(["losses", "--plugin", "not_there"]) == 2
    assert "[plugin-import]" in capsys.readouterr().err


@pytest.fixture
def teachers(tmp_path, monkeypatch):
    """Both teachers of the page, with files for them; in the order of the page."""
    names, rng = ("my_filters", "my_eigenfaces"), np.random.default_rng(0)
    for name in names:
        save_example(name, tmp_path / "plugins")
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    np.savez(tmp_path / "bank.npz", w=rng.normal(size=(8, 3, 4, 4)).astype(np.float32))
    np.savez(tmp_path / "faces.npz", mean=np.full((64, 64), 127.5), components=rng.normal(size=(27, 64, 64)) / 64)
    yield names
    registry.generative_teachers._entries.pop("my_filters", None)
    registry.discriminative_teachers._entries.pop("my_eigenfaces", None)
    for name in names:
        sys.modules.pop(name, None)


def test_teachers_of_other_modules_train_a_student(teachers, faces_folder, tmp_path):
    config = tiny_config(faces_folder)
    config.plugins = teachers
    config.generative.update(kind="my_filters", path=str(tmp_path / "bank.npz"), settings={"stride": 4})
    config.discriminative.update(kind="my_eigenfaces", path=str(tmp_path / "faces.npz"))
    config.gen.steps = config.dis.steps = 9
    runner.run(config, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    low, features = (run.store(step, "test").read(0) for step in ("views", "generative"))
    bank = np.load(tmp_path / "bank.npz")["w"]
    pixels = resize_all(low, 32, "bicubic").astype(np.float32) / 127.5 - 1
    expected = (pixels[:, 8:12, 20:24] * bank[5].transpose(1, 2, 0)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(features[:, 5, 2, 5], expected, rtol=1e-2, atol=1e-2)  # stored as float16
    assert features.shape[1:] == (8, 8, 8)
    face = resize_all(run.faces("test"), 64)[0]
    component = np.load(tmp_path / "faces.npz")["components"][3]
    embedding = run.store("discriminative", "test").read(0)[0]
    assert len(embedding) == 24
    assert embedding[0] == pytest.approx(((face.mean(axis=2) - 127.5) * component).sum(), rel=1e-2)
    results = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["results"]
    assert {"student", "faces_native", "faces_16"} <= results.keys()  # its teacher, of 64 pixels, stands beside it
    for step, changed in (("generative", {"stride": 2}), ("discriminative", {"skip": 0})):
        before = [each.action for each in runner.plan(config, tmp_path / "run") if each.name == step]
        config[step].settings = changed
        after = [each.action for each in runner.plan(config, tmp_path / "run") if each.name == step]
        assert (before, after) == (["skip"], ["run"])


def test_mistakes_with_teachers_of_other_modules_are_found_first(teachers, faces_folder, tmp_path):
    config = tiny_config(faces_folder)
    config.plugins = teachers
    config.generative.update(kind="my_filters", path=str(tmp_path / "bank.npz"))
    config.discriminative.update(kind="my_eigenfaces", path=str(tmp_path / "faces.npz"))
    for change, code, facts in (
        ({"generative.kind": "my_filter"}, "entry-unknown", ["'my_filter'", "'my_filters'"]),
        ({"generative.settings": {"strides": 2}}, "entry-setting", ["'my_filters'", "'strides'", "'stride'"]),
        ({"generative.settings": {"stride": 0}}, "entry-setting", ["stride is 0"]),
        ({"generative.tap": "linaer"}, "teacher-tap", ["'linaer'", "linear, rectified"]),
        ({"generative.path": "none.npz"}, "generative-none", ["'none.npz'", "'my_filters'"]),
        ({"generative.precision": "bfloat16"}, "teacher-option", ["config.generative.precision", "'my_filters'"]),
        ({"discriminative.kind": "eigenface"}, "entry-unknown", ["'eigenface'", "'my_eigenfaces'"]),
        ({"discriminative.settings": {"skip": "3"}}, "entry-setting", ["'skip'", "'3'", "int"]),
        ({"discriminative.input_size": 112}, "teacher-option", ["config.discriminative.input_size", 112]),
        ({"discriminative.preprocessing": "unit"}, "teacher-option", ["config.discriminative.preprocessing", "'unit'"]),
        ({"discriminative.path": "none.npz"}, "file-missing", ["'none.npz'"]),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.update_from_flattened_dict(change)
        with raises(code, *facts):
            runner.run(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_list_shows_teachers(teachers, capsys):
    assert list_entries.main(["generative_teachers", "--plugin", *teachers]) == 0
    shown = capsys.readouterr().out
    assert "my_filters: Responses of the filters" in shown and "stride=2" in shown
    assert "diffusers: " in shown and "timestep=-1" in shown and "onnx: " in shown and "heads=0" in shown
    assert list_entries.main(["discriminative_teachers", "--plugin", *teachers]) == 0
    shown = capsys.readouterr().out
    assert "my_eigenfaces: Projections" in shown and "skip=3" in shown and "iresnet: " in shown
