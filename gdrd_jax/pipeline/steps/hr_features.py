"""Step `hr_features`: a feature map inside T_d of every view at full size, for losses that compare feature maps."""

import difflib
import logging

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.data.extract import Extraction, view_loader
from gdrd_jax.pipeline import inputs, teacher_options, view_settings
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.steps import discriminative
from gdrd_jax.pipeline.targets import target_extraction
from gdrd_jax.teachers import load_generative
from gdrd_jax.utils.arrays import to_rgb
from gdrd_jax.utils.errors import GdrdError, require

LOG = logging.getLogger(__name__)
SIDE = 4  # of the stored maps, that of the student's features at 8, 16 and 32 pixels
SHOWN = 3  # names in an error


def check(config: ConfigDict) -> None:
    """Refuses a T_d that is no ONNX file, and a tap that its graph does not have."""
    discriminative.check(config)
    kind = teacher_options.discriminative(config).kind
    if kind != "onnx":
        raise GdrdError(
            f"a loss needs T_d's feature maps, which only ONNX files give, and config.discriminative.path is of the "
            f"kind {kind!r}; export it to ONNX",
            "hr-features-onnx",
        )
    tap(config)


def tap(config: ConfigDict) -> str:
    """The tensor of T_d whose values are stored: `discriminative.tap`, or the last residual sum of enough positions.

    Raises:
      GdrdError: there is no such tensor.
    """
    from gdrd_jax.teachers.onnx_encoder import last_residual_sum, map_names

    path, given = teacher_options.discriminative(config).path, config.discriminative.tap
    model = require("onnx", "teachers").load(path, load_external_data=False)
    if not given:
        if default := last_residual_sum(model, SIDE):
            return default
        raise GdrdError(
            f"a loss needs T_d's feature maps, and {path} has no residual sum whose shape is known to be at least "
            f"{SIDE}x{SIDE}; set config.discriminative.tap to a tensor [N, C, h, w]; the last ones are "
            f"{', '.join(map_names(model)[-SHOWN:]) or 'of unknown shape'}",
            "hr-features-tap",
        )
    if given not in (names := map_names(model)):
        near, default = difflib.get_close_matches(given, names, n=SHOWN, cutoff=0.0), last_residual_sum(model, SIDE)
        raise GdrdError(
            f"config.discriminative.tap is {given!r}, and {path} has no such tensor [N, C, h, w]; "
            f"the nearest are {', '.join(near)}" + (f"; leave it empty for the default, {default}" if default else ""),
            "hr-features-tap",
        )
    return given


def files(config: ConfigDict) -> dict[str, str]:
    """As of the step `discriminative`, and the tensor."""
    return discriminative.files(config) | {"discriminative.tap": tap(config)}


def extractions(run: Run) -> dict[str, Extraction]:
    """The maps of every view, averaged to 4x4 positions."""
    options, views = teacher_options.discriminative(run.config), view_settings.views(run.config)
    network = load_generative(
        "onnx", options.path, tap=tap(run.config), input_size=options.input_size, preprocessing=options.preprocessing
    )
    LOG.info("T_d's feature maps: the tensor %s", network.settings["tap"])
    compute = lambda images: averaged(network.features(to_rgb(images)), SIDE)  # noqa: E731
    task = inputs.task(run.config)
    shape = compute(np.zeros((1, task.image_size, task.image_size, task.channels), np.uint8)).shape[1:]
    return {
        split: target_extraction(
            run, "hr_features", split, shape, view_settings.map_views(run.config), network,
            view_loader(run.reader(split), views, low=False), compute,
        )
        for split in view_settings.splits(run.config) if split != "test" and len(run.faces(split))
    }  # fmt: skip


def averaged(maps: np.ndarray, side: int) -> np.ndarray:
    """Adaptive average pooling, `[N, C, h, w]` -> float32 `[N, C, side, side]`.

    Output `i` is the mean of the inputs from `floor(i h / side)` up to `ceil((i + 1) h / side)`, as in PyTorch.
    """
    for axis in (2, 3):
        size = maps.shape[axis]
        parts = [range(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        maps = np.stack([maps.take(part, axis=axis).mean(axis=axis, dtype=np.float32) for part in parts], axis=axis)
    return maps.astype(np.float32)


STEP = Step(
    "hr_features", None, ("discriminative.preprocessing", *view_settings.MOVED), after=lambda config: ("faces",),
    files=files, check=check, adjust=view_settings.adjust_views(view_settings.map_views),
    extractions=extractions, shared=True,
)  # fmt: skip
