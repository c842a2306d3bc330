"""A recognizer that is fed wrongly is noticed: by its figure on native LFW, and by what its file says."""

import json

import numpy as np
import onnx
import pytest
from conftest import make_faces, save_recognizer
from onnx import helper, numpy_helper

from gdrd_jax.config import default
from gdrd_jax.evaluation.run import evaluate_and_report
from gdrd_jax.evaluation.settings import Settings
from gdrd_jax.inference.embedders import open_model
from gdrd_jax.pipeline.steps import discriminative, generative
from gdrd_jax.teachers import load_discriminative
from gdrd_jax.utils.errors import GdrdError

PEOPLE, FOLDS = 8, 2
pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def lfw_folder(tmp_path_factory):
    root = make_faces(tmp_path_factory.mktemp("faces"), PEOPLE, 2)
    for person in range(PEOPLE):
        for image in range(2):
            (root / f"p{person}" / f"{image}.png").rename(root / f"p{person}" / f"p{person}_{image + 1:04d}.png")
    count, lines = PEOPLE // FOLDS, [f"{FOLDS}\t{PEOPLE // FOLDS}"]
    for fold in range(FOLDS):
        people = [f"p{fold * count + i}" for i in range(count)]
        lines += [f"{p}\t1\t2" for p in people]
        lines += [f"{p}\t1\t{q}\t2" for p, q in zip(people, people[1:] + people[:1])]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root


def changed(path, *nodes, outputs=(), **constants):
    """An ONNX file whose input goes through more nodes, from "x" to "z"."""
    model = onnx.load(path)
    graph = model.graph
    if nodes:
        for node in graph.node:
            node.input[:] = ["z" if name == "x" else name for name in node.input]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    graph.output.extend(outputs)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    onnx.save(model, path)
    return path


def run(lfw_folder, out, *models, resolutions=("native",), **settings):
    pairs = {"pairs": str(lfw_folder / "pairs.txt")}
    evaluate_and_report(
        Settings("lfw", lfw_folder, tuple(map(str, models)), resolutions, protocol_settings=pairs, **settings), out
    )
    return json.loads((out / "metrics.json").read_text()), (out / "report.html").read_text()


def test_a_low_figure_on_native_lfw_is_warned_of(lfw_folder, tmp_path, caplog):
    good = save_recognizer(tmp_path / "good.onnx")
    blind = save_recognizer(tmp_path / "blind.onnx")
    changed(blind, helper.make_node("Mul", ["x", "k"], ["z"]), k=np.float32(0))
    document, page = run(lfw_folder, tmp_path / "a", good, f"blind={blind}:arcface")
    assert document["results"]["good_native"]["accuracy"] >= 90 > document["results"]["blind_native"]["accuracy"]
    (warning,) = document["warnings"]
    assert warning.startswith("blind has ") and "look at its preprocessing (arcface)" in warning
    assert warning in caplog.text and "look at its preprocessing (arcface)" in page
    # Low resolution and noise may cost as much, but not all.
    for name, settings in (("b", {"resolutions": ("8",)}), ("c", {"noise": 1.0})):
        (warning,) = run(lfw_folder, tmp_path / name, f"blind={blind}:arcface", **settings)[0]["warnings"]
        assert warning.startswith("blind_") and "AUC of 50.0 %" in warning and "preprocessing" not in warning
    assert run(lfw_folder, tmp_path / "d", good, resolutions=("8",))[0]["warnings"] == []


def test_what_a_file_says_of_its_preprocessing_is_in_the_report(lfw_folder, tmp_path):
    guess = changed(save_recognizer(tmp_path / "m.onnx"), helper.make_node("Abs", ["x"], ["z"]))
    document, page = run(lfw_folder, tmp_path / "out", guess)
    assert any("begins with Abs" in warning for warning in document["warnings"])
    assert "begins with Abs" in page and document["settings"]["models"]["m"]["warnings"]


def test_the_output_can_be_chosen(lfw_folder, tmp_path):
    path = save_recognizer(tmp_path / "m.onnx")
    changed(path, outputs=[helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, ["N", 48])])
    with pytest.raises(GdrdError, match=r"several outputs .*y \[1, 48\], f \[1, 48\] .*--output y"):
        run(lfw_folder, tmp_path / "out", path)
    chosen = [run(lfw_folder, tmp_path / "out", path, output=name)[0]["settings"]["models"]["m"] for name in "yf"]
    assert [model["output"] for model in chosen] == ["y", "f"]
    assert chosen[0]["fingerprint"] != chosen[1]["fingerprint"]
    assert open_model(str(path), "f").settings["output"] == "f"


def test_a_run_knows_the_output_and_every_file_of_its_teachers(tmp_path):
    config = default()
    config.discriminative.path = str(save_recognizer(tmp_path / "m.onnx"))
    whole = discriminative.files(config)
    assert list(whole) == ["discriminative.path"]
    assert whole["discriminative.path"] == load_discriminative(config.discriminative.path).settings["sha256"]
    config.discriminative.output = "f"
    assert discriminative.files(config) == {**whole, "discriminative.output": "f"}
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(9, np.float32), "unused"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    before = discriminative.files(config)
    (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes()[:-1] + b"\1")
    assert discriminative.files(config) != before


def test_what_is_said_of_the_attention_alone_is_in_a_runs_fingerprint():
    config = default()
    config.generative.kind = "pgdiff"
    before = generative.files(config)
    assert set(before) == {"tap", "input_size", "timestep"}
    config.generative.settings = {"heads": 4}
    assert generative.files(config) == {**before, "heads": "4"}
