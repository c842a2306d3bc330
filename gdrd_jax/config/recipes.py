"""Sets of settings that several configs start from."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from gdrd_jax.config.defaults import OUR_LOSSES, default
from gdrd_jax.config.losses import LOSS_DEFAULTS
from gdrd_jax.utils.errors import GdrdError, did_you_mean

# Eq. 3.
PAPER_LOSSES = {
    name: {"weight": weight, **LOSS_DEFAULTS[name]} for name, weight in (("cls", 1.0), ("kd", 0.25), ("rcd", 4.0))
}


def paper() -> ConfigDict:
    """The paper's training; data and teachers are left to the caller."""
    config = default()
    config.data.mixup_per_face = 0.0
    config.views.count = 2
    config.student.hidden = (512,)
    for stage in (config.gen, config.dis):
        stage.update(optimizer="sgd", learning_rate=0.05, weight_decay=5e-4, clip_norm=1.0)
        stage.update(warmup=0.01, decay="steps", ema=0.0)
    config.dis.losses = PAPER_LOSSES
    config.dis.update(freeze=("backbone",), use_unlabeled=False)
    return config


def check_mode(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuses a mode that a config file does not have, NAME in `--config=FILE:NAME`.

    Args:
      kind: what a mode of the config is called.
      name: of the mode.
      known: names of all.

    Raises:
      GdrdError: it is none of them.
    """
    if name not in known:
        raise GdrdError(
            f"--config: there is no {kind} {name!r}; {did_you_mean(name, known)}it can be {', '.join(known)}",
            "config-mode",
        )


def robust(name: str, students: dict[str, tuple[int, float, float]]) -> ConfigDict:
    """A config that trains a student for faces as cameras give them, without stage gen.

    Args:
      name: of the student, and of the config.
      students: name to resolution, width and learning rate.

    Raises:
      GdrdError: there is no such student.
    """
    check_mode("student", name, students)
    config = default()
    config.name = name
    config.views.resolution, config.student.width, config.dis.learning_rate = students[name]
    config.until = "dis"
    config.data.mixup_per_face = 0.0
    config.views.count = 1
    config.degradation.update(
        random=True, clean=0.25, shift=2.5, rotate=5.0, scale=0.05, jitter=0.15, light=0.12, low_light=0.4,
        side_light=0.6,
    )  # fmt: skip
    config.dis.losses = {**OUR_LOSSES, "nce": {"weight": 0.1, **LOSS_DEFAULTS["nce"]}}
    config.dis.init = "random"
    return config
