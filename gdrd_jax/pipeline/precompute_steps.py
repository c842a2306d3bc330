"""What each step of the pipeline does up to the teachers' targets: functions of `(config, workdir)`.

faces -> views -> discriminative -> teacher -> generative (-> gen -> dis, in `train_steps.py`, -> report, in
`report_step.py`). A step reads the folders of steps before it and writes to the folder of its own name.
"""

import dataclasses
import json
import platform
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.config import Config, of_workdir
from gdrd_jax.data.align import Aligner
from gdrd_jax.data.degradation import Views
from gdrd_jax.data.extract import Extraction, extract, view_loader
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import FORMAT, FeatureStore
from gdrd_jax.data.mixup import MixupFaces
from gdrd_jax.data.prepare import checked, log_skipped, prepare
from gdrd_jax.pipeline import inputs
from gdrd_jax.teachers import load_discriminative, load_generative, sr_training
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import digest, write_json
from gdrd_jax.utils.launch import ProcessInfo
from gdrd_jax.version import __version__

SMALL = 3  # times the low resolution, at which blur, crop and reduction lose nearly nothing to the full size
SPLITS = ("train", "test")  # of the people
REAL = (*SPLITS, "unlabeled")
NAMED_BEFORE = {"unlabeled": "unlabelled", "mixup": "blended"}  # splits, by versions up to 0.4


def faces(config: ConfigDict, workdir: Path) -> str:
    """Aligns the faces if asked to, reads every one once, splits people into train and test, and plans mixup images.

    Returns:
      A fingerprint of their contents: a face that was only touched or moved redoes nothing else.
    """

    def read(faces: Faces, name: str) -> Faces:
        if not config.data.align:
            return checked(faces)
        return prepare(faces, workdir / "faces" / name, aligner=Aligner(inputs.detector(config)))

    everyone, more = read(inputs.opened(config), "aligned"), inputs.unlabeled(config)
    more = read(more, "aligned_unlabeled") if more else everyone.take([])
    more = dataclasses.replace(more, labels=np.full(len(more), -1, np.int32), identities=())
    for split, part in zip(REAL, (*everyone.split(config.data.test_people), more)):
        part.save(workdir / "faces" / f"{split}.json")
    log_skipped(everyone, workdir / "faces" / "train.json")
    log_skipped(more, workdir / "faces" / "unlabeled.json")
    fingerprint = f"{everyone.fingerprint}:{config.data.test_people}:{more.fingerprint}"
    if not config.data.mixup_per_face:
        return fingerprint
    # Those who choose thresholds must be strangers to the student.
    how = {
        "each": config.data.mixup_per_face,
        "seed": config.views.seed,
        "without_last": config.data.calibration_people,
    }
    write_json(workdir / "faces" / "mixup.json", how)
    return f"{fingerprint}:{read_faces(workdir, 'mixup').fingerprint}"


def views(config: ConfigDict, workdir: Path, process: ProcessInfo) -> None:
    """Reduces every view of every face to the low resolution."""
    for split in _splits(config):
        count = _view_count(split, config.views.count)
        _store_views(config, workdir, "views", split, inputs.views(config), count, "low-resolution views", process)


def small_faces(config: ConfigDict, workdir: Path, process: ProcessInfo) -> None:
    """Reduces the faces that are degraded inside the training step to a few times the low resolution."""
    how = Views.plain(SMALL * config.views.resolution, "area")
    for split in ("train", "unlabeled"):
        _store_views(config, workdir, "small_faces", split, how, 1, "small faces", process)


def _store_views(
    config: ConfigDict, workdir: Path, step: str, split: str, how: Views, count: int, what: str, process: ProcessInfo
) -> None:
    """Stores the first `count` reduced views of every face of a split; `what` is shown beside the progress bar."""
    source = read_faces(workdir, split)
    cache = FeatureStore.create(
        _of_split(workdir / step, split), rows=len(source), views=count, shape=(how.resolution, how.resolution, 3),
        dtype="uint8", made_from={"faces": source.fingerprint}, about=dataclasses.asdict(how),
        arrays=_arrays(config, step, split, how),
    )  # fmt: skip
    extract(Extraction(cache, view_loader(source, how, low=True), None, f"{what}, {split}"), process)


def teacher(config: ConfigDict, workdir: Path) -> None:
    """Trains an SR diffusion network on the training people."""
    sr_training.train(
        read_faces(workdir, "train"), inputs.views(config), inputs.sr_settings(config), workdir / "teacher",
        seed=config.seed,
    )  # fmt: skip


def generative(config: ConfigDict, workdir: Path, process: ProcessInfo) -> None:
    """Runs T_g on every low-resolution view."""
    for job in generative_jobs(config, workdir):
        extract(job, process)


def generative_jobs(config: ConfigDict, workdir: Path) -> Iterator[Extraction]:
    """How the caches of T_g's features are made, one a split."""
    network = generative_teacher(config, workdir)
    for split in REAL:  # not of mixup images, of which there may be very many: T_g draws, T_d compares
        lr = open_cache(workdir, "views", split)
        if lr.manifest["rows"]:
            shape = network.features(lr.read(0, slice(0, 1))).shape[1:]
            yield Extraction(
                _targets(config, workdir, "generative", split, config.views.count, shape, network),
                lambda view, rows: lr.read(view, np.asarray(rows)), network.features, f"generative targets, {split}",
            )  # fmt: skip


def discriminative(config: ConfigDict, workdir: Path, process: ProcessInfo) -> None:
    """Runs T_d on every view at full size."""
    for job in discriminative_jobs(config, workdir):
        extract(job, process)


def discriminative_jobs(config: ConfigDict, workdir: Path) -> Iterator[Extraction]:
    """How the caches of T_d's embeddings are made, one a split."""
    network, how = discriminative_teacher(config), inputs.views(config)
    for split in _splits(config):
        source = read_faces(workdir, split)
        if len(source):
            views = inputs.target_views(config)
            yield Extraction(
                _targets(config, workdir, "discriminative", split, views, (network.dim,), network),
                view_loader(source, how, low=False), network.embed,
                f"discriminative targets, {split}",
            )  # fmt: skip


def read_faces(workdir: Path, split: str) -> Faces | MixupFaces:
    """The faces of a split: one of `REAL`, or "mixup" where the config wants mixup images."""
    path = _of_split(workdir / "faces", split, ".json")
    if split != "mixup":
        return Faces.load(path)
    how = json.loads(path.read_text(encoding="utf-8"))
    known, _ = read_faces(workdir, "train").split(how["without_last"])
    real = known, read_faces(workdir, "unlabeled")
    return MixupFaces(real, round(how["each"] * sum(map(len, real))), how["seed"])


def _of_split(step: Path, split: str, suffix: str = "") -> Path:
    """Where a step's output for a split is, or is to be: under its name of an earlier version if that is there."""
    path, before = (step / f"{name}{suffix}" for name in (split, NAMED_BEFORE.get(split, split)))
    return before if before.exists() and not path.exists() else path


def open_cache(workdir: Path, step: str, split: str) -> FeatureStore:
    """What the steps `views`, `generative` or `discriminative` made of a split."""
    # Resolved, for messages: the step may be another workdir's, see `config.base`.
    return FeatureStore.open(_of_split(workdir / step, split).resolve(), faces=read_faces(workdir, split).fingerprint)


def training_faces(workdir: Path) -> tuple[list[tuple[Faces, np.ndarray, np.ndarray, FeatureStore]], dict, str]:
    """What stage dis learns from in a workdir, whatever its inputs.

    Returns:
      Parts of faces: the faces, their rows, the labels of these (-1 for none), and the cache of T_d's embeddings; then
      `name` and `fingerprint` of T_d, and a fingerprint of the faces.

    Raises:
      GdrdError: it is no workdir, or the steps `faces` and `discriminative` are not finished.
    """
    config = Config(of_workdir(workdir))
    if not config or not (workdir / "faces" / "train.json").exists():
        raise GdrdError(f"{workdir} is no workdir with the step `faces` in it; run gdrd precompute first")
    parts, known = [], read_faces(workdir, "train")
    identities = len(known.identities) - config.data.calibration_people
    for split, rows in (("train", np.flatnonzero(known.labels < identities)), ("unlabeled", None)):
        faces = read_faces(workdir, split)
        rows = np.arange(len(faces)) if rows is None else rows
        if len(rows):
            parts.append((faces, rows, faces.labels[rows], open_cache(workdir, "discriminative", split)))
    return parts, teacher_of(config, parts[0][3]), ":".join(faces.fingerprint for faces, _, _, _ in parts)


def teacher_of(config: ConfigDict, targets: FeatureStore) -> dict[str, str]:
    """`name` and `fingerprint` of the T_d that made these targets."""
    return {"name": inputs.recognizer_name(config), "fingerprint": targets.manifest["made_from"]["teacher"]}


def _targets(
    config: ConfigDict, workdir: Path, step: str, split: str, views: int, shape: tuple[int, ...], network
) -> FeatureStore:
    faces = read_faces(workdir, split)
    how = inputs.views(config)
    packages = ("torch", "diffusers", "onnxruntime")
    made_by = {"gdrd_jax": __version__} | {name: metadata.version(name) for name in packages if util.find_spec(name)}
    return FeatureStore.create(
        _of_split(workdir / step, split), rows=len(faces), views=_view_count(split, views), shape=shape,
        dtype="float16", made_from={"faces": faces.fingerprint, "teacher": network.fingerprint},
        about={
            "teacher": network.settings, "views": dataclasses.asdict(how), "versions": made_by,
            "data": config.data.path, "machine": platform.platform(),
        },
        arrays=_arrays(config, step, split, how),
    )  # fmt: skip


def _arrays(config: ConfigDict, step: str, split: str, how: Views) -> str:
    """URL of a split's arrays in `data.cache`; workdirs share it, so its name encodes everything it depends on."""
    base, settings = config.data.cache.rstrip("/"), dataclasses.asdict(how)
    del settings["count"]  # each view has an array of its own
    if step == "discriminative":  # T_d sees faces before they are reduced
        settings = {name: settings[name] for name in ("seed", "shift", "rotate", "scale", "light")}
    return f"{base}/{step}/{split}-{digest(settings | {'format': FORMAT})[:16]}" if base else ""


def _splits(config: ConfigDict) -> tuple[str, ...]:
    return (*REAL, "mixup") if config.data.mixup_per_face else REAL


def _view_count(split: str, views: int) -> int:
    return 2 if split == "test" else views


def discriminative_teacher(config: ConfigDict):
    """T_d."""
    settings = config.discriminative
    return load_discriminative(
        inputs.recognizer(config), preprocessing=settings.preprocessing, precision=settings.precision,
        output=settings.output,
    )  # fmt: skip


def generative_teacher(config: ConfigDict, workdir: Path):
    """T_g: the user's, or the one that the step `teacher` trained."""
    settings = config.generative
    return load_generative(
        settings.kind, Path(settings.path) if settings.path else workdir / "teacher",
        precision=settings.precision, **inputs.generative_settings(config),
    )  # fmt: skip
