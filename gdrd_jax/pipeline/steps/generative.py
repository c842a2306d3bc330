"""Step `generative`: T_g's features of every low-resolution view."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.data.extract import Extraction
from gdrd_jax.pipeline import teacher_options
from gdrd_jax.pipeline.run import REAL, Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.targets import target_extraction
from gdrd_jax.registry import generative_teachers
from gdrd_jax.teachers import GenerativeTeacher
from gdrd_jax.utils.arrays import to_rgb


def check(config: ConfigDict) -> None:
    """Refuses a T_g or a tap that does not exist, and missing packages."""
    options = teacher_options.generative(config)
    teacher_options.require_packages(generative_teachers[options.kind].packages)
    if _is_trained(config):
        teacher_options.sr_settings(config).check_tap(options.tap)
    else:
        generative_teachers[options.kind].check(options)


def files(config: ConfigDict) -> dict[str, str]:
    """Settings of T_g, with the kind's own filled in, and fingerprints of its files if the user gave it."""
    options = teacher_options.generative(config)
    teacher = generative_teachers[options.kind]
    settings = {"tap": options.tap, "input_size": options.input_size, **teacher.recorded(options.config)}
    return {name: str(value) for name, value in settings.items()} | teacher.files(options)


def extractions(run: Run) -> dict[str, Extraction]:
    """T_g's features of every low-resolution view; of mixup images, of which there may be very many, there are none."""
    network, found = load(run), {}
    for split in REAL:
        lr = run.store("views", split)
        if lr.manifest["rows"]:
            shape = network.features(to_rgb(lr.read(0, slice(0, 1)))).shape[1:]
            found[split] = target_extraction(
                run, "generative", split, shape, run.config.views.count, network,
                lambda view, rows, lr=lr: lr.read(view, np.asarray(rows)),
                lambda images: network.features(to_rgb(images)),
            )  # fmt: skip
    return found


def load(run: Run) -> GenerativeTeacher:
    """T_g: the user's, or the one that the step `teacher` trained."""
    options = teacher_options.generative(run.config)
    if _is_trained(run.config):
        options = dataclasses.replace(options, path=run.folder("teacher"))
    return generative_teachers[options.kind].load(options)


def _is_trained(config: ConfigDict) -> bool:
    """Whether the step `teacher` trains T_g."""
    return not config.generative.path and generative_teachers[config.generative.kind].trained_without_path


def _after(config: ConfigDict) -> tuple[str, ...]:
    return ("views", "teacher") if _is_trained(config) else ("views",)


STEP = Step(
    "generative", None, ("generative.kind", "generative.precision"), after=_after, files=files, check=check,
    extractions=extractions, shared=True,
)  # fmt: skip
