"""What each step of the pipeline does: functions of `(config, workdir)`.

faces -> views -> discriminative -> teacher -> generative -> gen -> dis (-> report, in
`comparison.py`). A step reads the folders of steps before it and writes to the folder
of its own name.
"""

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from gdrd_jax import parallel, sources, train
from gdrd_jax.checkpoints import load_description, load_weights, save_weights
from gdrd_jax.data.align import Aligner
from gdrd_jax.data.dataset import Dataset
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.prepare import checked, prepare
from gdrd_jax.data.targets import Cache, channel_statistics
from gdrd_jax.errors import GdrdError, first_line
from gdrd_jax.evaluation import dev
from gdrd_jax.evaluation.dev import DevSet
from gdrd_jax.files import write_json
from gdrd_jax.models.student import Student
from gdrd_jax.ranks import Rank
from gdrd_jax.recognizer import Recognizer
from gdrd_jax.stages import Dis, Gen, class_centres
from gdrd_jax.teachers import load_discriminative, load_generative, sr_training
from gdrd_jax.teachers.precompute import Job, fill, high_views

SPLITS = ("train", "test")
DEV_IMAGES = 10  # of a calibration person, at most


def faces(config: ConfigDict, workdir: Path) -> str:
    """Aligns the faces if asked to, reads every one once, and splits people into train and test.

    Returns:
      A fingerprint of their contents: a face that was only touched or moved redoes nothing else.
    """
    everyone = sources.opened(config)
    if config.data.align:  # which reads every one, too
        everyone = prepare(everyone, workdir / "faces" / "aligned", aligner=Aligner(sources.detector(config)))
    else:
        everyone = checked(everyone)
    for split, part in zip(SPLITS, everyone.split(config.data.test_people)):
        part.save(workdir / "faces" / f"{split}.json")
    return f"{everyone.fingerprint}:{config.data.test_people}"


def views(config: ConfigDict, workdir: Path, rank: Rank) -> None:
    """Reduces every view of every face to the low resolution."""
    how = sources.views(config)
    for split in SPLITS:
        source = read_faces(workdir, split)
        cache = Cache.create(
            workdir / "views" / split, rows=len(source), views=_view_count(config, split),
            shape=(how.resolution, how.resolution, 3), dtype="uint8", made_from={"faces": source.fingerprint},
            about=dataclasses.asdict(how),
        )  # fmt: skip

        def load(view: int, rows: range) -> np.ndarray:
            return np.stack([how.low(face, row, view) for row, face in zip(rows, high_views(source, how, view, rows))])

        fill(Job(cache, load, None, f"low-resolution views, {split}"), rank)


def teacher(config: ConfigDict, workdir: Path) -> None:
    """Trains an SR diffusion network on the training people, unless the user brings one."""
    if not config.generative.path:
        sr_training.train(
            read_faces(workdir, "train"),
            sources.views(config),
            sources.sr_settings(config),
            workdir / "teacher",
            seed=config.seed,
        )


def generative(config: ConfigDict, workdir: Path, rank: Rank) -> None:
    """Runs T_g on every low-resolution view."""
    for job in generative_jobs(config, workdir):
        fill(job, rank)


def generative_jobs(config: ConfigDict, workdir: Path) -> Iterator[Job]:
    """How the caches of T_g's features are made, one a split."""
    network = generative_teacher(config, workdir)
    for split in SPLITS:
        lr = open_cache(workdir, "views", split)
        if lr.manifest["rows"]:
            shape = network.features(lr.read(0, slice(0, 1))).shape[1:]
            yield Job(
                _targets(config, workdir, "generative", split, shape, network),
                lambda view, rows: lr.read(view, np.asarray(rows)), network.features, f"generative targets, {split}",
            )  # fmt: skip


def gen(config: ConfigDict, workdir: Path, rank: Rank) -> None:
    """Stage gen: the backbone learns T_g's features (Eq. 1)."""
    parallel.start(rank)
    folder = workdir / "gen"
    student = _student(config, embedding_dim=1)
    targets = open_cache(workdir, "generative", "train")
    mean, std = channel_statistics(targets)
    stage = Gen(
        student.backbone, feature_shape(student), tuple(targets.manifest["shape"]),
        mean, np.maximum(std, 1e-4), rngs=nnx.Rngs(config.seed + 1),
    )  # fmt: skip
    labels = read_faces(workdir, "train").labels
    caches = {"lr": open_cache(workdir, "views", "train"), "generative": targets}
    held_out = _held_out_r2(workdir) if config.data.test_people else lambda stage, step: {}
    metrics = _fit(
        config, stage, Dataset(labels, caches, np.arange(len(labels))), config.gen, folder, "stage gen", held_out
    )
    if rank.number == 0:
        save_weights(student.backbone, folder / "backbone", {"student": _student_settings(config, 1)})
        write_json(folder / "metrics.json", {**metrics, **held_out(stage, config.gen.steps)})


def _fit(config, stage, dataset, section, folder, name, evaluate) -> dict[str, float]:
    try:
        return train.fit(
            stage, dataset, train.Schedule.of(section), folder, seed=config.seed, name=name,
            residency=config.data.residency, profile=config.profile, evaluate=evaluate,
            evaluate_every=section.evaluate_every,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise GdrdError(
            f"{name}: another process was lost ({first_line(error)}); its output says why, the same commands continue"
        ) from error


def discriminative(config: ConfigDict, workdir: Path, rank: Rank) -> None:
    """Runs T_d on every view at full size."""
    for job in discriminative_jobs(config, workdir):
        fill(job, rank)


def discriminative_jobs(config: ConfigDict, workdir: Path) -> Iterator[Job]:
    """How the caches of T_d's embeddings are made, one a split."""
    network, how = discriminative_teacher(config), sources.views(config)
    for split in SPLITS:
        source = read_faces(workdir, split)
        if len(source):
            yield Job(
                _targets(config, workdir, "discriminative", split, (network.dim,), network),
                lambda view, rows: high_views(source, how, view, rows), network.embed,
                f"discriminative targets, {split}",
            )  # fmt: skip


def dis(config: ConfigDict, workdir: Path, rank: Rank) -> None:
    """Stage dis: the head learns from labels and T_d (Eq. 2, 3), on the frozen backbone."""
    parallel.start(rank)
    folder = workdir / "dis"
    everyone = read_faces(workdir, "train")
    identities = len(everyone.identities) - config.data.calibration_people
    rows = np.flatnonzero(everyone.labels < identities)
    labels = everyone.labels[rows]
    targets = open_cache(workdir, "discriminative", "train")
    centres = class_centres(targets.read(0, rows), labels, identities)
    student = _student(config, embedding_dim=centres.shape[1])
    load_weights(student.backbone, workdir / "gen" / "backbone")
    settings = config.dis
    stage = Dis(
        student, centres, weights={"cls": settings.cls, "kd": settings.kd, "rcd": settings.rcd},
        temperature=settings.temperature, teacher_scale=settings.teacher_scale, tau=settings.tau,
        positive=settings.positive, pairs=settings.pairs, end_to_end=settings.end_to_end,
        rngs=nnx.Rngs(config.seed + 2),
    )  # fmt: skip
    caches = {"lr": open_cache(workdir, "views", "train"), "discriminative": targets}

    def save(name: str, **more) -> None:
        description = _student_settings(config, centres.shape[1])
        Recognizer.save(student, description, config.views.kernel, folder / name, **more)

    recognizer, best = Recognizer(student, config.views.kernel), folder / "best"
    judged = _dev_set(config, workdir) if rank.number == 0 else None

    def evaluate(_stage: Dis, step: int) -> dict[str, float]:
        if judged is None:
            return {}
        metrics = judged.judge(recognizer.embed(judged.faces))
        if not best.exists() or metrics["dev_accuracy"] > load_description(best)["dev_accuracy"]:
            save("best", step=step, **metrics)
        return metrics

    metrics = _fit(config, stage, Dataset(labels, caches, rows), settings, folder, "stage dis", evaluate)
    if rank.number == 0:
        save("student")
        write_json(folder / "metrics.json", metrics)


def _dev_set(config: ConfigDict, workdir: Path) -> DevSet | None:
    """What the config names, or the calibration people, whose identities stage dis does not learn; None if neither."""
    if config.dev.path:
        pairs = Path(config.dev.pairs) if config.dev.pairs else None
        return dev.of_pairs(Path(config.dev.path), pairs, config.views.resolution, config.views.kernel)
    if config.data.calibration_people < 2:
        return None
    faces = read_faces(workdir, "train")
    rows = faces.few_of_last(config.data.calibration_people, DEV_IMAGES)
    return dev.of_people(open_cache(workdir, "views", "train").read(0, rows), faces.labels[rows])


def feature_shape(student: Student) -> tuple[int, int, int]:
    """`(h, w, C)` of the backbone's features."""
    face = np.zeros((1, student.resolution, student.resolution, 3), np.uint8)
    student.backbone.eval()
    return nnx.eval_shape(lambda backbone: backbone(face), student.backbone).shape[1:]


def _held_out_r2(workdir: Path) -> Callable[[Gen, int], dict[str, float]]:
    """Share of the variance of T_g's features on the test people that the backbone explains."""
    lr, target = (open_cache(workdir, step, "test").read(0) for step in ("views", "generative"))

    def judge(stage: Gen, _step: int) -> dict[str, float]:
        stage.eval()
        wanted = np.asarray(stage.standardise(target))
        found = [np.asarray(stage.predict(lr[i : i + 128])) for i in range(0, len(lr), 128)]
        residual = ((wanted - np.concatenate(found)) ** 2).mean()
        return {"held_out_r2": float(1 - residual / ((wanted - wanted.mean(axis=(0, 1, 2))) ** 2).mean())}

    return judge


def read_faces(workdir: Path, split: str) -> Faces:
    """The faces of "train" or "test"."""
    return Faces.load(workdir / "faces" / f"{split}.json")


def open_cache(workdir: Path, step: str, split: str) -> Cache:
    """What the steps `views`, `generative` or `discriminative` made of a split."""
    return Cache.open(workdir / step / split, faces=read_faces(workdir, split).fingerprint)


def _targets(config: ConfigDict, workdir: Path, step: str, split: str, shape: tuple[int, ...], network) -> Cache:
    faces = read_faces(workdir, split)
    packages = ("gdrd_jax", "torch", "diffusers", "onnxruntime")
    made_by = {name: metadata.version(name) for name in packages if util.find_spec(name)}
    return Cache.create(
        workdir / step / split, rows=len(faces), views=_view_count(config, split), shape=shape, dtype="float16",
        made_from={"faces": faces.fingerprint, "teacher": network.fingerprint},
        about={
            "teacher": network.settings, "views": dataclasses.asdict(sources.views(config)), "versions": made_by,
            "data": config.data.path, "machine": platform.platform(),
        },
    )  # fmt: skip


def _view_count(config: ConfigDict, split: str) -> int:
    return config.views.count if split == "train" else 2


def _student_settings(config: ConfigDict, embedding_dim: int) -> dict:
    return {
        **json.loads(config.student.to_json()),
        "resolution": config.views.resolution,
        "embedding_dim": embedding_dim,
    }


def _student(config: ConfigDict, embedding_dim: int) -> Student:
    return Student(**_student_settings(config, embedding_dim), rngs=nnx.Rngs(config.seed))


def discriminative_teacher(config: ConfigDict):
    """T_d."""
    settings = config.discriminative
    return load_discriminative(
        sources.recogniser(config), preprocessing=settings.preprocessing, precision=settings.precision
    )


def generative_teacher(config: ConfigDict, workdir: Path):
    """T_g: the user's, or the one that the step `teacher` trained."""
    settings = config.generative
    return load_generative(
        settings.kind, Path(settings.path) if settings.path else workdir / "teacher",
        precision=settings.precision, **sources.generative_settings(config),
    )  # fmt: skip
