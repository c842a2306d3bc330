"""The examples of the pages: a loss outside the package trains a student, a protocol outside of it evaluates one."""

import dataclasses
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
from gdrd_jax.cli import evaluate, list_entries
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.losses import DataInfo, Outputs
from gdrd_jax.pipeline import runner

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


def test_the_assistant_of_the_page_on_training_is_planned_before_the_student(faces_folder, tmp_path):
    names = {}
    exec(code_of(PAGE.with_name("training.md"), "assistant.py"), names)
    config = names["get_config"]()
    config.data.update(path=str(faces_folder), test_people=2, calibration_people=2, mixup_per_face=0.0)
    config.discriminative.path = "sface"
    steps = [step.name for step in runner.plan(config, tmp_path / "run")]
    order = [steps.index(name) for name in ("hr_small", "assistant", "assistant_embeddings", "dis", "report")]
    assert order == sorted(order) and "gen" not in steps


@pytest.fixture
def protocol(tmp_path, monkeypatch):
    yield example("my_protocols", tmp_path / "plugins", monkeypatch)
    registry.protocols._entries.pop("neighbors", None)
    sys.modules.pop("my_protocols", None)


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
        runner.validate(config, tmp_path / "run")


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
    assert list_entries.main(["losses", "--plugins", plugin]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(registry.losses.names())
    assert "my_arcface: Cross-entropy of scaled cosines" in "\n".join(lines) and "margin=0.5" in "\n".join(lines)
    assert any(line.startswith("rcd: ") and "tau=0.4" in line for line in lines)
    assert list_entries.main(["losses", "--plugins", "not_there"]) == 2
    assert "[plugin-import]" in capsys.readouterr().err


def test_a_protocol_of_another_module_evaluates_a_student(protocol, faces_folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--plugins", protocol, "--protocol", "neighbors", "--data", faces_folder, "--model", "gdrd-16-small"]

    def run(*more):
        return evaluate.main([*map(str, words), *more, "--out", str(out)])

    assert run("--k", "2") == 0
    document = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert document["protocol"] == "neighbors" and document["settings"]["protocol_settings"] == {"k": 2}
    row = document["results"]["gdrd-16-small_16"]
    paths = sorted(faces_folder.glob("*/*.png"))
    people = np.array([path.parent.name for path in paths])
    embeddings = Recognizer.load("gdrd-16-small").embed(paths)
    right = 0
    for face, embedding in enumerate(embeddings):
        others = [other for other in np.argsort(-(embeddings @ embedding), kind="stable") if other != face]
        first, second = people[others[:2]]
        right += min(first, second) == people[face]  # of two with one vote each the first name counts
    assert row["n_faces"] == 21 and row["accuracy"] == pytest.approx(100 * right / 21, abs=1e-4)
    low, high = row["intervals"]["accuracy"]
    assert low <= row["accuracy"] <= high
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Nearest neighbors: 16x16" in page and "Faces as the model receives them." in page
    assert run() == 0  # the folder is known as an evaluation
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["settings"]["protocol_settings"] == {"k": 1}
    for more, code, facts in (
        (["--k", "0"], "entry-setting", ["'neighbors'", "k is 0"]),
        (["--k", "two"], "command-usage", ["--k", "two"]),
        (["--pairs", "x"], "command-usage", ["--pairs"]),
        (["--protocol", "neighbours"], "entry-unknown", ["'neighbours'", "'neighbors'"]),
        (["--plugins", "not_there"], "plugin-import", ["'not_there'"]),
    ):
        capsys.readouterr()
        assert run(*more) == 2
        error = capsys.readouterr().err
        assert error.endswith(f"[{code}]\n") and all(fact in error for fact in facts), error


def test_help_and_list_show_a_protocol_and_its_settings(protocol, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--plugins", protocol, "--protocol", "neighbors", "--help"])
    text = capsys.readouterr().out
    assert "PERSON/IMAGE; each face is a probe" in text and "number of neighbors that vote" in text
    assert list_entries.main(["protocols", "--plugins", protocol]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(registry.protocols.names())
    assert any(line.startswith("neighbors: PERSON/IMAGE;") and line.endswith("Settings: k=1.") for line in lines)


def test_a_protocol_cannot_take_an_option_of_the_command(protocol, capsys):
    registry.load_plugins((protocol,))

    class Config:
        """Settings."""

    Config.__annotations__ = {"seed": int}
    Config.seed = 3
    registry.protocols["neighbors"].Config = dataclasses.dataclass(frozen=True)(Config)
    assert evaluate.main(["--protocol", "neighbors", "--data", "x", "--out", "y"]) == 2
    error = capsys.readouterr().err
    assert "'neighbors'" in error and "'seed'" in error and error.endswith("[protocol-setting-name]\n")
