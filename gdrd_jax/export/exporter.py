"""Exports a trained student as files that run elsewhere; each is verified before any is written."""

import dataclasses
import datetime
import json
import logging
import os
import platform
from pathlib import Path

import numpy as np

from gdrd_jax.config import of_workdir, with_current_names, without_folders
from gdrd_jax.data.degradation import resize_all
from gdrd_jax.data.task import FACES
from gdrd_jax.evaluation import dev
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.export import calibration, formats, model_card, verify
from gdrd_jax.inference import bundle
from gdrd_jax.inference.embedders import Embedder, open_model, student_embedder
from gdrd_jax.inference.native import NativeRecognizer
from gdrd_jax.inference.pretrained import describe_student, find_student
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.thresholds import Thresholds
from gdrd_jax.models import weights
from gdrd_jax.models.arguments import RGB, for_inference
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import replacing, writable_folder, write_json, write_text
from gdrd_jax.version import __version__

LOG = logging.getLogger(__name__)
PROVED = 1000  # faces on which the files are compared with the student, at most
LEAST_COSINE, LARGEST_QUALITY_DIFFERENCE = 0.99999, 1e-4
FEW = 64  # made-up images


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of an export.

    Attributes:
      student: a workdir, a checkpoint in one, or an exported or pretrained student, see `pretrained.find_student`.
      which: of a workdir, "student" or "best".
      formats: names of `formats.FORMATS`; safetensors, which `Recognizer.load` reads, is always added.
      calibration: aligned faces of people whose identity the student was not trained on; None takes the run's own
        calibration people, or the thresholds of an exported student.
      lfw, pairs: LFW's faces and its pairs.txt, or a `.bin` and None; None measures no accuracy.
      baselines: recognizers, as gdrd evaluate takes them, measured on the same faces.
      half: round the weights to float16 first; the files take half the space.
      mirror: False leaves out the mirror image: embeddings take less time, and need thresholds of their own.
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
    mirror: bool = True
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
    formats.check(settings.formats, recognizer)
    known = describe_student(source)
    arguments = for_inference(known["student"])
    if settings.half:
        weights.round_weights(recognizer.student)
    if recognizer.student.shape.mirror and not settings.mirror:
        arguments["mirror"] = False
        recognizer.student.shape = dataclasses.replace(recognizer.student.shape, mirror=False)
        recognizer = dataclasses.replace(
            recognizer, thresholds=None, native_thresholds=None, template_scores=None, native_template_scores=None,
            quality=None,
        )  # fmt: skip
    fingerprint = recognizer.fingerprint()
    if (folder / bundle.MANIFEST).exists() and bundle.described_by(folder)["fingerprint"] != fingerprint:
        raise GdrdError(
            f"{folder} is the export of another student, which is not replaced; choose another folder",
            "output-other-student",
        )
    baselines = [_baseline(text, mirror=recognizer.student.shape.mirror) for text in settings.baselines]
    teacher = NativeRecognizer.load(settings.teacher, recognizer, option="--teacher") if settings.teacher else None
    evaluations = [model_card.evaluation(path, fingerprint) for path in settings.evaluations]
    benchmark = _benchmark(settings, recognizer)
    calibrated = calibration.find(settings.calibration, settings.student, source, recognizer)
    held_out = known.get("held_out", {}) if recognizer.thresholds else {}
    if calibrated:
        recognizer, held_out = calibrated.learn(recognizer, teacher)
        few = calibrated.some(PROVED)
        named = calibrated.name
    elif "int8" in settings.formats or teacher:
        raise GdrdError("--format int8 and --teacher need faces; give --calibration FACES", "calibration-missing")
    else:
        few, named = _images(benchmark, recognizer)
    if "onnx_quality" in settings.formats:
        recognizer.require_quality()
    license = settings.license or known.get("license") or known.get("licence", model_card.LICENSE)
    names = dict.fromkeys(("safetensors", *settings.formats))
    remarks = {
        "fingerprint": fingerprint, "resolution": str(recognizer.resolution), "kernel": recognizer.kernel,
        "colors": formats.COLORS[recognizer.student.shape.channels], "license": license,
        "thresholds": json.dumps(_plain(recognizer.thresholds)), "made_by": f"gdrd_jax {__version__}",
        **({"quality": json.dumps(dataclasses.asdict(recognizer.quality))} if recognizer.quality else {}),
    }  # fmt: skip
    with replacing(folder) as new:
        paths = {name: new / formats.FORMATS[name] for name in names}
        for name, path in paths.items():
            formats.write(name, path, recognizer, remarks, few, settings.half)
        if "int8" in paths:
            calibration.describe_apart(paths["int8"], calibrated)
        written = [formats.opened(name, path, recognizer, arguments) for name, path in paths.items()]
        forms = [student_embedder("JAX", recognizer), *written]
        LOG.info("comparing %s on %d faces", ", ".join(one.name for one in [*forms, *baselines]), len(few))
        rows = verify.verify_exports(forms, baselines, few, benchmark)
        _refuse_wrong(rows)
        training = known.get("training")
        training = of_workdir(Path(settings.student)) if training is None else with_current_names(training)
        manifest = {
            **bundle.described(
                arguments, recognizer.kernel, fingerprint, recognizer.thresholds, list(paths.values()),
                recognizer.teacher, recognizer.native_thresholds, recognizer.quality, recognizer.template_scores,
                recognizer.native_template_scores,
            ),
            "held_out": held_out,
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
    strange = {path.name for path in folder.iterdir()} - {*formats.FORMATS.values(), bundle.MANIFEST, "README.md"}
    if strange:
        raise GdrdError(
            f"{folder} holds other things than an exported student, such as {min(strange)}; choose another folder",
            "output-not-ours",
        )
    if not bundle.is_exported(bundle.described_by(folder)):
        raise GdrdError(f"{folder} holds the student of a training run; choose another folder", "output-not-ours")


def _images(benchmark: PairList | None, recognizer: Recognizer) -> tuple[np.ndarray, str]:
    """What to compare files on where there are no calibration faces: those of the pairs, or made-up ones.

    uint8 `[N, S, S, C]` of the task's size, and a name for them.
    """
    size = recognizer.task.image_size
    if benchmark:
        faces = benchmark.named_faces
        few = [faces[row] for row in range(min(len(faces), PROVED))]
        return np.stack(few), Path(benchmark.about.get("pairs", "the pairs")).name
    random = np.random.default_rng(0)
    cells, channels = recognizer.resolution // 4, recognizer.student.shape.channels
    return resize_all(random.integers(0, 256, (FEW, cells, cells, channels), np.uint8), size), "made-up images"


def _benchmark(settings: Settings, recognizer: Recognizer) -> PairList | None:
    """The pairs of faces at full size."""
    if not settings.lfw:
        if settings.pairs:
            raise GdrdError("--pairs needs the faces that it names; give --lfw FACES", "flag-missing")
        return None
    if not recognizer.task.aligned or recognizer.student.shape.channels != RGB:
        raise GdrdError(
            f"--lfw measures students of RGB faces, and this one takes other {recognizer.task.images}; leave it out",
            "task-lfw",
        )
    return dev.open_pairs(settings.lfw, settings.pairs)


def _baseline(text: str, *, mirror: bool) -> Embedder:
    """Another recognizer, which gets enlarged faces."""
    model = open_model(text, option="--baseline", mirror=mirror)
    name = model.name if model.is_student else f"{model.name}, faces enlarged to {model.input_size}"
    return dataclasses.replace(model, name=name)


def _refuse_wrong(rows: list[dict]) -> None:
    for row in rows:
        wrong = None
        if row["name"] not in formats.INEXACT and not row.get("least_cosine", 1.0) > LEAST_COSINE:
            wrong = f"embeddings have a cosine of only {row['least_cosine']:.6f} to the student's"
        elif not row.get("quality_difference", 0.0) < LARGEST_QUALITY_DIFFERENCE:
            wrong = f"quality scores differ from the student's by up to {row['quality_difference']:.1e}"
        if wrong:
            raise GdrdError(
                f"{row['name']}: its {wrong}; nothing was written. This is a bug in gdrd_jax; please report it",
                "export-inexact",
            )
