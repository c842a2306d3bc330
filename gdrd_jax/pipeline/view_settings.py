"""How views of faces are made, as the config says: those of the student, of T_d, and at twice the resolution."""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from gdrd_jax.data.degradation import STRENGTHS, Views
from gdrd_jax.data.feature_store import FORMAT
from gdrd_jax.data.task import of_config as task
from gdrd_jax.pipeline.run import REAL
from gdrd_jax.utils.files import digest

# How the views are made before they are reduced. T_d sees these, so that students of other resolutions share its
# targets.
MOVED = tuple(f"views.{name}" for name in ("count", "seed", "shift", "rotate", "scale", "light"))
HR_TIMES = 2  # resolution of `hr_small`, in low resolutions


def views(config: ConfigDict) -> Views:
    """How views of a face are made."""
    return Views(**config.views, mirror=task(config).mirror)


def hr_views(config: ConfigDict) -> Views:
    """How `hr_small` is made: as the views, at twice the resolution and without their degradation.

    It has as many views as T_d's feature maps.
    """
    clean = {"blur": 0.0, "motion": 0.0, "noise": 0.0, "jpeg": 0}
    side = min(HR_TIMES * config.views.resolution, task(config).image_size)
    return dataclasses.replace(views(config), **clean, resolution=side, count=map_views(config))


def degradation(config: ConfigDict):
    """The `RandomDegradation` of stage dis, or None where the student's input is stored views."""
    if not config.degradation.random:
        return None
    from gdrd_jax.data.random_degradation import RandomDegradation  # which imports JAX

    strengths = {name: value for name, value in config.degradation.items() if name != "random"}
    return RandomDegradation(config.views.resolution, **strengths, mirror=task(config).mirror)


def target_views(config: ConfigDict) -> int:
    """Number of views with T_d's embeddings: 1, the face itself, where stage dis degrades it at random."""
    return 1 if config.degradation.random else config.views.count


def map_views(config: ConfigDict) -> int:
    """Number of views of T_d's feature maps and of `hr_small`: where stage dis degrades at random, the face and its
    mirror image, one of which is drawn at each use."""
    return views(config).exact if config.degradation.random else config.views.count


def view_count(split: str, views: int, exact: int) -> int:
    """Number of stored views of a split: of test images only those that are not random."""
    return exact if split == "test" else views


def splits(config: ConfigDict) -> tuple[str, ...]:
    """The splits of which views and T_d's embeddings are stored."""
    return (*REAL, "mixup") if config.data.mixup_per_face else REAL


def mirror_settings(config: ConfigDict) -> dict[str, bool]:
    """`task.mirror` as steps record it: only where it is false, so that output of versions up to 0.4 stays valid."""
    return {} if task(config).mirror else {"task.mirror": False}


def adjust_views(count: Callable[[ConfigDict], int]) -> Callable[[ConfigDict, dict], None]:
    """`Step.adjust` of what is computed from `count(config)` views."""

    def adjust(config: ConfigDict, settings: dict) -> None:
        settings.update({"views.count": count(config), **mirror_settings(config)})

    return adjust


def array_url(config: ConfigDict, step: str, split: str, views: Views) -> str:
    """URL of a split's arrays in `data.cache`; workdirs share it, so its name encodes everything it depends on."""
    base, settings = config.data.cache.rstrip("/"), views.settings()
    del settings["count"]  # each view has an array of its own
    if step == "discriminative":  # T_d sees faces before they are reduced
        settings = {name: settings[name] for name in settings if name not in ("resolution", "kernel", *STRENGTHS)}
    return f"{base}/{step}/{split}-{digest(settings | {'format': FORMAT})[:16]}" if base else ""
