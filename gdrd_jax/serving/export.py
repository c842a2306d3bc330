"""A trained student as files that run elsewhere, each of which has to prove itself before any is written."""

import dataclasses
import datetime
import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gdrd_jax import __version__
from gdrd_jax.checkpoints import load_description
from gdrd_jax.config import PATHS
from gdrd_jax.data.align import FACE_SIZE
from gdrd_jax.data.degrade import resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.formats import open_faces
from gdrd_jax.data.prepare import checked
from gdrd_jax.errors import GdrdError, require
from gdrd_jax.evaluation import dev
from gdrd_jax.evaluation.models import open_model
from gdrd_jax.files import replacing, sha256, writable_folder, write_json, write_text
from gdrd_jax.models.student import unset_student
from gdrd_jax.recognizer import Recognizer, directory_of
from gdrd_jax.serving import bundle, card, networks, proof
from gdrd_jax.serving.proof import Form, Judges
from gdrd_jax.serving.thresholds import LEAST_PEOPLE, Thresholds, compared

LOG = logging.getLogger(__name__)
FORMATS = {
    "safetensors": bundle.WEIGHTS, "onnx": "student.onnx", "onnx_nchw": "student.nchw.onnx",
    "int8": "student.int8.onnx", "stablehlo": "student.stablehlo",
}  # fmt: skip
INEXACT = ("int8",)
PROVED = 1000  # faces
LEAST_COSINE = 0.99999
CALIBRATED = 256  # faces, of int8


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is exported.

    Attributes:
      workdir: of the run.
      which: "student" or "best", see `Recognizer.load`.
      formats: of `FORMATS`; safetensors, which `Recognizer.load` reads, is always there.
      calibration: aligned faces of people whose identity the student did not learn; None takes the run's own
        calibration people.
      lfw, pairs: LFW's faces and its pairs.txt, or a `.bin` and None; None measures no accuracy.
      beside: recognisers, as tools/evaluate.py takes them, measured on the same faces.
    """

    workdir: Path
    which: str
    formats: tuple[str, ...]
    calibration: Path | None
    lfw: Path | None
    pairs: Path | None
    beside: tuple[str, ...] = ()


def export(settings: Settings, folder: Path) -> dict:
    """Writes an exported student; an older export of the same student is replaced.

    Returns:
      Its manifest.

    Raises:
      GdrdError: no student or faces, the folder holds another student or other things, a package is missing, or a file
        does not do what the student does.
    """
    packages = ["onnx", "onnxruntime", "safetensors"]
    for package in packages + ["onnxruntime.quantization"] * ("int8" in settings.formats):
        require(package, "export")
    writable_folder(folder.absolute().parent)
    _refuse_others(folder)
    if (settings.workdir / bundle.MANIFEST).exists():
        raise GdrdError(f"{settings.workdir} is an exported student; give the workdir that it was exported from")
    recognizer = Recognizer.load(settings.workdir, settings.which)
    if (folder / bundle.MANIFEST).exists() and bundle.described_by(folder)["fingerprint"] != recognizer.fingerprint():
        raise GdrdError(f"{folder} is the export of another student, which is not replaced; choose another folder")
    beside = [_beside(text) for text in settings.beside]
    judges = _judges(settings, recognizer)
    named, faces, labels = _calibration(settings, recognizer)
    thresholds = Thresholds.learn(recognizer.embed(faces), labels, named)
    few = faces[np.random.default_rng(0).permutation(len(faces))[:PROVED]]
    fingerprint, formats = recognizer.fingerprint(), dict.fromkeys(("safetensors", *settings.formats))
    remarks = {
        "fingerprint": fingerprint, "resolution": str(recognizer.resolution), "kernel": recognizer.kernel,
        "colours": "RGB", "thresholds": json.dumps(dataclasses.asdict(thresholds)), "licence": card.LICENCE,
        "made_by": f"gdrd_jax {__version__}",
    }  # fmt: skip
    description = load_description(directory_of(settings.workdir, settings.which))
    arguments = description["student"]
    with replacing(folder) as new:
        paths = {name: new / FORMATS[name] for name in formats}
        for name, path in paths.items():
            _write(name, path, recognizer, remarks, few)
        if "int8" in paths:
            _describe_apart(paths["int8"], faces, labels, named)
        written = [_form(name, path, recognizer, arguments) for name, path in paths.items()]
        forms = [Form("JAX", recognizer.embed), *written]
        LOG.info("comparing %s on %d faces", ", ".join(form.name for form in [*forms, *beside]), len(few))
        rows = proof.prove([*forms, *beside], few, judges)
        _refuse_wrong(rows)
        manifest = {
            **bundle.described(arguments, recognizer.kernel, fingerprint, thresholds, list(paths.values())),
            "proof": {
                "rows": rows, "faces": len(few), "of": named, "pairs_of": settings.lfw.resolve().name if judges else "",
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "date": datetime.date.today().isoformat(),
            },
            "training": _nameless(_training(settings.workdir)), "best_at_step": description.get("step"),
            "licence": card.LICENCE, "version": __version__,
        }  # fmt: skip
        write_text(new / "README.md", card.text(manifest))
        write_json(new / bundle.MANIFEST, manifest)
    LOG.info("%s\n%s", folder, proof.table(rows))
    return manifest


def _refuse_others(folder: Path) -> None:
    """What is replaced has to be an exported student and nothing else."""
    there = folder.resolve()
    if os.path.ismount(there) or Path.cwd().is_relative_to(there):
        raise GdrdError(f"{folder} is a disk of its own or where you are; it is replaced as a whole, so choose another")
    if not folder.exists() or not any(folder.iterdir()):
        return
    strange = {path.name for path in folder.iterdir()} - {*FORMATS.values(), bundle.MANIFEST, "README.md"}
    if not strange:
        bundle.described_by(folder)
    else:
        raise GdrdError(
            f"{folder} holds other things than an exported student, such as {min(strange)}; choose another folder"
        )


def _calibration(settings: Settings, recognizer: Recognizer) -> tuple[str, np.ndarray, np.ndarray]:
    """A name, low-resolution faces `[N, R, R, 3]` and labels of people who are strangers to the student."""
    if settings.calibration:
        found = open_faces(settings.calibration)
        found = checked(found.take(compared(found.labels)))
        return (
            settings.calibration.resolve().name,
            dev.reduced(found, recognizer.resolution, recognizer.kernel),
            found.labels,
        )
    run = _training(settings.workdir)
    people = run.get("data", {}).get("calibration_people", 0)
    known = settings.workdir / "faces" / "train.json"
    if people < LEAST_PEOPLE or not known.exists():
        raise GdrdError(
            f"there is nobody to learn thresholds on: this run kept {people or 'no'} calibration people; give "
            "--calibration FACES, aligned faces of people whose identity the student did not learn"
        )
    found = Faces.load(known)
    found = found.take(found.few_of_last(people, max(np.bincount(found.labels))))
    name = f"the run's {people} calibration people"
    return name, dev.reduced(found, recognizer.resolution, recognizer.kernel), found.labels


def _judges(settings: Settings, recognizer: Recognizer) -> Judges | None:
    if not settings.lfw:
        if settings.pairs:
            raise GdrdError("--pairs needs the faces that it names: --lfw FACES")
        return None
    pairs = dev.open_pairs(settings.lfw, settings.pairs)
    return Judges(pairs, dev.reduced(pairs.faces, recognizer.resolution, recognizer.kernel))


def _training(workdir: Path) -> dict:
    """The run's config; empty where it is not known."""
    path = workdir / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _nameless(config: dict) -> dict:
    """Without the folders of the machine that it was trained on."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items() if key != "base"}
    for section, key in (name.split(".") for name in PATHS):
        if kept.get(section, {}).get(key):
            kept[section][key] = Path(kept[section][key]).name
    return kept


def _describe_apart(path: Path, faces: np.ndarray, labels: np.ndarray, named: str) -> None:
    """Gives a file whose embeddings are not the student's thresholds and a fingerprint of its own."""
    onnx = require("onnx", "export")
    embed, starts = _session(path), range(0, len(faces), proof.AT_ONCE)
    embeddings = np.concatenate([embed(faces[i : i + proof.AT_ONCE]) for i in starts])
    thresholds = Thresholds.learn(embeddings, labels, named)
    model = onnx.load(path)
    remarks = {entry.key: entry.value for entry in model.metadata_props}
    own = {"fingerprint": sha256(path), "thresholds": json.dumps(dataclasses.asdict(thresholds))}
    onnx.helper.set_model_props(model, remarks | own)
    path.write_bytes(model.SerializeToString())


def _session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    session = require("onnxruntime", "export").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda faces: session.run(None, {networks.INPUT: faces})[0]


def _write(name: str, path: Path, recognizer: Recognizer, remarks: dict[str, str], faces: np.ndarray) -> None:
    if name == "safetensors":
        networks.save_safetensors(recognizer.student, path, remarks)
    elif name == "stablehlo":
        path.write_bytes(networks.stablehlo(recognizer.student))
    else:
        layout = "nchw" if name == "onnx_nchw" else "nhwc"
        model = networks.onnx_model(recognizer.student, layout=layout, metadata=remarks)
        if name == "int8":
            model = networks.quantised(model, faces[:CALIBRATED])
        path.write_bytes(model.SerializeToString())


def _form(name: str, path: Path, recognizer: Recognizer, settings: dict) -> Form:
    """The written file, run by what will run it elsewhere."""
    if name == "safetensors":
        student = unset_student(settings)
        networks.restore(student, networks.load_safetensors(path)[0])
        student.eval()
        return Form(name, dataclasses.replace(recognizer, student=student).embed)
    if name == "stablehlo":
        return Form(name, networks.stablehlo_function(path.read_bytes()))
    return Form(name, _session(path), _for_insightface if name == "onnx_nchw" else np.asarray)


def _for_insightface(faces: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((faces.transpose(0, 3, 1, 2) - np.float32(127.5)) / np.float32(127.5))


def _beside(text: str) -> Form:
    """Another recogniser, fed with enlarged faces."""
    try:
        model = open_model(text)
    except GdrdError as error:
        raise GdrdError(str(error).replace("--model", "--beside")) from error
    prepare: Callable = lambda faces: np.stack([resize(face, model.size, "bicubic") for face in faces])  # noqa: E731
    name = f"{model.name}, faces enlarged to {FACE_SIZE}" if model.size == FACE_SIZE else model.name
    return Form(name, model.embed, prepare, same=False)


def _refuse_wrong(rows: list[dict]) -> None:
    for row in rows:
        if row["name"] not in INEXACT and not row.get("least_cosine", 1.0) > LEAST_COSINE:
            raise GdrdError(
                f"{row['name']}: its embeddings have a cosine of only {row['least_cosine']:.6f} to the student's; "
                "nothing was written. This is a mistake of this program; please report it"
            )
