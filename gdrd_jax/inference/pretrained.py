"""Students by name: the pretrained ones that the package carries, exported ones, and those of training runs."""

import difflib
import json
import os
from pathlib import Path

from gdrd_jax.inference import bundle
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path

WEIGHTS = Path(__file__).parents[1] / "weights"  # a folder of gdrd export for each name
DEFAULT = "gdrd-16"


def list_pretrained() -> list[str]:
    """Names of the pretrained students, which `Recognizer.load` and all tools take in the place of a path."""
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
      text: name of a pretrained student, an exported student, a workdir, or the folder of a checkpoint in one. A path
        that exists counts before a name.
      which: of a workdir, "student", as it was at the end, or "best", as it was when it was best on the dev set.

    Raises:
      GdrdError: there is neither such a path nor such a name.
    """
    path = user_path(text)
    if not path.exists() and is_pretrained(text):
        return WEIGHTS / str(text)
    if not path.exists():
        names = list_pretrained()
        near = difflib.get_close_matches(str(text).lower(), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = f"; the pretrained ones are {', '.join(names)}" if names else ""
        raise GdrdError(
            f"there is no student {str(text)!r}, neither a path nor a name: {hint}give a workdir or an exported "
            f"folder{known}"
        )
    alone = (path / bundle.MANIFEST).exists() or (path / "description.json").exists()
    return path if alone else path / "dis" / which


def describe_student(folder: Path) -> dict:
    """What is known of a student: arguments of `models.student.Student` as "student", "kernel", and mostly "teacher".

    Args:
      folder: see `find_student`.

    Raises:
      GdrdError: no trained student there, or damaged.
    """
    if (folder / bundle.MANIFEST).exists():
        return bundle.described_by(folder)
    try:
        return json.loads((folder / "description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GdrdError(
            f"{folder} holds no trained weights; give the workdir of a finished run, or an exported folder with its "
            "manifest.json"
        ) from error
