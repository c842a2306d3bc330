"""Stage gen, stage dis and the stages before it: functions of a `Run`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from gdrd_jax.config import used_losses
from gdrd_jax.data.task import FACES
from gdrd_jax.distributed import sharding
from gdrd_jax.evaluation import dev
from gdrd_jax.evaluation.dev import DevSet
from gdrd_jax.inference import student_files
from gdrd_jax.inference.pretrained import describe_student
from gdrd_jax.inference.recognizer import BATCH, Recognizer
from gdrd_jax.losses import DataInfo, TeacherFeatures
from gdrd_jax.models import arguments
from gdrd_jax.models.residual import Head
from gdrd_jax.models.student import Student, abstract_student, make_student
from gdrd_jax.models.weights import adopt
from gdrd_jax.pipeline import dev_set, initial_student, inputs, stages, training_set, view_settings
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import generative
from gdrd_jax.registry import samplers
from gdrd_jax.training import trainer
from gdrd_jax.training.checkpoints import load_weights, save_weights
from gdrd_jax.training.stages import Stage
from gdrd_jax.utils.arrays import to_rgb, unit
from gdrd_jax.utils.errors import GdrdError, first_line
from gdrd_jax.utils.files import write_json

DEV_IMAGES = 10  # of a calibration person, at most


def gen(run: Run) -> None:
    """Stage gen: the backbone learns T_g's features (Eq. 1)."""
    sharding.start(run.process)
    config, folder = run.config, run.folder("gen")
    student = _student(config, embedding_dim=1)
    info = DataInfo(feature_shape=feature_shape(student), **training_set.generative_info(run))
    stage = Stage(student, {"feature_regression": {}}, info, rngs=nnx.Rngs(config.seed + 1))
    held_out = _held_out_r2(run) if inputs.has_test_split(config) else lambda stage, step: {}
    labels = run.faces("train").labels
    dataset = training_set.dataset_of(run, labels, ["unlabeled"], lr="views", generative="generative")
    metrics = _fit(config, stage, dataset, config.gen, folder, "stage gen", held_out)
    if run.process.rank == 0:
        save_weights(student.backbone, folder / "backbone", {"student": _student_settings(config, 1)})
        write_json(folder / "metrics.json", metrics)


def _fit(config, stage, dataset, section, folder, name, evaluate, sampler=None) -> dict[str, float]:
    try:
        return trainer.fit(
            stage, dataset, trainer.Schedule.of(section), folder, seed=config.seed, name=name, sampler=sampler,
            residency=config.data.residency, profile=config.profile, evaluate=evaluate,
            evaluate_every=section.evaluate_every,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise GdrdError(
            f"{name}: another process was lost ({first_line(error)}); its output says why, the same commands continue",
            "process-lost",
        ) from error


def train(run: Run, name: str) -> None:
    """Stage dis (Eq. 2, 3), or a stage before it: a student learns from T_d and labels, as its losses say."""
    sharding.start(run.process)
    config, folder = stages.stage_config(run.config, name), run.folder(name)
    learned_from = training_set.of_stage(run, config, name)
    dataset, dim = learned_from.dataset, learned_from.embedding_dim
    student = _initial_student(run, config, dim)
    stage = make_dis(
        config, student, learned_from.identities, len(dataset.labels), dim, centers=learned_from.centers,
        center_lengths=learned_from.center_lengths, **training_set.target_info(run, config),
    )  # fmt: skip

    task = inputs.task(config)

    def save(name: str, **metadata) -> None:
        description = _student_settings(config, dim)
        teacher = learned_from.teacher if stages.losses_need(config, "discriminative") else None
        metadata |= {} if task == FACES else {"task": task.recorded()}
        student_files.save(student, description, config.views.kernel, folder / name, teacher=teacher, **metadata)

    best, exportable = folder / "best", not stages.is_teacher_features(config)
    dev_set = _dev_set(run, config) if run.process.rank == 0 else None
    embedded = _embedder(run, config, student, dev_set.faces) if dev_set else None

    def evaluate(stage: Stage, step: int) -> dict[str, float]:
        if dev_set is None:
            return {}
        stage.eval()
        pairs = dev_set.score(embedded())
        metrics = dev_set.judge(pairs)
        about_pairs = {name: getattr(dev_set, name) for name in ("same", "folds", "first", "second", "people")}
        np.savez(folder / "dev.npz", scores=pairs.scores, **about_pairs)
        if exportable and (not best.exists() or metrics["dev_accuracy"] > describe_student(best)["dev_accuracy"]):
            save("best", step=step, **metrics)
        return metrics

    sampler, given = stages.entry(config.dis.sampler)
    settings = samplers.settings(sampler, given)
    # Checked before for listed faces; the identities of packed ones are not known until these are loaded.
    samplers[sampler].check(settings, config.dis.batch, np.bincount(dataset.labels[dataset.labels >= 0]))
    sampled = samplers[sampler](settings, dataset.labels, dataset.views)
    metrics = _fit(config, stage, dataset, config.dis, folder, f"stage {name}", evaluate, sampled)
    if run.process.rank == 0:
        if exportable:
            save("student")
        write_json(folder / "metrics.json", metrics)


def make_dis(
    config: ConfigDict, student: Student, identities: int, images: int, embedding_dim: int, **target_info
) -> Stage:
    """Stage dis as the config has it.

    Args:
      config: see `gdrd_jax.config`.
      student: the student to train.
      identities, images, embedding_dim: see `DataInfo`.
      **target_info: what else `DataInfo` says of the training set, where losses need it.
    """
    shapes: dict = {} if stages.is_teacher_features(config) else {"feature_shape": feature_shape(student)}
    if stages.losses_need(config, "stages"):
        shapes["stage_shapes"] = stage_shapes(student)
    info = DataInfo(identities, images, embedding_dim, **shapes, **target_info)
    frozen = () if stages.trains_backbone(config) else ("backbone",)
    return Stage(
        student, used_losses(config.dis.losses), info, frozen=frozen, rngs=nnx.Rngs(config.seed + 2),
        degradation=view_settings.degradation(config), mixup=config.dis.mixup,
    )  # fmt: skip


def _initial_student(run: Run, config: ConfigDict, embedding_dim: int) -> Student:
    """The student at the start of a stage."""
    if stages.is_teacher_features(config):
        targets = run.store("generative", "train")
        channels, size, _ = targets.manifest["shape"]
        student = abstract_student(_student_settings(config, embedding_dim))  # neither of its parts is kept
        student.backbone = TeacherFeatures(*training_set.statistics(targets))
        student.head = Head(
            channels, [], config.student.hidden, embedding_dim, size=size, dtype=config.student.dtype,
            rngs=nnx.Rngs(config.seed),
        )  # fmt: skip
        return student
    init, student = config.dis.init, _student(config, embedding_dim)
    if init == "gen":
        load_weights(student.backbone, run.folder("gen") / "backbone")
    elif init != "random":
        _take_weights(student, run.folder(init) / "student")
    return student


def _embedder(run: Run, config: ConfigDict, student: Student, faces: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that embeds these low-resolution faces with the student as it then is: float32 `[N, D]`."""
    if not stages.is_teacher_features(config):
        # A new one each time, for it keeps the weights that it first embedded with.
        return lambda: Recognizer(student, config.views.kernel).embed(faces)
    network = generative.load(run)
    mirrored = [np.ascontiguousarray(faces[:, :, ::-1])] if student.shape.mirror else []
    both = [network.features(to_rgb(views)) for views in (faces, *mirrored)]
    starts = range(0, len(faces), BATCH)
    return lambda: unit(
        np.concatenate([np.asarray(sum(student(features[i : i + BATCH]) for features in both)) for i in starts])
    )


def _dev_set(run: Run, config: ConfigDict) -> DevSet | None:
    """What the config names, or the calibration people, whose identities are not trained on; None if neither."""
    if config.dev.path:
        pairs = Path(config.dev.pairs) if config.dev.pairs else None
        return dev.of_pairs(Path(config.dev.path), pairs, dev_set.degradation(config))
    if config.data.calibration_people < 2 or config.data.packed:
        return None
    faces = run.faces("train")
    rows = faces.rows_of_last_identities(config.data.calibration_people, DEV_IMAGES)
    lr = run.store(stages.images_step(config), "train")
    return dev.of_people(lr.read(0, rows), faces.labels[rows])


def feature_shape(student: Student) -> tuple[int, int, int]:
    """`(h, w, C)` of the backbone's features."""
    return _shapes(student, lambda backbone, face: backbone(face)).shape[1:]


def stage_shapes(student: Student) -> tuple[tuple[int, int, int], ...]:
    """`(h, w, C)` of the features of each stage of the backbone."""
    return tuple(found.shape[1:] for found in _shapes(student, lambda backbone, face: backbone.stages(face)))


def _shapes(student: Student, of: Callable[[Any, np.ndarray], Any]) -> Any:
    """The shapes of what a function makes of the student's backbone and one image."""
    face = np.zeros((1, student.resolution, student.resolution, student.shape.channels), np.uint8)
    student.backbone.eval()
    return nnx.eval_shape(lambda backbone: of(backbone, face), student.backbone)


def _held_out_r2(run: Run) -> Callable[[Stage, int], dict[str, float]]:
    """Share of what differs between faces in T_g's features, on the test people, that the backbone explains."""
    lr, target = (run.store(step, "test").read(0) for step in ("views", "generative"))

    def judge(stage: Stage, _step: int) -> dict[str, float]:
        stage.eval()
        regression = stage.criteria["feature_regression"]
        wanted = np.asarray(regression.standardize(target))
        rows = range(0, len(lr), BATCH)
        found = [np.asarray(regression.predict(stage.backbone(lr[i : i + BATCH]))) for i in rows]
        residual = ((wanted - np.concatenate(found)) ** 2).mean()
        return {"held_out_r2": float(1 - residual / (wanted**2).mean())}

    return judge


def _student_settings(config: ConfigDict, embedding_dim: int) -> dict:
    settings = arguments.of_config(config)
    if config.student.init:
        settings = {**initial_student.settings(config), **{key: settings[key] for key in ("dtype",) if key in settings}}
    return {**settings, "embedding_dim": embedding_dim}


def _student(config: ConfigDict, embedding_dim: int) -> Student:
    """A new student, or that of `config.student.init`; its last layer is new where the embedding has another size."""
    student = make_student(**_student_settings(config, embedding_dim), rngs=nnx.Rngs(config.seed))
    if config.student.init:
        _take_weights(student, config.student.init)
    return student


def _take_weights(student: Student, source: str | Path) -> None:
    """Puts a trained student's weights into a new one; its last layer stays new where the embedding's size differs."""
    adopt(student, Recognizer.load(source).student)
