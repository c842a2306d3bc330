"""Step `generative`: T_g's features of every low-resolution view."""

import re
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.data.extract import Extraction
from gdrd_jax.pipeline import inputs
from gdrd_jax.pipeline.run import REAL, Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.targets import target_extraction
from gdrd_jax.teachers import check_attention, load_generative
from gdrd_jax.teachers.checkpoint import check_weights
from gdrd_jax.teachers.sr_diffusion import check_folder
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import sha256


def check(config: ConfigDict) -> None:
    """Refuses a T_g or a tap that does not exist, and missing packages."""
    inputs.require_packages(("torch", "diffusers", "safetensors"))
    path, tap = Path(config.generative.path), inputs.generative_settings(config)["tap"]
    check_attention(config.generative.kind, **{name: config.generative[name] for name in inputs.ATTENTION})
    if config.generative.kind == "pgdiff":
        if not path.is_file():
            raise GdrdError(
                f"config.generative.path: there is no file {config.generative.path!r}; give PGDiff's checkpoint, "
                "iddpm_ffhq512_ema500000.pth",
                "generative-none",
            )
        check_weights(path)
        if not re.fullmatch(r"block\d+|middle", tap):
            raise GdrdError(
                f"config.generative.tap is {tap!r}; of the kind 'pgdiff' it is block0, block1, ... or middle",
                "teacher-tap",
            )
    elif config.generative.path:
        check_folder(path, tap)
    else:
        inputs.sr_settings(config).check_tap(tap)


def files(config: ConfigDict) -> dict[str, str]:
    """Settings of T_g, with the kind's own filled in, and fingerprints of its files if the user gave it."""
    settings = {name: str(value) for name, value in inputs.generative_settings(config).items()}
    if not config.generative.path:
        return settings
    path = Path(config.generative.path)
    found = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    return {**settings, **{f.name: sha256(f) for f in found}}


def extractions(run: Run) -> dict[str, Extraction]:
    """T_g's features of every low-resolution view; of mixup images, of which there may be very many, there are none."""
    network, found = load(run), {}
    for split in REAL:
        lr = run.store("views", split)
        if lr.manifest["rows"]:
            shape = network.features(lr.read(0, slice(0, 1))).shape[1:]
            found[split] = target_extraction(
                run, "generative", split, shape, network, lambda view, rows, lr=lr: lr.read(view, np.asarray(rows)),
                network.features,
            )  # fmt: skip
    return found


def load(run: Run):
    """T_g: the user's, or the one that the step `teacher` trained."""
    settings = run.config.generative
    return load_generative(
        settings.kind, Path(settings.path) if settings.path else run.folder("teacher"),
        precision=settings.precision, **inputs.generative_settings(run.config),
    )  # fmt: skip


def _after(config: ConfigDict) -> tuple[str, ...]:
    return ("views",) if config.generative.path else ("views", "teacher")


STEP = Step(
    "generative", None, ("generative.kind", "generative.precision"), after=_after, files=files, check=check,
    extractions=extractions, shared=True,
)  # fmt: skip
