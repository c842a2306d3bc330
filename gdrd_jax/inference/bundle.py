"""An exported student: a folder that says what it is.

`manifest.json`, `student.safetensors` (the weights, which `Recognizer.load` reads), README.md (the model card), and
what else was asked for: `student.onnx`, `student.int8.onnx`, `student.stablehlo`.
"""

import dataclasses
import json
from pathlib import Path

from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.inference.thresholds import Thresholds
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import sha256

FORMAT = 2
MANIFEST, WEIGHTS = "manifest.json", "student.safetensors"


def described(
    student: dict, kernel: str, fingerprint: str, thresholds: Thresholds | None, files: list[Path],
    teacher: dict | None = None, native_thresholds: Thresholds | None = None,
) -> dict:  # fmt: skip
    """What a manifest says at least.

    Args:
      student: the arguments of `models.student.Student`.
      kernel: reduces faces.
      fingerprint: of the recognizer.
      thresholds: None where there was nothing to learn them on.
      files: of the folder.
      teacher, native_thresholds: see `Recognizer`.
    """
    return {
        "format": FORMAT, "student": student, "kernel": kernel, "fingerprint": fingerprint,
        "thresholds": dataclasses.asdict(thresholds) if thresholds else None, "teacher": teacher,
        "native_thresholds": dataclasses.asdict(native_thresholds) if native_thresholds else None,
        "files": {path.name: sha256(path) for path in files},
    }  # fmt: skip


def read(folder: Path) -> dict:
    """The manifest of an exported student, whose weights are those that were exported.

    Raises:
      GdrdError: it is damaged, or of another version.
    """
    manifest = described_by(folder)
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != manifest["files"][WEIGHTS]:
        raise GdrdError(
            f"{folder / WEIGHTS} is missing or is not what was exported; copy the folder again, or, if it came with "
            "gdrd_jax, reinstall that: python -m pip install --force-reinstall --no-deps gdrd_jax"
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
        if manifest["kernel"] not in KERNELS:
            raise ValueError(f"kernel {manifest['kernel']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(
            f"{folder} holds no manifest.json of an exported student that this version reads; "
            "export it again into another folder"
        ) from error
    return manifest


def thresholds(manifest: dict, which: str = "thresholds") -> Thresholds | None:
    """As `described` got them; `which` can be "native_thresholds", which version 0.4.0 did not write."""
    found = manifest.get(which)
    if found is None:
        return None
    kept = Thresholds(
        **{name: tuple(map(float, value)) if isinstance(value, list) else value for name, value in dict(found).items()}
    )
    if not 0 < len(kept.fars) == len(kept.values) == len(kept.tars):
        raise ValueError("thresholds")
    return kept
