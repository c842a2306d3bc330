"""Students by name: the pretrained ones that the package carries, exported ones, and those of training runs."""

import json
import os
from pathlib import Path

from gdrd_jax.inference import bundle
from gdrd_jax.utils.errors import GdrdError, did_you_mean
from gdrd_jax.utils.files import user_path

WEIGHTS = Path(__file__).parents[1] / "weights"  # a folder of gdrd export for each name
DEFAULT = "gdrd-16"
DESCRIPTION = "description.json"  # beside the Orbax weights of a student that version 0.4 or earlier trained


def list_pretrained() -> list[str]:
    """Names of the pretrained students. `Recognizer.load` and all commands accept them in place of a path."""
    return sorted(path.parent.name for path in WEIGHTS.glob(f"*/{bundle.MANIFEST}"))


def known_as(fingerprint: str) -> str:
    """The name of the pretrained student, or of its teacher, of this fingerprint; else its first digits."""
    manifests = {name: bundle.described_by(WEIGHTS / name) for name in list_pretrained()}
    names = {manifest["fingerprint"]: name for name, manifest in manifests.items()}
    teachers = [manifest["teacher"] for manifest in manifests.values() if manifest.get("teacher")]
    names |= {teacher["fingerprint"]: teacher["name"] for teacher in teachers}
    return names.get(fingerprint, fingerprint[:12])


def is_pretrained(text: str | os.PathLike) -> bool:
    """Whether a text is a name of `list_pretrained` and not the path of a file or folder."""
    return str(text) in list_pretrained() and not user_path(text).exists()


def find_student(text: str | os.PathLike, which: str = "student") -> Path:
    """The folder of a student's weights.

    Args:
      text: name of a pretrained student, or path of an exported student, of a workdir, or of `dis/student` or
        `dis/best` in one. A path that exists takes precedence over a name.
      which: of a workdir, "student", which is the last one, or "best", which was best on the dev set.

    Raises:
      GdrdError: there is neither such a path nor such a name.
    """
    path = user_path(text)
    if not path.exists() and is_pretrained(text):
        return WEIGHTS / str(text)
    if not path.exists():
        names = list_pretrained()
        hint = did_you_mean(str(text), names)
        known = f"; the pretrained ones are {', '.join(names)}" if names else ""
        raise GdrdError(
            f"there is no student {str(text)!r}, neither a path nor a name: {hint}give a workdir or an exported "
            f"folder{known}",
            "student-unknown",
        )
    if path.is_file():
        raise GdrdError(
            f"{path} is a file, and a student is a folder; give a workdir, an exported folder or the name of a "
            "pretrained student",
            "student-is-file",
        )
    is_workdir = not (path / bundle.MANIFEST).exists() and not (path / DESCRIPTION).exists()
    return path / "dis" / which if is_workdir else path


def describe_student(folder: Path) -> dict:
    """The description of a student: its arguments (see `models.arguments`) as "student", "kernel", often "teacher".

    Args:
      folder: see `find_student`.

    Raises:
      GdrdError: there is no trained student, or its description is damaged.
    """
    if (folder / bundle.MANIFEST).exists():
        return bundle.described_by(folder)
    try:
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GdrdError(
            f"{folder} holds no trained weights; give the workdir of a finished run, or an exported folder with its "
            f"{bundle.MANIFEST}",
            "weights-missing",
        ) from error
