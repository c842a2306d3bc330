"""The folder of a student: `student.safetensors`, the weights, and `manifest.json`, which describes them.

Training writes such folders into its workdir; gdrd export adds thresholds, README.md (the model card), and the other
formats: `student.onnx`, `student.int8.onnx`, `student.stablehlo`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.inference.quality import Quality
from gdrd_jax.inference.template_scores import TemplateScores
from gdrd_jax.inference.thresholds import Thresholds
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import sha256

FORMAT = 2
MANIFEST, WEIGHTS = "manifest.json", "student.safetensors"


def described(
    student: dict, kernel: str, fingerprint: str, thresholds: Thresholds | None, files: list[Path],
    teacher: dict | None = None, native_thresholds: Thresholds | None = None, quality: Quality | None = None,
    template_scores: TemplateScores | None = None, native_template_scores: TemplateScores | None = None,
) -> dict:  # fmt: skip
    """The entries that every manifest has.

    Args:
      student: its arguments, see `models.arguments`.
      kernel: downsampling kernel of the student's input, see `data.degradation.resize`.
      fingerprint: of the recognizer.
      thresholds: None if there are none.
      files: the other files of the folder; the manifest holds their sha256.
      teacher, native_thresholds, quality, template_scores, native_template_scores: see `Recognizer`.
    """
    plain = lambda learned: dataclasses.asdict(learned) if learned else None  # noqa: E731
    return {
        "format": FORMAT, "student": student, "kernel": kernel, "fingerprint": fingerprint,
        "thresholds": plain(thresholds), "teacher": teacher, "native_thresholds": plain(native_thresholds),
        "quality": plain(quality), "template_scores": plain(template_scores),
        "native_template_scores": plain(native_template_scores),
        "files": {path.name: sha256(path) for path in files},
    }  # fmt: skip


def read(folder: Path) -> dict:
    """The manifest of a student whose weights are the ones that the manifest describes.

    Raises:
      GdrdError: the manifest or the weights are damaged, or of another version.
    """
    manifest = described_by(folder)
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != manifest["files"][WEIGHTS]:
        raise GdrdError(
            f"{folder / WEIGHTS} is missing or is not the file that {MANIFEST} describes; copy the folder again, or, "
            "if it came with gdrd_jax, reinstall that: python -m pip install --force-reinstall --no-deps gdrd_jax",
            "weights-damaged",
        )
    return manifest


def described_by(folder: Path) -> dict:
    """The manifest alone; raises as `read`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
        for key in ("student", "kernel", "fingerprint", "thresholds"):
            manifest[key]
        manifest["files"][WEIGHTS]
        thresholds(manifest)
        thresholds(manifest, "native_thresholds")
        quality(manifest)
        template_scores(manifest, "template_scores")
        template_scores(manifest, "native_template_scores")
        if manifest["kernel"] not in KERNELS:
            raise ValueError(f"kernel {manifest['kernel']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(
            f"{folder} holds no {MANIFEST} of a student that this version reads; copy the folder again, or export the "
            "student again into another folder",
            "manifest-invalid",
        ) from error
    return manifest


def is_exported(manifest: dict) -> bool:
    """Whether gdrd export wrote a manifest, and not training."""
    return "proof" in manifest or "training" in manifest


def thresholds(manifest: dict, which: str = "thresholds") -> Thresholds | None:
    """The thresholds of a manifest, if any; `which` can be "native_thresholds", which version 0.4.0 did not write."""
    found = manifest.get(which)
    if found is None:
        return None
    fields: dict[str, Any] = {
        name: tuple(map(float, value)) if isinstance(value, list) else value for name, value in dict(found).items()
    }
    kept = Thresholds(**fields)
    if not 0 < len(kept.fars) == len(kept.values) == len(kept.tars):
        raise ValueError("thresholds")
    return kept


def quality(manifest: dict) -> Quality | None:
    """The quality score of a manifest, if any; versions before 0.5 wrote none."""
    found = manifest.get("quality")
    return None if found is None else Quality(**found)


def template_scores(manifest: dict, which: str) -> TemplateScores | None:
    """`which` of a manifest, "template_scores" or "native_template_scores"; versions before 0.5 wrote none."""
    found = manifest.get(which)
    return TemplateScores(**found) if found else None
