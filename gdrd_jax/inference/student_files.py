"""Writes and reads the folder of a student (`inference.bundle`)."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from gdrd_jax.data.task import FACES, Task
from gdrd_jax.inference import bundle
from gdrd_jax.inference.pretrained import DESCRIPTION, describe_student
from gdrd_jax.models import weights
from gdrd_jax.models.arguments import DEFAULT, for_inference
from gdrd_jax.models.student import Student, abstract_student
from gdrd_jax.registry import students
from gdrd_jax.training.checkpoints import load_weights
from gdrd_jax.utils.errors import GdrdError, first_line
from gdrd_jax.utils.files import replacing, write_json, writing


def fingerprint(student: Student, kernel: str) -> str:
    """sha256 of the weights, the resolution and the kernel, and of what else tells students apart."""
    mirror = "" if student.shape.mirror else ":not mirrored"
    digest = hashlib.sha256(f"{_architecture(student)}{student.resolution}:{kernel}{mirror}".encode())
    for leaf in jax.tree.leaves(nnx.state(student)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _architecture(student: Student) -> str:
    """Name and settings, for students of the same weights can differ; "" for "gdrd", which earlier versions had."""
    name = students.name_of(type(student))
    own = {key: value for key, value in dataclasses.asdict(student.config).items() if key != "dtype"}
    return "" if name == DEFAULT else f"{name}:{json.dumps(own, sort_keys=True)}:"


def save(student: Student, settings: dict, kernel: str, directory: Path, **remarks: object) -> None:
    """Writes student.safetensors and manifest.json, completely or not at all.

    Args:
      student: any.
      settings: the arguments that `student` was made with, see `models.arguments`.
      kernel: downsampling kernel of its input, see `data.degradation.resize`.
      directory: missing, empty, or holding an earlier student, which is replaced.
      remarks: more entries of the manifest, such as `teacher`.

    Raises:
      GdrdError: `directory` holds other things, or cannot be written.
    """
    if directory.exists() and not _replaceable({path.name for path in directory.iterdir()}):
        raise GdrdError(
            f"{directory} holds other things than a trained student; choose another folder", "output-not-ours"
        )
    module = type(student).__module__
    if not module.startswith("gdrd_jax."):
        settings = {**settings, "module": module}
    with replacing(directory) as new, writing(directory):
        file = new / bundle.WEIGHTS
        weights.save_safetensors(student, file, {})
        manifest = bundle.described(settings, kernel, fingerprint(student, kernel), None, [file])
        write_json(new / bundle.MANIFEST, manifest | remarks)


def _replaceable(names: set[str]) -> bool:
    """Whether a folder with files of these names is empty, or a student that training wrote."""
    return not names or names == {bundle.WEIGHTS, bundle.MANIFEST} or DESCRIPTION in names


def load(directory: Path) -> dict[str, Any]:
    """The attributes of a `Recognizer` but `detector`; the student is in evaluation mode.

    Args:
      directory: a folder that `save`, gdrd export or an earlier version wrote.

    Raises:
      GdrdError: there is no trained student; or it is damaged, of a later version, or of a package that is not
        imported.
    """
    if not (directory / bundle.MANIFEST).exists():  # written by version 0.4 or earlier
        description = describe_student(directory)
        student = abstract_student(for_inference(description["student"]))
        load_weights(student, directory)
        student.eval()
        return {"student": student, "kernel": description["kernel"], "teacher": description.get("teacher")}
    manifest = bundle.read(directory)
    settings = manifest["student"] if isinstance(manifest["student"], dict) else {}
    name, module = settings.get("name", DEFAULT), settings.get("module")
    if module and name not in students.names():
        raise GdrdError(
            f"{directory} holds a student {name!r}, which is not of this package: import {module} first, with "
            f"gdrd --plugin {module} COMMAND, or with gdrd_jax.registry.load_plugins",
            "student-plugin",
        )
    try:
        student = abstract_student(for_inference(settings))
        attributes = {
            "student": student,
            "kernel": manifest["kernel"],
            "thresholds": bundle.thresholds(manifest),
            "native_thresholds": bundle.thresholds(manifest, "native_thresholds"),
            "teacher": manifest.get("teacher"),
            "task": Task(**manifest["task"]) if "task" in manifest else FACES,
            "quality": bundle.quality(manifest),
            "template_scores": bundle.template_scores(manifest, "template_scores"),
            "native_template_scores": bundle.template_scores(manifest, "native_template_scores"),
        }
    except (TypeError, ValueError, AttributeError, KeyError, GdrdError) as error:
        raise GdrdError(
            f"{directory / bundle.MANIFEST} describes a student that this version does not know; update gdrd_jax "
            f"({first_line(error)})",
            "student-unsupported",
        ) from error
    weights.restore(student, weights.load_safetensors(directory / bundle.WEIGHTS)[0])
    student.eval()
    if fingerprint(student, manifest["kernel"]) != manifest["fingerprint"]:
        raise GdrdError(
            f"{directory} holds another student than its {bundle.MANIFEST} describes; copy the folder again",
            "fingerprint-mismatch",
        )
    return attributes
