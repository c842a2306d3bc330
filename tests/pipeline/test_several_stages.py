"""Any number of stages: an assistant at twice the resolution, a stage that begins with another's student, ..."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from conftest import raises, save_recognizer, tiny_config, use_tiny_student, use_tiny_teachers

from gdrd_jax import registry
from gdrd_jax.cli import precompute_teacher
from gdrd_jax.config import Config, default, stage
from gdrd_jax.data.input_pipeline import Dataset, Subset
from gdrd_jax.data.packed import Stored
from gdrd_jax.distributed import sharding
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.losses import Loss
from gdrd_jax.models.relation import normalize
from gdrd_jax.models.student import abstract_student
from gdrd_jax.pipeline import planning, records, runner, stages, targets, train_stages, training_set
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import hr_features, steps
from gdrd_jax.utils.launch import SINGLE_PROCESS, ProcessInfo

COSINE = {"embedding_cosine": {"weight": 1.0}}


class Needy(Loss):
    """Reads everything that a batch can have beside the usual."""

    needs = frozenset(
        {"embedding", "discriminative", "assistant", "selected", "hr_small", "balanced", "hr_features", "stages"}
    )

    def __init__(self, config, info, *, rngs):
        super().__init__(config, info, rngs=rngs)
        assert info.hr_shape == (3, 4, 4) and info.hr_small_shape == (32, 32, 3)
        assert [values.shape for values in info.hr_statistics()] == [(3, 4, 4), (3,)]
        assert info.stage_shapes == ((4, 4, 4),)

    def __call__(self, outputs, batch, key):
        assert batch["hr_small"].shape[1:] == (32, 32, 3) and batch["balanced"].dtype == bool
        assert batch["hr_features"].shape[1:] == (3, 4, 4)
        cosine = jnp.sum(normalize(outputs.embedding) * normalize(batch["assistant"].astype(jnp.float32)), axis=-1)
        loss = sharding.mean(jnp.mean(batch["selected"] * (1 - cosine)))
        return loss, {
            "selected": jnp.mean(batch["selected"]),
            "hr_mean": jnp.mean(batch["hr_small"].astype(jnp.float32)),
        }


@pytest.fixture(autouse=True)
def needy(monkeypatch):
    monkeypatch.setitem(registry.losses._entries, "test_needy", Needy)


def small(folder, **dis):
    """A config without stage gen."""
    config = use_tiny_student(use_tiny_teachers(tiny_config(folder)))
    config.until = "dis"
    config.dis.update(init="random", freeze=(), steps=4, evaluate_every=0)
    config.dis.losses = COSINE
    config.dis.update(**dis)
    config.student.update(head_stages=0, hidden=())
    return config


def short(**changes):
    return stage(**{"steps": 4, "batch": 8, "init": "random", "losses": COSINE, "evaluate_every": 0, **changes})


@pytest.fixture(scope="module")
def chain(faces_folder, tmp_path_factory):
    """An assistant at 32 pixels, a first stage, and stage dis that reads all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.losses._entries, "test_needy", Needy)
        workdir = tmp_path_factory.mktemp("chain") / "run"
        save_recognizer(workdir.with_name("colors.onnx"), cells=8)
        runner.run(chain_config(faces_folder, workdir), workdir)
    return workdir


def chain_config(folder, workdir):
    config = small(folder)
    config.discriminative.update(kind="auto", path=str(workdir.with_name("colors.onnx")), tap="p")
    config.stages = {
        "first": short(losses={"cls": {"weight": 1.0}}, sampler={"name": "balanced", "images": 4}),
        "assistant": short(input="hr_small", student={"width": 0.125}),
    }
    config.dis.losses = {"test_needy": {"weight": 1.0}, **COSINE}
    config.dis.init, config.dis.assistant = "first", "assistant"
    config.dis.sampler = {"name": "half_balanced", "images": 2}
    config.dis.selection = {"name": "sparse_graph", "keep": 0.5}
    return config


def test_losses_know_the_shapes_of_each_stage_of_the_papers_student():
    student = abstract_student({"resolution": 16, "width": 0.0625, "embedding_dim": 8})
    assert train_stages.stage_shapes(student) == ((16, 16, 8), (8, 8, 16), (4, 4, 32))


def test_a_chain_of_stages_is_trained_in_the_order_of_its_references(chain, faces_folder):
    config = chain_config(faces_folder, chain)
    plan = {step.name: step for step in planning.plan(config, chain)}
    assert all(step.action == "skip" for step in plan.values())
    assert list(plan) == [
        "faces", "views", "hr_small", "discriminative", "hr_features", "first", "assistant", "assistant_embeddings",
        "dis_selection", "dis",
    ]  # fmt: skip
    metrics = json.loads((chain / "dis" / "metrics.json").read_text(encoding="utf-8"))
    assert {"test_needy", "embedding_cosine", "selected", "hr_mean"} <= metrics.keys()


def test_the_assistant_sees_twice_the_resolution_and_its_embeddings_are_stored(chain, faces_folder):
    run = Run.open(chain)
    assistant = Recognizer.load(chain / "assistant" / "student")
    assert assistant.resolution == 32 and Recognizer.load(chain / "dis" / "student").resolution == 16
    images = run.store("hr_small", "train")
    assert images.manifest["shape"] == [32, 32, 3] and images.manifest["views"] == 2
    stored = run.store("assistant_embeddings", "train")
    for view in range(2):
        np.testing.assert_allclose(
            stored.read(view), assistant.embed(images.read(view)), atol=2e-3
        )  # fmt: skip
    assert stored.manifest["provenance"]["teacher"] == assistant.fingerprint()


def test_feature_maps_of_the_teacher_are_averages_of_its_tensor(chain, faces_folder):
    run = Run.open(chain)
    faces, maps = run.faces("train"), run.store("hr_features", "train")
    face = (faces[5].astype(np.float32) - 127.5) / 127.5
    expected = face.reshape(4, 28, 4, 28, 3).mean(axis=(1, 3)).transpose(2, 0, 1)  # of 8x8 cells, two by two
    np.testing.assert_allclose(maps.read(0)[5], expected, atol=2e-3)
    np.testing.assert_allclose(maps.read(1)[5], expected[:, :, ::-1], atol=2e-3)


def test_feature_maps_are_of_the_last_residual_sum_unless_a_tensor_is_named(faces_folder, tmp_path):
    path = save_recognizer(tmp_path / "colors.onnx", cells=8)
    model = onnx.load(path)
    model.graph.node.insert(1, onnx.helper.make_node("Add", ["p", "p"], ["twice"]))
    onnx.save(model, path)
    config = small(faces_folder, losses={"wavelet": {"weight": 1.0}, **COSINE})
    config.discriminative.update(kind="auto", path=str(path))
    found = {}
    for tap in ("", "p"):
        config.discriminative.tap = tap
        runner.run(config, tmp_path / "run", ("hr_features",))
        found[tap] = Run.open(tmp_path / "run").store("hr_features", "train").read(0)
    np.testing.assert_allclose(found[""], 2 * found["p"], atol=2e-3)


def test_degraded_at_random_a_face_and_its_mirror_image_have_maps_and_one_embedding(faces_folder, tmp_path):
    save_recognizer(tmp_path / "colors.onnx", cells=8)
    config = small(faces_folder, losses={"wavelet": {"weight": 1.0}, **COSINE})
    config.discriminative.update(kind="auto", path=str(tmp_path / "colors.onnx"), tap="p")
    config.degradation.random, config.data.mixup_per_face, config.views.count = True, 0.0, 1
    runner.run(config, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    maps = run.store("hr_features", "train")
    assert (maps.manifest["views"], run.store("discriminative", "train").manifest["views"]) == (2, 1)
    face = (run.faces("train")[5].astype(np.float32) - 127.5) / 127.5
    expected = face.reshape(4, 28, 4, 28, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(maps.read(1)[5], expected[:, :, ::-1], atol=2e-3)
    assert json.loads((tmp_path / "run" / "dis" / "metrics.json").read_text(encoding="utf-8"))["wavelet"] < 2


@pytest.mark.parametrize("teacher, maps", [("both", True), ("discriminative", True), ("generative", False)])
def test_maps_that_losses_need_are_computed_with_the_embeddings(teacher, maps, faces_folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(precompute_teacher, "_TEACHER", SimpleNamespace(value=teacher))
    monkeypatch.setattr(precompute_teacher, "_VERIFY", SimpleNamespace(value=False))
    monkeypatch.setattr(precompute_teacher, "run_steps", lambda *arguments: seen.append(arguments[-1]))
    for config in (chain_config(faces_folder, tmp_path / "run"), small(faces_folder)):
        precompute_teacher.work(config, tmp_path / "run", SINGLE_PROCESS)
    assert ["hr_features" in wanted for wanted in seen] == [maps, False]


@pytest.mark.parametrize("size", [4, 5, 7, 3])
def test_maps_are_averaged_as_by_pytorch(size):
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps), 4).numpy()
    np.testing.assert_allclose(hr_features.averaged(maps, 4), expected, atol=1e-6)


def test_a_stage_begins_with_the_student_of_another(chain, faces_folder, untrained):
    config = chain_config(faces_folder, chain)
    config.dis.learning_rate /= 2
    runner.run(config, chain)
    first, last = (Recognizer.load(chain / name / "student").student for name in ("first", "dis"))
    np.testing.assert_array_equal(last.head.layers[0].kernel[...], first.head.layers[0].kernel[...])
    np.testing.assert_array_equal(last.backbone.mix.kernel[...], first.backbone.mix.kernel[...])


def test_the_selection_weighs_trained_faces_alone(chain, faces_folder):
    weights = np.load(chain / "dis_selection" / "train.npy")
    run = Run.open(chain)
    faces = run.faces("train")
    trained = faces.labels < len(faces.identities) - run.config.data.calibration_people
    assert len(weights) == len(faces) and not weights[~trained].any()
    assert weights[trained].mean() == pytest.approx(0.5, abs=0.1)


def test_a_change_of_one_stage_redoes_what_depends_on_it(chain, faces_folder):
    config = chain_config(faces_folder, chain)
    config.stages.assistant.steps = 5
    actions = {step.name: step.action for step in planning.plan(config, chain)}
    redone = {name for name, action in actions.items() if action != "skip"}
    assert redone == {"assistant", "assistant_embeddings", "dis"}


def test_a_student_learns_from_an_assistant_in_the_place_of_the_teacher(faces_folder, tmp_path, untrained):
    config = small(faces_folder, teacher="assistant")
    config.stages = {"assistant": short()}
    runner.run(config, tmp_path / "run")
    assistant, student = (Recognizer.load(tmp_path / "run" / name / "student") for name in ("assistant", "dis"))
    assert student.teacher == {"name": "assistant", "fingerprint": assistant.fingerprint()}
    assert assistant.teacher["name"] == "tiny"


def change(config, **changes):
    for name, value in changes.items():
        section, _, key = name.replace("__", ".").rpartition(".")
        target = config
        for part in section.split("."):
            target = target[part] if part else target
        target[key] = value
    return config


@pytest.mark.parametrize(
    "changes, code, facts",
    [
        ({"dis__init": "frist"}, "stage-unknown", ("config.dis.init", "'frist'", "'first'")),
        ({"dis__teacher": "none"}, "stage-unknown", ("config.dis.teacher", "'none'")),
        ({"dis__assistant": "", "dis__losses": COSINE}, "stage-unused", ("'assistant'",)),
        ({"stages__first__init": "first"}, "stage-circle", ("config.stages.first.init", "'first'")),
        ({"stages__first__teacher": "assistant", "stages__assistant__teacher": "first"}, "stage-circle", ("'first'",)),
        ({"stages__first__init": "gen", "stages__first__student": {"width": 0.5}}, "stage-init", ("stages.first",)),
        ({"stages__first__student": {"widht": 0.5}}, "stage-student", ("'widht'", "'width'")),
        ({"stages__first__input": "hr"}, "config-choice", ("config.stages.first.input", "hr_small")),
        ({"stages__first__steps": 0}, "config-range", ("config.stages.first.steps",)),
        ({"stages__first__losses": {"cls": {"weight": -1.0}}}, "config-range", ("stages.first.losses.cls",)),
        ({"stages__first__losses": {"clss": {"weight": 1.0}}}, "entry-unknown", ("'clss'", "'cls'")),
        ({"stages__first__sampler": {"name": "balanced", "images": 3}}, "sampler-batch", ("multiple of 3",)),
        ({"stages__first__sampler": {"name": "balance"}}, "entry-unknown", ("'balance'", "'balanced'")),
        ({"stages__first__sampler": {"images": 3}}, "entry-name", ("config.stages.first.sampler.name",)),
        ({"dis__sampler": {"name": "uniform"}}, "loss-needs", ("config.dis.sampler.name", "balanced, half_balanced")),
        ({"dis__selection": {}}, "loss-needs", ("config.dis.selection",)),
        ({"dis__selection": {"name": "sparse"}}, "entry-unknown", ("'sparse'", "'sparse_graph'")),
        ({"dis__selection": {"name": "sparse_graph", "keep": 2.0}}, "entry-setting", ("keep",)),
        ({"dis__losses": {**COSINE, "test_needy": {"weight": 0.0}}}, "loss-needs", ("config.dis.assistant",)),
        ({"discriminative__tap": ""}, "hr-features-tap", ("config.discriminative.tap", "at least 4x4", "p")),
        ({"discriminative__tap": "pp"}, "hr-features-tap", ("'pp'", "the nearest are p")),
        ({"stages": {"views": short()}}, "stage-name", ("'views'",)),
        ({"stages": {"First": short()}}, "stage-name", ("'First'",)),
        ({"stages": {"steps": short()}}, "stage-name", ("'steps'",)),
        ({"stages": {"first": short(), "first_embeddings": short()}}, "stage-name", ("'first_embeddings'",)),
        ({"stages": {"dis_selection": short()}}, "stage-name", ("'dis_selection'",)),
        ({"stages": {"first": {"steps": 4}}}, "stage-settings", ("config.stages.first", "stage(")),
        ({"stages": {"first": 4}}, "stage-settings", ("config.stages.first",)),
        ({"dis__init": ""}, "stage-unknown", ("config.dis.init", "gen, random")),
        ({"dis__teacher": "gen"}, "stage-unknown", ("config.dis.teacher", "'gen'")),
        ({"dis__losses": {"cls": 1.0}}, "loss-settings", ("'cls'", '{"weight": 1.0}')),
        ({"stages__first__student": {"name": "teacher_features"}}, "stage-student", ("config.stages.first", "gdrd")),
        (
            {
                "stages": {},
                "student__name": "teacher_features",
                "dis__init": "random",
                "dis__assistant": "",
                "dis__selection": {},
                "dis__losses": {"hint": {"weight": 1.0}, **COSINE},
            },
            "loss-needs",
            ("'hr_features'", "config.student.name=teacher_features"),
        ),
        (
            {
                "stages": {},
                "dis__init": "random",
                "dis__assistant": "",
                "dis__selection": {},
                "dis__losses": {"feature_regression": {"weight": 1.0}},
            },
            "loss-embedding",
            ("config.dis.losses",),
        ),
        (
            {"stages__assistant__losses": {"feature_regression": {"weight": 1.0}}},
            "loss-embedding",
            ("config.stages.assistant.losses",),
        ),
        (
            {"degradation__random": True, "data__mixup_per_face": 0.0, "stages__first__shift": 1},
            "degradation-settings",
            ("config.stages.first.shift",),
        ),
        (
            {"degradation__random": True, "data__mixup_per_face": 0.0, "stages__assistant__mixup": 0.5},
            "mixup-settings",
            ("config.stages.assistant.mixup", "config.stages.assistant.input"),
        ),
        (
            {
                "degradation__random": True,
                "data__mixup_per_face": 0.0,
                "stages": {},
                "dis__init": "random",
                "dis__assistant": "",
                "dis__selection": {},
                "dis__losses": {"feature_regression": {"weight": 1.0}},
            },
            "loss-needs",
            ("T_g's features", "config.degradation.random"),
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_any_work(changes, code, facts, faces_folder, tmp_path):
    save_recognizer(tmp_path / "colors.onnx", cells=8)
    config = change(chain_config(faces_folder, tmp_path / "run"), **changes)
    with raises(code, *facts):
        planning.validate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_need_that_no_batch_meets_is_refused(faces_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Needy, "needs", frozenset({"hr_feature"}))
    config = small(faces_folder)
    config.dis.losses = {"test_needy": {"weight": 1.0}}
    with raises("loss-needs", "'test_needy'", "'hr_feature'", "'hr_features'"):
        planning.validate(config, tmp_path / "run")


def test_mixup_images_have_a_weight_where_there_are_no_unlabeled_faces(faces_folder, tmp_path, untrained):
    config = small(faces_folder, use_unlabeled=True)
    config.data.mixup_per_face = 1.0
    config.dis.losses = {"selected_distance": {"weight": 1.0}}
    config.dis.selection = {"name": "sparse_graph", "keep": 0.5}
    runner.run(config, tmp_path / "run")
    selected = tmp_path / "run" / "dis_selection"
    assert sorted(path.name for path in selected.glob("*.npy")) == ["mixup.npy", "train.npy"]
    assert len(np.load(selected / "mixup.npy")) == len(Run.open(tmp_path / "run").faces("mixup"))


def test_the_selection_is_made_again_for_other_faces(faces_folder, tmp_path):
    config = small(faces_folder)
    (step,) = (step for step in steps(config) if step.name == "dis_selection")
    config.dis.selection = {"name": "sparse_graph"}
    config.dis.losses = {"selected_distance": {"weight": 1.0}}
    config.dis.use_unlabeled = True
    config.data.mixup_per_face = 1.0
    origins = [records.origin_of(step, config, {}, {"discriminative": "x"})["settings"]["splits"]]
    config.student.name = "teacher_features"
    origins.append(records.origin_of(step, config, {}, {"discriminative": "x"})["settings"]["splits"])
    assert origins == [["unlabeled", "mixup"], ["unlabeled"]]


def test_packed_faces_that_fill_no_batch_of_a_sampler_are_refused(faces_folder, tmp_path, monkeypatch):
    config = small(faces_folder, batch=16)
    config.degradation.random, config.data.packed = True, "some.packed"
    config.dis.sampler = {"name": "balanced", "images": 4}
    labels = np.repeat(np.arange(3, dtype=np.int32), 4)
    stores = {
        "small": Stored(np.zeros((12, 1, 48, 48, 3), np.uint8)),
        "discriminative": Stored(np.ones((12, 1, 8), np.float16)),
    }  # fmt: skip
    dataset = Dataset(Subset(labels, stores, np.arange(12)))
    packed = training_set.TrainingSet(dataset, 3, np.ones((3, 8), np.float32), np.ones(3, np.float32), {})
    monkeypatch.setattr(training_set, "of_stage", lambda *_: packed)
    with raises("sampler-identities", "4 identities", "3"):
        train_stages.train(Run(config, tmp_path), "dis")


def test_plugins_are_loaded_where_the_steps_of_a_workdir_are_looked_at(faces_folder, tmp_path, monkeypatch):
    """A grid of runs asks this in a process of its own, which has imported no plugin."""
    monkeypatch.delitem(registry.losses._entries, "test_needy")
    plugin = "from gdrd_jax.registry import losses\nfrom gdrd_jax.losses import Loss\n"
    plugin += "@losses.register('test_of_plugin')\nclass Own(Loss):\n    needs = frozenset({'embedding'})\n"
    (tmp_path / "plugin_of_a_grid.py").write_text(plugin)
    monkeypatch.syspath_prepend(tmp_path)
    config = small(faces_folder)
    config.plugins, config.dis.losses = ("plugin_of_a_grid",), {"test_of_plugin": {"weight": 1.0}}
    try:
        assert planning.finished(config, tmp_path / "run") is False
    finally:
        registry.losses._entries.pop("test_of_plugin", None)


def test_processes_meet_before_embeddings_are_computed(faces_folder, tmp_path, monkeypatch):
    """JAX lets processes join only before its first use; a resumed run may begin with the embeddings."""
    calls = []
    monkeypatch.setattr(sharding, "start", lambda process: calls.append(process))
    monkeypatch.setattr(Recognizer, "load", lambda source: calls.append(source) or 1 / 0)
    config = small(faces_folder, teacher="assistant")
    config.stages = {"assistant": short()}
    process = ProcessInfo(1, 2)
    with pytest.raises(ZeroDivisionError):
        targets.embed_stage(Run(config, tmp_path, process), "assistant")
    assert calls == [process, tmp_path / "assistant" / "student"]


def test_a_loss_with_a_setting_s_earlier_name_keeps_its_name_in_records(faces_folder):
    config = small(faces_folder)
    config.dis.losses = {"cos": {"weight": 1.0}, **COSINE}
    origin = {"settings": {"dis": records.plain(config.dis)}, "files": {}, "after": {}}
    recorded = records.recorded_origin({"origin": origin})
    assert recorded["settings"]["dis"]["losses"].keys() == {"cos", "embedding_cosine"}


def test_a_stage_of_a_workdir_has_the_defaults_of_settings_that_it_lacks(tmp_path):
    config = json.loads(default().to_json())
    config["stages"] = {"first": {"steps": 5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = Run.open(tmp_path).config.stages.first
    assert found.steps == 5 and found.batch == 96 and found.input == "lr"


def test_the_config_of_a_stage_is_that_of_stage_dis(faces_folder, tmp_path):
    config = chain_config(faces_folder, tmp_path / "run")
    found = stages.stage_config(config, "assistant")
    assert found.views.resolution == 32 and found.student.width == 0.125 and found.dis.input == "hr_small"
    assert config.views.resolution == 16 and isinstance(found, Config)
    assert stages.stage_config(config, "dis") is config
    with pytest.raises((KeyError, AttributeError)):
        stage(step=4)
