"""The examples of docs/extending.md: entries outside the package that train, evaluate and export a student."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import onnxruntime
import pytest
from conftest import raises, tiny_config, use_tiny_student, use_tiny_teachers
from flax import nnx
from runs import COSINE

from gdrd_jax import registry
from gdrd_jax.cli import __main__ as commands
from gdrd_jax.cli import evaluate, export
from gdrd_jax.data.degradation import resize, resize_all
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.losses import DataInfo, Outputs
from gdrd_jax.pipeline import planning, runner, train_stages
from gdrd_jax.pipeline.run import Run

pytestmark = pytest.mark.usefixtures("few_rows")
PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def code_of(page, first_line):
    """The Python block of a page that begins with this docstring."""
    return re.search(rf"```python\n(\"\"\"{first_line}.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]


def example(module, folder, monkeypatch):
    """Writes the example of a module into a folder, from which it can be imported."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code_of(PAGE, f"{module}.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    return module


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    yield example("my_losses", tmp_path / "plugins", monkeypatch)
    registry.losses._entries.pop("my_arcface", None)
    sys.modules.pop("my_losses", None)


def test_the_smallest_loss_needs_neither_settings_nor_parameters():
    try:
        exec(code_of(PAGE, "my_distance.py"), {"__name__": "my_distance"})
        loss = registry.losses["my_distance"](registry.losses.settings("my_distance", {}), DataInfo(), rngs=nnx.Rngs(0))
        student, teacher = np.float32([[3.0, 4.0], [0.0, 2.0]]), np.float32([[1.0, 0.0], [0.0, 1.0]])
        value, figures = loss(
            Outputs(np.zeros((2, 1, 1, 1)), embedding=student, teacher=teacher), {}, jax.random.key(0)
        )
        assert float(value) == pytest.approx((0.4 + 0.8) / 4) and figures == {}
    finally:
        registry.losses._entries.pop("my_distance", None)


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
    config = use_tiny_student(use_tiny_teachers(tiny_config(faces_folder)))
    config.plugins = (*config.plugins, plugin)
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
    call = lambda x: loss(Outputs(features=x, embedding=x), {"label": label}, jax.random.key(0))  # noqa: E731
    found, _ = jax.jit(call)(embedding)
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
    assert commands.main(["list"]) == 0
    kinds = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert "my_arcface" in kinds["losses"].split(", ") and kinds["tasks"] == "faces, objects" and len(kinds) == 9


def test_a_student_of_another_module_is_trained_evaluated_exported_and_continued(
    student_plugin, faces_folder, tmp_path
):
    config = use_tiny_teachers(tiny_config(faces_folder))
    config.plugins = (*config.plugins, student_plugin)
    config.student.update(name="my_separable", settings={"channels": 8}, width=1.0, hidden=(), head_stages=0)
    config.dis.update(init="random", freeze=(), steps=5, losses=COSINE)
    config.until = "dis"
    runner.run(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "dis" / "metrics.json").read_text(encoding="utf-8"))
    assert 0 <= metrics["dev_accuracy"] <= 100
    folder = tmp_path / "exported"
    words = ["--format", "onnx", "--calibration", faces_folder]
    assert export.main([*map(str, (tmp_path / "run", folder, *words))]) == 0
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["student"] == {
        "name": "my_separable", "module": "my_students", "settings": {"channels": 8}, "resolution": 16, "channels": 3,
        "embedding_dim": 48,
    }  # fmt: skip
    assert "Network `my_separable`, channels 8." in (folder / "README.md").read_text(encoding="utf-8")
    recognizer = Recognizer.load(folder)
    faces = np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    wanted, session = recognizer.embed(faces), onnxruntime.InferenceSession(folder / "student.onnx")
    for count in (1, 3):
        found = session.run(None, {"faces": faces[:count]})[0]
        np.testing.assert_allclose(found, wanted[:count], atol=1e-5)
    config.student.init = str(folder)
    begun = train_stages._student(config, 48)
    np.testing.assert_array_equal(begun.backbone.stem.kernel[...], recognizer.student.backbone.stem.kernel[...])
    config.views.resolution = 8
    with raises("student-resolution", "'my_separable'", "16, 32"):
        planning.validate(config, tmp_path / "run")


def test_a_student_with_embeddings_of_another_size_is_refused_first(
    student_plugin, faces_folder, tmp_path, monkeypatch
):  # fmt: skip
    registry.load_plugins((student_plugin,))

    class Wrong(registry.students["my_separable"]):
        def __init__(self, config, shape, *, rngs):
            super().__init__(config, shape, rngs=rngs)
            self.head.linear = nnx.Linear(self.head.linear.in_features, 7, rngs=rngs)

    monkeypatch.setitem(registry.students._entries, "my_wrong", Wrong)
    config = tiny_config(faces_folder)
    config.student.update(name="my_wrong", width=1.0, hidden=(), head_stages=0)
    config.dis.update(init="random", freeze=())
    with raises("student-output", "'my_wrong'", "[2, 7]", "[2, 24]"):
        planning.validate(config, tmp_path / "run")


@pytest.mark.parametrize("names", [("gdrd",), pytest.param(registry.students.names(), marks=pytest.mark.slow)])
def test_a_command_imports_a_plugin_first(student_plugin, capsys, monkeypatch, names):
    monkeypatch.setattr(registry.students, "_entries", {name: registry.students[name] for name in names})
    assert commands.main(["--plugin", student_plugin, "list", "students"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (own,) = (line for line in lines if line.startswith("my_separable: Two blocks of depthwise separable convolutions"))
    weights = 896 + 2528 + 9152 + 129 * 512  # of the stem, the blocks and the head
    assert "channels=32" in own and own.endswith(f"Parameters at 16x16: {weights / 1e6:.2f} M.")
    assert len(lines) == len(registry.students.names()) and all(" at 16x16: " in line for line in lines)
    assert commands.main(["--plugin", "not_there", "list", "students"]) == 2
    assert "[plugin-import]" in capsys.readouterr().err


@pytest.fixture
def teachers(tmp_path, monkeypatch):
    """Both teachers of the page, with files for them; in the order of the page."""
    names, rng = ("my_filters", "my_eigenfaces"), np.random.default_rng(0)
    for name in names:
        example(name, tmp_path / "plugins", monkeypatch)
    np.savez(tmp_path / "bank.npz", w=rng.normal(size=(8, 3, 4, 4)).astype(np.float32))
    np.savez(tmp_path / "faces.npz", mean=np.full((64, 64), 127.5), components=rng.normal(size=(27, 64, 64)) / 64)
    yield names
    registry.generative_teachers._entries.pop("my_filters", None)
    registry.discriminative_teachers._entries.pop("my_eigenfaces", None)
    for name in names:
        sys.modules.pop(name, None)


def test_teachers_of_other_modules_train_a_student(teachers, faces_folder, tmp_path):
    config = use_tiny_student(tiny_config(faces_folder))
    config.plugins = (*config.plugins, *teachers)
    config.generative.update(kind="my_filters", path=str(tmp_path / "bank.npz"), settings={"stride": 4})
    config.discriminative.update(kind="my_eigenfaces", path=str(tmp_path / "faces.npz"))
    config.gen.steps = config.dis.steps = 9
    config.dis.losses = COSINE
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
        before = [each.action for each in planning.plan(config, tmp_path / "run") if each.name == step]
        config[step].settings = changed
        after = [each.action for each in planning.plan(config, tmp_path / "run") if each.name == step]
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
    plugins = [word for name in teachers for word in ("--plugin", name)]
    assert commands.main([*plugins, "list", "generative_teachers"]) == 0
    shown = capsys.readouterr().out
    assert "my_filters: Responses of the filters" in shown and "stride=2" in shown
    assert "diffusers: " in shown and "timestep=-1" in shown and "onnx: " in shown and "heads=0" in shown
    assert commands.main([*plugins, "list", "discriminative_teachers"]) == 0
    shown = capsys.readouterr().out
    assert "my_eigenfaces: Projections" in shown and "skip=3" in shown and "iresnet: " in shown


@pytest.fixture
def protocol(tmp_path, monkeypatch):
    yield example("my_protocols", tmp_path / "plugins", monkeypatch)
    registry.protocols._entries.pop("neighbors", None)
    sys.modules.pop("my_protocols", None)


def test_a_protocol_of_another_module_evaluates_a_student(protocol, faces_folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--protocol", "neighbors", "--data", faces_folder, "--model", "gdrd-16-small", "--out", out]

    def run(*more):
        return commands.main(["--plugin", protocol, "evaluate", *map(str, words), *more])

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
    ):
        capsys.readouterr()
        assert run(*more) == 2
        error = capsys.readouterr().err
        assert error.endswith(f"[{code}]\n") and all(fact in error for fact in facts), error


def test_help_and_list_show_a_protocol_and_its_settings(protocol, capsys):
    with pytest.raises(SystemExit):
        commands.main(["--plugin", protocol, "evaluate", "--protocol", "neighbors", "--help"])
    text = capsys.readouterr().out
    assert "PERSON/IMAGE; each face is a probe" in text and "number of neighbors that vote" in text
    assert commands.main(["--plugin", protocol, "list", "protocols"]) == 0
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


@pytest.mark.slow
def test_one_module_with_an_entry_of_each_kind_trains_evaluates_and_exports(faces_folder, tmp_path, monkeypatch):
    """All examples of the page in one file, from the faces to the figures of an exported student."""
    parts = ("my_losses", "my_samplers", "my_students", "my_filters", "my_eigenfaces", "my_protocols", "my_tasks")
    (tmp_path / "my_entries.py").write_text("\n".join(code_of(PAGE, f"{part}.py") for part in parts), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    kinds = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    for kind in kinds:
        monkeypatch.setattr(kind, "_entries", {name: kind[name] for name in kind.names()})
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "bank.npz", w=rng.normal(size=(8, 3, 4, 4)).astype(np.float32))
    np.savez(tmp_path / "faces.npz", mean=np.full((64, 64), 127.5), components=rng.normal(size=(27, 64, 64)) / 64)
    config = tiny_config(faces_folder)
    config.plugins = ("my_entries",)
    config.generative.update(kind="my_filters", path=str(tmp_path / "bank.npz"))
    config.discriminative.update(kind="my_eigenfaces", path=str(tmp_path / "faces.npz"))
    config.student.update(name="my_separable", settings={"channels": 8}, width=1.0, hidden=(), head_stages=0)
    config.dis.losses = {"my_arcface": {"weight": 1.0, "margin": 0.3}, "feature_regression": {"weight": 0.5}}
    config.dis.update(init="gen", freeze=(), sampler={"name": "my_identities"})
    config.gen.steps = config.dis.steps = 9
    runner.run(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "dis" / "metrics.json").read_text(encoding="utf-8"))
    assert {"my_arcface", "own_cosine", "feature_regression", "r2"} <= metrics.keys()
    exported, out = tmp_path / "exported", tmp_path / "out"
    words = ["export", tmp_path / "run", exported, "--format", "onnx", "stablehlo", "--calibration", faces_folder]
    assert commands.main([*map(str, words)]) == 0
    words = ["evaluate", "--protocol", "neighbors", "--data", faces_folder, "--model", f"mine={exported}", "--out", out]
    assert commands.main([*map(str, words)]) == 0
    results = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["results"]
    assert 0 <= results["mine_16"]["accuracy"] <= 100
    assert "my_thermal_faces" in registry.tasks.names()
