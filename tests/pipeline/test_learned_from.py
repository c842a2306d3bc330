"""What the stages learn from, and what comes out."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest
from conftest import make_faces, make_lfw, raises, save_recognizer, save_student
from flax import nnx
from runs import COSINE, random_config, small_config, steps_run

from gdrd_jax import registry
from gdrd_jax.config import set_loss
from gdrd_jax.data import object_store
from gdrd_jax.data.degradation import resize
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.inference import student_files
from gdrd_jax.inference.pretrained import describe_student
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.pipeline import planning, runner, stages, train_stages
from gdrd_jax.pipeline.inputs import locate
from gdrd_jax.pipeline.run import Run
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCK
from gdrd_jax.utils.launch import SINGLE_PROCESS

pytestmark = pytest.mark.usefixtures("few_rows")


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"dis.freeze": ()}, ["dis", "report"]),
        ({"dis.init": "random", "dis.freeze": ()}, ["dis", "report"]),
        pytest.param({"student.name": "teacher_features"}, ["dis"], marks=pytest.mark.slow),
    ],
)
def test_what_stage_dis_begins_with(copy, faces_folder, caplog, change, redone):
    config = small_config(faces_folder)
    config.update_from_flattened_dict(change)
    for name in ("embedding_cosine", "similarity_preserving"):
        set_loss(config.dis, name, "weight", 1.0)
    config.until = redone[-1]
    assert steps_run(config, copy, caplog) == redone
    found = json.loads((copy / "dis" / "metrics.json").read_text())
    assert found.keys() >= {"cls", "kd", "rcd", "embedding_cosine", "similarity_preserving", "dev_accuracy"}
    assert (copy / "dis" / "student").exists() == ("student.name" not in change)


def test_features_of_any_size_stand_in_the_backbones_place(copy, faces_folder, caplog):
    config = small_config(faces_folder)
    config.student.update(name="teacher_features", head_stages=0, hidden=())
    config.generative.tap, config.until, config.dis.losses = "parts", "dis", COSINE
    assert steps_run(config, copy, caplog) == ["generative", "dis"]
    assert planning.finished(config, copy)
    assert Run.open(copy).store("generative", "train").manifest["shape"][1:] != [4, 4]


def test_unlabeled_faces_are_learned_from_without_identities(faces_folder, tmp_path, untrained):
    more = make_faces(tmp_path / "more", 3, 2)
    config = small_config(faces_folder)
    config.data.unlabeled, config.dis.use_unlabeled, config.until = str(more), True, "dis"
    runner.run(config, tmp_path / "run")
    assert untrained.keys() == {"stage gen", "stage dis"}
    for labels in untrained.values():
        assert (labels == -1).sum() == 6 and (labels >= 0).sum() > 0
    assert len(FeatureStore.open(tmp_path / "run" / "discriminative" / "unlabeled").read(0)) == 6


def labels_seen(monkeypatch):
    """The labels that each stage is trained on, by its name, as soon as it is; a loss `cls` alone is not trained."""
    seen, original = {}, train_stages.trainer.fit

    def watched(stage, dataset, *rest, **how):
        seen[how["name"]] = dataset.labels
        if list(stage.weights) == ["cls"]:
            raise GdrdError("enough seen", "enough-seen")
        return original(stage, dataset, *rest, **how)

    monkeypatch.setattr(train_stages.trainer, "fit", watched)
    return seen


def test_mixup_images_are_learned_from_in_stage_dis_without_those_who_choose_thresholds(
    finished, faces_folder, tmp_path, monkeypatch
):
    seen = labels_seen(monkeypatch)
    config = small_config(faces_folder)
    config.data.mixup_per_face, config.dis.use_unlabeled, config.until = 0.5, True, "dis"
    runner.run(config, tmp_path / "run")
    assert [(labels == -1).sum() for labels in seen.values()] == [0, 4]
    mixed = Run.open(tmp_path / "run").faces("mixup")
    people = len(Run.open(tmp_path / "run").faces("train").identities)
    assert len(mixed.sources[0].identities) == people - config.data.calibration_people
    assert len(FeatureStore.open(tmp_path / "run" / "discriminative" / "mixup").read(0)) == 4
    config.dis.losses = {"cls": {"weight": 1.0}}
    with raises("enough-seen"):
        runner.run(config, tmp_path / "run")
    assert (seen["stage dis"] >= 0).all()  # the others would teach nothing
    assert not (tmp_path / "run" / "generative" / "mixup").exists()


def test_unlabeled_photographs_are_aligned_too(tmp_path):
    config = small_config(tmp_path / "known")
    config.data.update(align=True, glob="*", unlabeled=str(tmp_path / "more"))
    for folder, people in (("known", (1, 2, 3)), ("more", (4, 5))):
        for i in people:
            (tmp_path / folder / f"s{i}").mkdir(parents=True)
            shutil.copy(locate("orl") / f"s{i}" / "1.pgm", tmp_path / folder / f"s{i}")
    runner.run(config, tmp_path / "run", ("faces",))
    faces = Run.open(tmp_path / "run").faces("unlabeled")
    assert faces.labels.tolist() == [-1, -1] and faces.identities == () and faces[0].shape == (112, 112, 3)


def test_no_calibration_or_test_person_is_trained_on(copy, faces_folder, monkeypatch):
    seen = {}

    def fit(stage, dataset, schedule, directory, **_):
        seen.update(dataset.load_all(), classes=stage.classifier.kernel.shape[1])
        raise GdrdError("enough seen", "enough-seen")

    monkeypatch.setattr("gdrd_jax.training.trainer.fit", fit)
    config = small_config(faces_folder)
    config.dis.losses.rcd.tau = 0.5
    with raises("enough-seen"):
        runner.run(config, copy)
    assert seen["classes"] == 7 - 2 - 2
    np.testing.assert_array_equal(seen["label"], np.repeat([0, 1, 2], 3))
    first = cv2.imread(str(faces_folder / "p0" / "0.png"))[:, :, ::-1]
    np.testing.assert_array_equal(seen["lr"][0, 0], cv2.resize(first, (16, 16), interpolation=cv2.INTER_AREA))
    assert len(seen["lr"]) == len(seen["discriminative"]) == 9


def test_the_student_that_was_best_on_the_dev_set_is_kept(copy, faces_folder):
    from gdrd_jax.pipeline.train_stages import _dev_set

    config = small_config(faces_folder)
    config.dis.evaluate_every = 10
    runner.run(config, copy)
    lines = [json.loads(line) for line in (copy / "dis" / "metrics.jsonl").read_text().splitlines()]
    judged = [line["dev_accuracy"] for line in lines if "dev_accuracy" in line]
    assert [line["step"] for line in lines if "dev_auc" in line] == [10, 20, 30, 40, 45]
    assert describe_student(copy / "dis" / "best")["dev_accuracy"] == max(judged)
    last, best = (Recognizer.load(copy, which).fingerprint() for which in ("student", "best"))
    assert (last == best) == (judged.index(max(judged)) == 4)
    pairs = _dev_set(Run(config, copy), config)  # judged with the weights as they were in the end
    expected = pairs.score(Recognizer.load(copy, "student").embed(pairs.faces)).scores
    np.testing.assert_allclose(np.load(copy / "dis" / "dev.npz")["scores"], expected, atol=1e-4)


def test_the_backbone_of_the_student_is_the_one_of_stage_gen(finished, faces_folder):
    import jax
    from flax import nnx

    from gdrd_jax.pipeline.train_stages import _student
    from gdrd_jax.training.checkpoints import load_weights

    student = _student(small_config(faces_folder), embedding_dim=48)
    load_weights(student.backbone, finished / "gen" / "backbone")
    trained = Recognizer.load(finished).student
    a, b = (jax.tree.leaves(nnx.to_pure_dict(nnx.state(s.backbone))) for s in (student, trained))
    assert len(a) == len(b) > 1
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


def test_the_recognizer_reduces_faces_as_it_was_trained(finished, faces_folder):
    recognizer = Recognizer.load(finished)
    face = cv2.imread(str(faces_folder / "p0" / "0.png"))[None, :, :, ::-1]
    low = cv2.resize(face[0], (16, 16), interpolation=cv2.INTER_AREA)[None]
    np.testing.assert_array_equal(recognizer.embed(face), recognizer.embed(low))
    many = np.repeat(low, 130, axis=0)
    np.testing.assert_allclose(recognizer.embed(many), np.repeat(recognizer.embed(low), 130, axis=0), atol=1e-6)
    assert recognizer.embed(low[:0]).shape == (0, 48)
    with raises("array-shape", "float32", "uint8 RGB"):
        recognizer.embed(face.astype(np.float32))
    with raises("weights-missing", faces_folder):
        Recognizer.load(faces_folder)


def test_no_faces_have_no_embeddings(finished):
    assert Recognizer.load(finished).embed(np.zeros((0, 112, 112, 3), np.uint8)).shape == (0, 48)


def test_faces_without_names_can_be_left_out(faces_folder):
    config = small_config(faces_folder)
    config.data.unlabeled = str(faces_folder)
    assert stages.unlabeled_splits(config) == []  # as in the paper
    config.dis.use_unlabeled = True
    assert stages.unlabeled_splits(config) == ["unlabeled"]
    config.data.mixup_per_face = 1.0
    assert stages.unlabeled_splits(config) == ["unlabeled", "mixup"]
    config.dis.update(kd=0.0, rcd=0.0)
    assert stages.unlabeled_splits(config) == []


def test_a_student_learns_from_degradations_drawn_in_the_step(copy, faces_folder, tmp_path, caplog):
    config = random_config(faces_folder)
    config.outputs = str(copy / "steps")
    assert steps_run(config, tmp_path / "w", caplog) == ["small_faces", "discriminative", "dis", "report"]
    assert Run.open(tmp_path / "w").store("discriminative", "train").manifest["views"] == 1 < config.views.count
    small = Run.open(tmp_path / "w").store("small_faces", "train")
    assert small.manifest["shape"] == [48, 48, 3] and small.manifest["views"] == 1
    np.testing.assert_array_equal(small.read(0)[3], resize(Run.open(tmp_path / "w").faces("train")[3], 48, "area"))
    assert Recognizer.load(tmp_path / "w").resolution == 16
    config.degradation.blur = 4.0
    plan = planning.plan(config, tmp_path / "w")
    assert [step.name for step in plan if step.action == "run"] == ["dis", "report"]


def test_one_target_a_face_serves_a_degraded_student(faces_folder, tmp_path, caplog):
    config = random_config(faces_folder)
    config.views.count, config.until = 1, "dis"
    set_loss(config.dis, "nce", "weight", 0.5)
    config.dev.update(path=str(make_lfw(tmp_path)), pairs=str(tmp_path / "pairs.txt"), blur=2.0)
    runner.run(config, tmp_path / "w")
    assert Run.open(tmp_path / "w").store("discriminative", "train").manifest["views"] == 1
    steps = [json.loads(line) for line in (tmp_path / "w" / "dis" / "metrics.jsonl").read_text().splitlines()]
    assert any("nce" in line for line in steps)
    recognizer = Recognizer.load(tmp_path / "w")
    provenance = Run.open(tmp_path / "w").store("discriminative", "train").manifest["provenance"]
    assert recognizer.teacher == {"name": "tiny", "fingerprint": provenance["teacher"]}
    config.dev.noise = 8.0  # chooses another student
    assert steps_run(config, tmp_path / "w", caplog) == ["dis"]
    config.degradation.random = False
    with raises("views-count", "config.views.count", 2):
        runner.run(config, tmp_path / "w")


@pytest.mark.parametrize("loss", ["cls", "arcface"])
def test_losses_that_read_no_embedding_of_a_teacher_need_none(loss, faces_folder, tmp_path, caplog):
    config = random_config(faces_folder)
    config.until, config.dis.losses = "dis", {loss: {"weight": 1.0}}
    assert "discriminative" not in steps_run(config, tmp_path / "w", caplog)
    recognizer = Recognizer.load(tmp_path / "w")
    assert recognizer.teacher is None and recognizer.dim == 512
    config.discriminative.update(kind="auto", path="")
    assert steps_run(config, tmp_path / "w", caplog) == []
    config.until = "report"  # which compares the student with T_d
    with raises("discriminative-unset", "config.discriminative.path"):
        runner.run(config, tmp_path / "w")
    config.dis.losses = {loss: {"weight": 1.0}, "embedding_cosine": {"weight": 1.0}}
    config.until = "dis"
    with raises("discriminative-unset", "config.discriminative.path"):
        runner.run(config, tmp_path / "w")


def test_views_and_targets_live_in_a_bucket_that_workdirs_share(bucket, faces_folder, tmp_path, monkeypatch):
    config = random_config(faces_folder)
    config.until, config.data.cache = "dis", f"{bucket}/faces"
    runner.run(config, tmp_path / "a")
    kept = {"views", "small_faces", "discriminative"}
    assert {key.split("/")[1] for key in object_store.keys(bucket)} == {"gdrd_jax", *kept}
    assert {path.name for step in kept for path in (tmp_path / "a" / step).rglob("*") if path.is_file()} == {
        "step.json", "manifest.json", LOCK
    }  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "write", lambda *args: 1 / 0)  # nothing is left to do
        runner.run(config, tmp_path / "b")
    a, b = (Recognizer.load(tmp_path / name).embed(np.zeros((1, 16, 16, 3), np.uint8)) for name in "ab")
    np.testing.assert_array_equal(a, b)
    config.data.cache = f"{bucket}-2"
    with raises("object-store-unusable", f"{bucket}-2"):
        runner.run(config, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_several_sets_of_faces_are_learned_from(faces_folder, tmp_path, caplog, untrained):
    more = make_faces(tmp_path / "more", people=3, images=2)
    config = random_config(f"{more},{faces_folder}")
    config.data.unlabeled = f"{faces_folder},{more}"
    config.until = "dis"
    runner.run(config, tmp_path / "w")
    train, unlabeled = (Run.open(tmp_path / "w").faces(split) for split in ("train", "unlabeled"))
    assert len(train.identities) == 3 + 7 - 2 and train.identities[0] == "more/p0"
    assert np.bincount(untrained["stage dis"]).tolist() == [2] * 3 + [3] * 3  # without those who choose thresholds
    assert len(unlabeled) == 21 + 6 and set(unlabeled.labels) == {-1}
    np.testing.assert_array_equal(unlabeled[21], train[0])
    assert steps_run(config, tmp_path / "w", caplog) == []


def test_a_training_begins_with_another_student(copy, faces_folder, tmp_path, caplog, untrained):
    config = random_config(faces_folder)
    config.outputs, config.until = str(copy / "steps"), "dis"
    config.student.init, config.student.width = str(copy), 0.5  # that of the other student counts
    assert steps_run(config, tmp_path / "w", caplog) == ["small_faces", "discriminative", "dis"]
    before, after = (nnx.state(Recognizer.load(path).student, nnx.Param) for path in (copy, tmp_path / "w"))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    shutil.copytree(copy / "dis" / "student", tmp_path / "elsewhere")
    config.student.init = str(tmp_path / "elsewhere")
    assert steps_run(config, tmp_path / "w", caplog) == []  # the same weights
    config.views.resolution = 8
    with raises("init-resolution", "config.student.init", "config.views.resolution", 16, 8):
        runner.run(config, tmp_path / "w")
    config.student.init = "gdrd-17"
    with raises("student-unknown", "'gdrd-17'", "gdrd-16"):
        runner.run(config, tmp_path / "w")


def test_a_student_of_another_teacher_gets_a_new_last_layer(faces_folder, tmp_path):
    config = random_config(faces_folder)
    registry.load_plugins(config.plugins)
    other, settings = train_stages._student(config, 24), train_stages._student_settings(config, 24)
    student_files.save(other, settings, "area", tmp_path / "other" / "dis" / "student")
    config.student.init = str(tmp_path / "other")
    begun, student = Recognizer.load(tmp_path / "other").student, train_stages._student(config, 128)
    assert student.head.layers[-1].out_features == 128
    jax.tree.map(np.testing.assert_array_equal, nnx.state(begun.backbone), nnx.state(student.backbone))
    np.testing.assert_array_equal(
        train_stages._student(config, 24).head.layers[-1].kernel, begun.head.layers[-1].kernel
    )


def test_a_student_of_another_teacher_is_warned_of_in_plan_and_run(faces_folder, tmp_path, caplog):
    taught_by, other = save_recognizer(tmp_path / "first.onnx"), save_recognizer(tmp_path / "other.onnx", cells=8)
    config = random_config(faces_folder)
    config.student.init = str(save_student(tmp_path / "begun", teacher=taught_by))
    config.discriminative.update(kind="auto", path=str(taught_by))
    planning.plan(config, tmp_path / "w", ("dis",))
    assert "config.student.init" not in caplog.text
    config.discriminative.path = str(other)
    planning.plan(config, tmp_path / "w", ("dis",))
    (warning,) = (record.getMessage() for record in caplog.records if "config.student.init" in record.getMessage())
    assert all(fact in warning for fact in ("first", "other", "config.discriminative.path", str(tmp_path / "begun")))
    needed = planning.with_ancestors(("dis",), config)
    runner._check_later_steps(planning.Walk(config, tmp_path / "w", needed), SINGLE_PROCESS)
    assert caplog.text.count(warning) == 2
    planning.warn(config, {"faces"})  # stage dis is done
    assert caplog.text.count(warning) == 2
