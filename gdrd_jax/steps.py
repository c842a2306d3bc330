"""What each step of the pipeline does: functions of `(config, workdir)`.

faces -> views -> discriminative -> teacher -> generative -> gen -> dis (-> report, in
`comparison.py`). A step reads the folders of steps before it and writes to the folder
of its own name.
"""

import dataclasses
import json
import platform
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from gdrd_jax import sources, train
from gdrd_jax.checkpoints import load_weights, save_weights
from gdrd_jax.data.align import Aligner
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.prepare import checked, prepare
from gdrd_jax.data.targets import Cache, channel_statistics
from gdrd_jax.files import write_json
from gdrd_jax.models.student import Student
from gdrd_jax.ranks import Rank
from gdrd_jax.recognizer import Recognizer
from gdrd_jax.stages import Dis, Gen, class_centres
from gdrd_jax.teachers import load_discriminative, load_generative, sr_training
from gdrd_jax.teachers.precompute import Job, fill, high_views

SPLITS = ("train", "test")


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


def gen(config: ConfigDict, workdir: Path) -> None:
    """Stage gen: the backbone learns T_g's features (Eq. 1)."""
    folder = workdir / "gen"
    student = _student(config, embedding_dim=1)
    targets = open_cache(workdir, "generative", "train")
    mean, std = channel_statistics(targets)
    stage = Gen(
        student.backbone, feature_shape(student), tuple(targets.manifest["shape"]),
        mean, np.maximum(std, 1e-4), rngs=nnx.Rngs(config.seed + 1),
    )  # fmt: skip
    data = {
        "label": read_faces(workdir, "train").labels,
        "lr": open_cache(workdir, "views", "train").read_all(),
        "generative": targets.read_all(),
    }
    metrics = train.fit(stage, data, _schedule(config.gen), folder, seed=config.seed, name="stage gen")
    save_weights(student.backbone, folder / "backbone", {"student": _student_settings(config, 1)})
    if config.data.test_people:
        metrics["held_out_r2"] = _held_out_r2(stage, workdir)
    write_json(folder / "metrics.json", metrics)


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


def dis(config: ConfigDict, workdir: Path) -> None:
    """Stage dis: the head learns from labels and T_d (Eq. 2, 3), on the frozen backbone."""
    folder = workdir / "dis"
    everyone = read_faces(workdir, "train")
    identities = len(everyone.identities) - config.data.calibration_people
    rows = everyone.labels < identities
    labels = everyone.labels[rows]
    embeddings = open_cache(workdir, "discriminative", "train").read_all()[rows]
    centres = class_centres(embeddings[:, 0], labels, identities)
    student = _student(config, embedding_dim=centres.shape[1])
    load_weights(student.backbone, workdir / "gen" / "backbone")
    settings = config.dis
    stage = Dis(
        student, centres, weights={"cls": settings.cls, "kd": settings.kd, "rcd": settings.rcd},
        temperature=settings.temperature, teacher_scale=settings.teacher_scale, tau=settings.tau,
        positive=settings.positive, end_to_end=settings.end_to_end, rngs=nnx.Rngs(config.seed + 2),
    )  # fmt: skip
    data = {
        "label": labels,
        "lr": open_cache(workdir, "views", "train").read_all()[rows],
        "discriminative": embeddings,
    }
    metrics = train.fit(stage, data, _schedule(settings), folder, seed=config.seed, name="stage dis")
    Recognizer.save(student, _student_settings(config, centres.shape[1]), config.views.kernel, folder / "student")
    write_json(folder / "metrics.json", metrics)


def feature_shape(student: Student) -> tuple[int, int, int]:
    """`(h, w, C)` of the backbone's features."""
    face = np.zeros((1, student.resolution, student.resolution, 3), np.uint8)
    student.backbone.eval()
    return nnx.eval_shape(lambda backbone: backbone(face), student.backbone).shape[1:]


def _held_out_r2(stage: Gen, workdir: Path) -> float:
    """Share of the variance of T_g's features on the test people that the backbone explains."""
    stage.eval()
    lr = open_cache(workdir, "views", "test").read(0)
    target = np.asarray(stage.standardise(open_cache(workdir, "generative", "test").read(0)))
    residual = target - np.concatenate([np.asarray(stage.predict(lr[i : i + 128])) for i in range(0, len(lr), 128)])
    return float(1 - (residual**2).mean() / ((target - target.mean(axis=(0, 1, 2))) ** 2).mean())


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


def _schedule(section: ConfigDict) -> train.Schedule:
    return train.Schedule(**{field: section[field] for field in train.Schedule.__dataclass_fields__})


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
