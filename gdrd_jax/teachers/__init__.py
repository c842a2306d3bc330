"""The frozen teachers; the only part of the project that imports torch, diffusers and onnx2torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdrd_jax.registry import discriminative_teachers, generative_teachers
from gdrd_jax.teachers.file_kind import ONNX, file_kind
from gdrd_jax.teachers.interface import (
    PRECISIONS,
    DiscriminativeOptions,
    DiscriminativeTeacher,
    GenerativeOptions,
    GenerativeTeacher,
    SuperResolver,
)
from gdrd_jax.utils.errors import GdrdError, require

__all__ = [
    "AUTO", "PRECISIONS", "DiscriminativeOptions", "DiscriminativeTeacher", "GenerativeOptions", "GenerativeTeacher",
    "SuperResolver", "discriminative_options", "generative_options", "load_discriminative", "load_generative",
    "load_super_resolver",
]  # fmt: skip
AUTO = "auto"  # the kind of a discriminative teacher, by the content of its file


def generative_options(
    kind: str, path: str | os.PathLike | None = None, *, tap: str = "", input_size: int = 0,
    precision: str = "float32", settings: Mapping[str, object] | None = None,
) -> GenerativeOptions:  # fmt: skip
    """Makes the options of a generative teacher, with the defaults of its kind.

    Args:
      kind: name in `registry.generative_teachers`.
      path: path of the file or folder; None if the kind needs none.
      tap: name of the tap; "" is the default of the kind.
      input_size: side in pixels to which faces are enlarged; 0 is the default of the kind.
      precision: "float32", or "bfloat16", which is refused if it changes the features.
      settings: the kind's own settings, see its `Config`.

    Raises:
      GdrdError: there is no such kind or setting, or the size is negative.
    """
    teacher = generative_teachers[kind]
    if input_size < 0:
        raise GdrdError(
            f"input size {input_size} is negative; give a side in pixels, or 0 for the default of the kind of teacher",
            "teacher-input-size",
        )
    return GenerativeOptions(
        kind, Path(path) if path else None, tap or teacher.default_tap, input_size or teacher.default_input_size,
        precision, generative_teachers.settings(kind, settings or {}),
    )  # fmt: skip


def load_generative(
    kind: str, path: str | os.PathLike | None = None, *, tap: str = "", input_size: int = 0,
    precision: str = "float32", **settings: object,
) -> GenerativeTeacher:  # fmt: skip
    """Loads a generative teacher, T_g; arguments as in `generative_options`.

    Raises:
      GdrdError: there is no such kind, setting, file or tap, or the file is not a network of this kind.
    """
    options = generative_options(
        kind, path, tap=tap, input_size=input_size, precision=precision, settings=settings
    )  # fmt: skip
    generative_teachers[kind].check(options)
    return generative_teachers[kind].load(options)


def load_super_resolver(path: str | os.PathLike) -> SuperResolver:
    """Loads a super-resolution network from a folder of `gdrd train-sr-teacher`.

    Raises:
      GdrdError: the folder has no such network.
    """
    from gdrd_jax.teachers import sr_identity

    path = Path(path)
    if sr_identity.is_folder(path):
        require("torch", "teachers")
        return sr_identity.IdentitySr(path)
    network = load_generative("diffusers", path) if (path / "config.json").exists() else None
    if not isinstance(network, SuperResolver):
        reason = "has an unconditional network, which does not super-resolve" if network else "has no SR network"
        raise GdrdError(
            f"{path} {reason}; give a folder of gdrd train-sr-teacher, or the step `teacher` of a workdir",
            "super-resolver",
        )
    return network


def discriminative_options(
    path: str | os.PathLike | None = None, *, kind: str = AUTO, preprocessing: str = "auto", output: str = "",
    input_size: int = 0, precision: str = "float32", settings: Mapping[str, object] | None = None,
) -> DiscriminativeOptions:  # fmt: skip
    """Makes the options of a discriminative teacher.

    Args:
      path: path of an ONNX file; or of weights of InsightFace's iresnet in a PyTorch or safetensors file, alone or in a
        training checkpoint; or of whatever the kind reads. None if the kind needs none.
      kind: name in `registry.discriminative_teachers`, or "auto", which is "onnx" or "iresnet" depending on the content
        of the file, not on its suffix.
      preprocessing: see `teachers.preprocessing.parse_preprocessing`.
      output: name of the output of an ONNX file that is the embedding; "" if only one output can be.
      input_size: side in pixels of the images that the network takes; 0 is the network's own.
      precision: "float32", or "bfloat16", which is refused if it changes the embeddings. ONNX Runtime, which runs ONNX
        files without a GPU, ignores it.
      settings: the kind's own settings, see its `Config`.

    Raises:
      GdrdError: there is no such kind or setting, or the file has another format.
    """
    if kind == AUTO:  # a missing file is named by the check of either
        kind = "iresnet" if path and Path(path).exists() and file_kind(path) != ONNX else "onnx"
    return DiscriminativeOptions(
        kind, Path(path) if path else None, preprocessing, output, input_size, precision,
        discriminative_teachers.settings(kind, settings or {}),
    )  # fmt: skip


def load_discriminative(path: str | os.PathLike | None = None, **options: Any) -> DiscriminativeTeacher:
    """Loads a discriminative teacher, T_d, a face recognizer; arguments as in `discriminative_options`.

    Raises:
      GdrdError: there is no such kind, setting or file, or the file is not a network of this kind.
    """
    wanted = discriminative_options(path, **options)
    discriminative_teachers[wanted.kind].check(wanted)
    return discriminative_teachers[wanted.kind].load(wanted)
