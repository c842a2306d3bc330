"""Exports a trained student as files that run elsewhere; each is verified before any is written."""

import dataclasses
import datetime
import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gdrd_jax.config import PATHS, of_workdir, with_current_names
from gdrd_jax.data.degradation import STRENGTHS, resize_all
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces
from gdrd_jax.data.task import FACES
from gdrd_jax.evaluation import dev
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.export import model_card, networks, verify
from gdrd_jax.inference import bundle
from gdrd_jax.inference.embedders import BATCH, Embedder, open_model, student_embedder
from gdrd_jax.inference.native import NativeRecognizer
from gdrd_jax.inference.pretrained import describe_student, find_student
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.thresholds import LEAST_PEOPLE, Thresholds, compared
from gdrd_jax.models import weights
from gdrd_jax.models.arguments import RGB, for_inference
from gdrd_jax.models.student import Shape, abstract_student
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import listed_paths, replacing, sha256, writable_folder, write_json, write_text
from gdrd_jax.version import __version__

LOG = logging.getLogger(__name__)
FORMATS = {
    "safetensors": bundle.WEIGHTS, "onnx": "student.onnx", "onnx_nchw": "student.nchw.onnx",
    "int8": "student.int8.onnx", "stablehlo": "student.stablehlo",
}  # fmt: skip
INEXACT = ("int8",)
COLORS = {1: "gray", 2: "gray and one more", 3: "RGB", 4: "RGB and one more"}  # by number of channels
PROVED = 1000  # faces on which the files are compared with the student, at most
LEAST_COSINE = 0.99999
CALIBRATED = 256  # faces to quantize on, at most
FEW = 64  # made-up images


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of an export.

    Attributes:
      student: a workdir, a checkpoint in one, or an exported or pretrained student, see `pretrained.find_student`.
      which: of a workdir, "student" or "best".
      formats: names of `FORMATS`; safetensors, which `Recognizer.load` reads, is always added.
      calibration: aligned faces of people whose identity the student was not trained on; None takes the run's own
        calibration people, or the thresholds of an exported student.
      lfw, pairs: LFW's faces and its pairs.txt, or a `.bin` and None; None measures no accuracy.
      baselines: recognizers, as gdrd evaluate takes them, measured on the same faces.
      half: round the weights to float16 first; the files take half the space.
      teacher: the student's teacher, `FILE.onnx[:PREPROCESSING]`, for thresholds against galleries that it embeds.
      evaluations: output folders of gdrd evaluate with this student, whose results the model card shows.
      license: terms of use, for the card and the files; "" takes those of an exported student, or else
        `model_card.LICENSE`.
    """

    student: str
    which: str
    formats: tuple[str, ...]
    calibration: Path | None
    lfw: Path | None
    pairs: Path | None
    baselines: tuple[str, ...] = ()
    half: bool = False
    teacher: str = ""
    evaluations: tuple[Path, ...] = ()
    license: str = ""


def export(settings: Settings, folder: Path) -> dict:
    """Writes an exported student; an older export of the same student is replaced.

    Returns:
      Its manifest.

    Raises:
      GdrdError: there is no student, or no faces; the folder holds another student or other things; a package is
        missing; or a file computes other embeddings than the student.
    """
    packages = ["onnx", "onnxruntime", "safetensors"]
    for package in packages + ["onnxruntime.quantization"] * ("int8" in settings.formats):
        require(package, "export")
    writable_folder(folder.absolute().parent)
    _refuse_others(folder)
    source = find_student(settings.student, settings.which)
    if source.resolve() == folder.resolve():
        raise GdrdError(f"{folder} is the student that is to be exported; choose another folder", "output-is-input")
    recognizer = Recognizer.load(settings.student, settings.which)
    known = describe_student(source)
    if settings.half:
        weights.round_weights(recognizer.student)
    fingerprint = recognizer.fingerprint()
    if (folder / bundle.MANIFEST).exists() and bundle.described_by(folder)["fingerprint"] != fingerprint:
        raise GdrdError(
            f"{folder} is the export of another student, which is not replaced; choose another folder",
            "output-other-student",
        )
    baselines = [_baseline(text, mirror=recognizer.student.shape.mirror) for text in settings.baselines]
    teacher = NativeRecognizer.load(settings.teacher, recognizer, option="--teacher") if settings.teacher else None
    evaluations = [_evaluation(path, fingerprint) for path in settings.evaluations]
    benchmark = _benchmark(settings, recognizer)
    calibration = _calibration(settings, source, recognizer)
    if calibration:
        recognizer = calibration.learn(recognizer, teacher)
        few = calibration.low[np.random.default_rng(0).permutation(len(calibration.low))[:PROVED]]
        named = calibration.name
    elif "int8" in settings.formats or teacher:
        raise GdrdError("--format int8 and --teacher need faces; give --calibration FACES", "calibration-missing")
    else:
        few, named = _images(benchmark, recognizer.student.shape)
    license = settings.license or known.get("license") or known.get("licence", model_card.LICENSE)
    formats = dict.fromkeys(("safetensors", *settings.formats))
    remarks = {
        "fingerprint": fingerprint, "resolution": str(recognizer.resolution), "kernel": recognizer.kernel,
        "colors": COLORS[recognizer.student.shape.channels], "license": license,
        "thresholds": json.dumps(_plain(recognizer.thresholds)), "made_by": f"gdrd_jax {__version__}",
    }  # fmt: skip
    arguments = for_inference(known["student"])
    with replacing(folder) as new:
        paths = {name: new / FORMATS[name] for name in formats}
        for name, path in paths.items():
            _write(name, path, recognizer, remarks, few, settings.half)
        if "int8" in paths:
            _describe_apart(paths["int8"], calibration)
        written = [_backend(name, path, recognizer, arguments) for name, path in paths.items()]
        forms = [student_embedder("JAX", recognizer), *written]
        LOG.info("comparing %s on %d faces", ", ".join(one.name for one in [*forms, *baselines]), len(few))
        rows = verify.verify_exports(forms, baselines, few, benchmark)
        _refuse_wrong(rows)
        training = known.get("training")
        training = of_workdir(Path(settings.student)) if training is None else with_current_names(training)
        manifest = {
            **bundle.described(
                arguments, recognizer.kernel, fingerprint, recognizer.thresholds, list(paths.values()),
                recognizer.teacher, recognizer.native_thresholds,
            ),
            **({} if recognizer.task == FACES else {"task": recognizer.task.recorded()}),
            "proof": {
                "rows": rows, "faces": len(few), "of": named,
                "pairs_of": settings.lfw.resolve().name if benchmark else "",
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "date": datetime.date.today().isoformat(),
            },
            "evaluations": evaluations or known.get("evaluations", []),
            "training": without_folders(training),
            "best_at_step": known.get("best_at_step", known.get("step")), "license": license,
            "version": __version__,
        }  # fmt: skip
        write_text(new / "README.md", model_card.text(manifest))
        write_json(new / bundle.MANIFEST, manifest)
    LOG.info("%s\n%s", folder, verify.table(rows))
    return manifest


def _plain(thresholds: Thresholds | None) -> dict | None:
    return dataclasses.asdict(thresholds) if thresholds else None


def _refuse_others(folder: Path) -> None:
    """Refuses to replace anything but an exported student.

    Raises:
      GdrdError: the folder holds something else, or cannot be replaced.
    """
    there = folder.resolve()
    if os.path.ismount(there) or Path.cwd().is_relative_to(there):
        raise GdrdError(
            f"{folder} is a mount point, or contains the current directory, and an export replaces the whole folder; "
            "choose another folder",
            "output-in-use",
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    strange = {path.name for path in folder.iterdir()} - {*FORMATS.values(), bundle.MANIFEST, "README.md"}
    if strange:
        raise GdrdError(
            f"{folder} holds other things than an exported student, such as {min(strange)}; choose another folder",
            "output-not-ours",
        )
    if not bundle.is_exported(bundle.described_by(folder)):
        raise GdrdError(f"{folder} holds the student of a training run; choose another folder", "output-not-ours")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Faces of people whose identity the student was not trained on.

    Attributes:
      name: name of the faces.
      faces: the faces at full size.
      low: the student's inputs, uint8 RGB `[N, R, R, 3]`.
    """

    name: str
    faces: Faces
    low: np.ndarray

    def learn(self, recognizer: Recognizer, teacher: NativeRecognizer | None) -> Recognizer:
        """The recognizer with thresholds, and with those for galleries of its teacher if that is given."""
        labels, embeddings, native = self.faces.labels, recognizer.embed(self.low), None
        if teacher:
            full = []
            with tqdm(total=len(self.faces), desc=f"{teacher.model.name} at full size", unit="face") as progress:
                for start in range(0, len(self.faces), BATCH):
                    faces = [self.faces[row] for row in range(start, min(start + BATCH, len(self.faces)))]
                    full.append(teacher.embed(np.stack(faces)))
                    progress.update(len(faces))
            native = Thresholds.learn(embeddings, labels, self.name, np.concatenate(full))
        own = Thresholds.learn(embeddings, labels, self.name)
        return dataclasses.replace(recognizer, thresholds=own, native_thresholds=native)


def _calibration(settings: Settings, source: Path, recognizer: Recognizer) -> Calibration | None:
    """What thresholds are learned on; None where an exported student brings them."""
    low = lambda faces: resize_all(faces, recognizer.resolution, recognizer.kernel)  # noqa: E731
    if settings.calibration:
        found = open_faces(settings.calibration, task=recognizer.task)
        found = checked(found.take(compared(found.labels)))
        return Calibration(settings.calibration.resolve().name, found, low(found))
    if (source / bundle.MANIFEST).exists() and bundle.is_exported(bundle.described_by(source)):
        return None
    workdir = Path(settings.student)
    data = of_workdir(workdir).get("data", {})
    if data.get("test_images") and (workdir / "faces" / "test.json").exists():
        found = Faces.load(workdir / "faces" / "test.json")
        return Calibration("the run's test images", found, low(found))
    people = data.get("calibration_people", 0)
    known = workdir / "faces" / "train.json"
    if people < LEAST_PEOPLE or not known.exists():
        raise GdrdError(
            f"there are no faces to learn thresholds on: the run kept {people} calibration people; give --calibration "
            "FACES, aligned faces of people whose identity the student was not trained on",
            "calibration-missing",
        )
    found = Faces.load(known)
    found = found.take(found.rows_of_last_identities(people, max(np.bincount(found.labels))))
    found = found.take(compared(found.labels))
    return Calibration(f"the run's {people} calibration people", found, low(found))


def _images(benchmark: PairList | None, shape: Shape) -> tuple[np.ndarray, str]:
    """What to compare files on where there are no calibration faces: those of the pairs, or made-up ones."""
    if benchmark:
        return benchmark.faces[:PROVED], Path(benchmark.about.get("pairs", "the pairs")).name
    random = np.random.default_rng(0)
    side = shape.resolution
    rough = random.integers(0, 256, (FEW, side // 4, side // 4, shape.channels), np.uint8)
    return resize_all(rough, side), "made-up images"


def _evaluation(folder: Path, fingerprint: str) -> dict:
    """The part of an evaluation that the model card shows.

    Raises:
      GdrdError: the folder holds no evaluation, or not one of this student.
    """
    try:
        document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        settings, results = document["settings"], document["results"]
        models = [model["fingerprint"] for model in settings["models"].values()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(
            f"--evaluation: {folder} holds no metrics.json of gdrd evaluate", "evaluation-missing"
        ) from error
    if fingerprint not in models:
        raise GdrdError(
            f"--evaluation: {folder} is not an evaluation of this student ({fingerprint[:12]}); run gdrd evaluate on "
            "the exported folder, then export again",
            "evaluation-other-student",
        )
    strengths = ", ".join(f"{name} {settings[name]:g}" for name in STRENGTHS if settings[name])
    data = Path(settings.get("protocol_settings", settings).get("pairs") or settings["data"]).name
    rows = [
        {"row": row, **{name: [found[name], *ends] for name, ends in found["intervals"].items() if name in found}}
        for row, found in results.items()
    ]
    return {
        "protocol": document["protocol"], "data": data, "kernel": settings["kernel"], "degraded": strengths,
        "stand_in": document["stand_in"], "rows": rows,
    }  # fmt: skip


def _benchmark(settings: Settings, recognizer: Recognizer) -> PairList | None:
    """The pairs, their faces as the student gets them: uint8 RGB `[N, R, R, 3]`."""
    if not settings.lfw:
        if settings.pairs:
            raise GdrdError("--pairs needs the faces that it names; give --lfw FACES", "flag-missing")
        return None
    if not recognizer.task.aligned or recognizer.student.shape.channels != RGB:
        raise GdrdError(
            f"--lfw measures students of RGB faces, and this one takes other {recognizer.task.images}; leave it out",
            "task-lfw",
        )
    pairs = dev.open_pairs(settings.lfw, settings.pairs)
    return dataclasses.replace(pairs, faces=resize_all(pairs.faces, recognizer.resolution, recognizer.kernel))


def without_folders(config: dict) -> dict:
    """A run's settings with file names in place of paths, which are those of the machine that it ran on."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    kept.pop("outputs", None)
    kept.pop("base", None)  # of version 0.4
    for section, key in (name.split(".") for name in PATHS if "." in name):
        given = kept.get(section, {}).get(key)
        if given and os.sep in given:  # not what an earlier export has without folders already
            kept[section][key] = ", ".join(path.name.strip() for path in listed_paths(given))
    if "data" in kept:
        kept["data"].pop("cache", None)
    return kept


def _describe_apart(path: Path, calibration: Calibration) -> None:
    """Gives a file whose embeddings differ from the student's its own thresholds and fingerprint."""
    onnx = require("onnx", "export")
    embed, starts = _session(path), range(0, len(calibration.low), BATCH)
    embeddings = np.concatenate([embed(calibration.low[i : i + BATCH]) for i in starts])
    thresholds = Thresholds.learn(embeddings, calibration.faces.labels, calibration.name)
    model = onnx.load(path)
    remarks = {entry.key: entry.value for entry in model.metadata_props}
    own = {"fingerprint": sha256(path), "thresholds": json.dumps(dataclasses.asdict(thresholds))}
    onnx.helper.set_model_props(model, remarks | own)
    path.write_bytes(model.SerializeToString())


def _session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    session = require("onnxruntime", "export").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda faces: session.run(None, {networks.INPUT: faces})[0]


def _write(
    name: str, path: Path, recognizer: Recognizer, remarks: dict[str, str], faces: np.ndarray, half: bool
) -> None:
    if name == "safetensors":
        weights.save_safetensors(recognizer.student, path, remarks, half=half)
    elif name == "stablehlo":
        path.write_bytes(networks.stablehlo(recognizer.student))
    else:
        layout = "nchw" if name == "onnx_nchw" else "nhwc"
        model = networks.onnx_model(recognizer.student, layout=layout, metadata=remarks)
        if name == "int8":
            model = networks.quantized(model, faces[:CALIBRATED])
        path.write_bytes(model.SerializeToString())


def _backend(name: str, path: Path, recognizer: Recognizer, settings: dict) -> Embedder:
    """The written file, run by what will run it elsewhere."""
    if name == "safetensors":
        student = abstract_student(settings)
        weights.restore(student, weights.load_safetensors(path)[0])
        student.eval()
        return student_embedder(name, dataclasses.replace(recognizer, student=student))
    if name == "stablehlo":
        return Embedder(name, recognizer.resolution, networks.stablehlo_function(path.read_bytes()))
    session = _session(path)
    forward = (lambda faces: session(_for_insightface(faces))) if name == "onnx_nchw" else session
    return Embedder(name, recognizer.resolution, forward)


def _for_insightface(faces: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((faces.transpose(0, 3, 1, 2) - np.float32(127.5)) / np.float32(127.5))


def _baseline(text: str, *, mirror: bool) -> Embedder:
    """Another recognizer, which gets enlarged faces."""
    model = open_model(text, option="--baseline", mirror=mirror)
    name = model.name if model.is_student else f"{model.name}, faces enlarged to {model.input_size}"
    return dataclasses.replace(model, name=name)


def _refuse_wrong(rows: list[dict]) -> None:
    for row in rows:
        if row["name"] not in INEXACT and not row.get("least_cosine", 1.0) > LEAST_COSINE:
            raise GdrdError(
                f"{row['name']}: its embeddings have a cosine of only {row['least_cosine']:.6f} to the student's; "
                "nothing was written. This is a bug in gdrd_jax; please report it",
                "export-inexact",
            )
