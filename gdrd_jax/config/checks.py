"""What the values of settings can be."""

from typing import Any

from ml_collections import ConfigDict

from gdrd_jax.config.losses import used_losses
from gdrd_jax.config.sections import keys, value_of
from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.teachers.interface import PRECISIONS
from gdrd_jax.utils.errors import GdrdError, did_you_mean

STAGE_INPUTS = ("lr", "hr_small")
RESIDENCIES = ("auto", "device", "host")
CHOICES = {
    "until": ("gen", "dis", "report"),
    "views.kernel": KERNELS,
    "student.head_stages": (0, 1, 2),
    "student.dtype": ("float32", "bfloat16"),
    "data.residency": RESIDENCIES,
    "dis.freeze": ((), ("backbone",)),
    **dict.fromkeys(("gen.decay", "dis.decay"), ("steps", "cosine")),
    **dict.fromkeys(("gen.optimizer", "dis.optimizer"), ("sgd", "adamw")),
    "generative.precision": PRECISIONS,
    "discriminative.precision": PRECISIONS,
}
AT_LEAST = {
    **dict.fromkeys(("seed", "views.seed", "data.mixup_per_face", "data.test_people", "data.calibration_people"), 0),
    **dict.fromkeys(("generative.input_size", "discriminative.input_size"), 0),
    **dict.fromkeys(("gen.weight_decay", "dis.weight_decay", "gen.ema", "dis.ema"), 0),
    **dict.fromkeys(("gen.shift", "gen.evaluate_every", "dis.shift", "dis.evaluate_every"), 0),
    **dict.fromkeys(("gen.steps", "gen.batch", "dis.steps", "dis.batch"), 1),
    **dict.fromkeys(("sr.steps", "sr.batch", "sr.layers", "sr.size"), 1),
    **{"views.count": 1, "evaluation.images_per_person": 2, "dis.mixup": 0},
    **dict.fromkeys(("task.image_size", "task.channels", "task.maximum", "data.test_images"), 0),
    "evaluation.train_images": 1,
}
AT_MOST = {"dis.mixup": 1}
BELOW_ONE = tuple(f"{stage}.{name}" for stage in ("gen", "dis") for name in ("warmup", "decay_at", "momentum"))
ABOVE_ZERO = (
    "student.width", "sr.learning_rate", "gen.learning_rate", "gen.clip_norm",
    "dis.learning_rate", "dis.clip_norm",
)  # fmt: skip


def check(config: ConfigDict, needed: set[str]) -> None:
    """Refuses values that no step could work with.

    Args:
      config: of the shape of `default()`.
      needed: names of the steps that will run.

    Raises:
      GdrdError: naming the setting and what it can be.
    """
    values = {key: value_of(config, key) for key in keys(config)}
    stages = {"dis": config.dis, **{f"stages.{name}": config.stages[name] for name in config.stages}}

    def each(rules: dict[str, Any]) -> list[tuple[str, Any]]:
        """The rules, those of stage dis for all stages."""
        of_dis = [(key.removeprefix("dis."), rule) for key, rule in rules.items() if key.startswith("dis.")]
        return [*rules.items(), *((f"{s}.{key}", rule) for s in stages if s != "dis" for key, rule in of_dis)]

    for key, allowed in each(CHOICES):
        if values[key] not in allowed:
            choices = ", ".join("''" if choice == "" else str(choice) for choice in allowed)
            hint = did_you_mean(str(values[key]), map(str, allowed))
            raise GdrdError(f"config.{key} is {values[key]!r}; {hint}it can be {choices}", "config-choice")
    for key, least in each(AT_LEAST):
        if not values[key] >= least:
            raise GdrdError(f"config.{key} is {values[key]}; it must be at least {least}", "config-range")
    for key, most in each(AT_MOST):
        if not values[key] <= most:
            raise GdrdError(f"config.{key} is {values[key]}; it must be at most {most}", "config-range")
    for key, _ in each(dict.fromkeys(BELOW_ONE)):
        shares = values[key] if isinstance(values[key], tuple) else (values[key],)
        if not all(0 <= share < 1 for share in shares) or list(shares) != sorted(shares):
            raise GdrdError(
                f"config.{key} is {values[key]}; it must be at least 0 and below 1, several in rising order",
                "config-range",
            )
    for key, _ in each(dict.fromkeys(ABOVE_ZERO)):
        if not values[key] > 0:
            raise GdrdError(f"config.{key} is {values[key]}; it must be above 0", "config-range")
    for name, section in stages.items():
        _check_stage(config, name, section)
    features = config.student.name == "teacher_features"
    if config.degradation.random and features:
        raise GdrdError(
            "config.degradation.random needs a config.student.name other than teacher_features", "degradation-settings"
        )
    if config.degradation.random and config.data.mixup_per_face:
        raise GdrdError(
            "config.degradation.random needs config.data.mixup_per_face=0; config.dis.mixup mixes in the step",
            "mixup-settings",
        )
    if config.data.packed and not (
        config.degradation.random and config.dis.init == "random" and not config.stages and needed <= {"dis"}
    ):  # fmt: skip
        raise GdrdError(
            "config.data.packed is for stage dis alone: set config.until=dis, config.degradation.random=true and "
            "config.dis.init=random",
            "packed-settings",
        )
    if config.data.test_images and (config.data.test_people or config.data.calibration_people):
        raise GdrdError(
            f"config.data.test_images={config.data.test_images} tests images of every class, so no classes can be kept "
            "for testing; set config.data.test_people=0 and config.data.calibration_people=0",
            "split-both",
        )
    if config.views.count < 2 and config.task.mirror and not (config.degradation.random and "gen" not in needed):
        raise GdrdError(
            "config.views.count is 1; it must be at least 2, the face and its mirror image, unless "
            "config.degradation.random is true",
            "views-count",
        )
    if features and (config.dis.shift or "report" in needed):
        raise GdrdError(
            "config.student.name is 'teacher_features'; set config.dis.shift=0 and config.until=dis, too",
            "teacher-features-settings",
        )
    for key in ("data.test_people", "data.calibration_people"):
        if "report" in needed and values[key] < 2 and not config.data.test_images:
            raise GdrdError(
                f"config.{key} is {values[key]}; the report needs at least 2 people whose identity is not "
                "trained on (or stop earlier with --config.until=dis, or test images of every class with "
                "--config.data.test_images=N)",
                "report-people",
            )


def _check_stage(config: ConfigDict, name: str, section: ConfigDict) -> None:
    """Refuses values that a stage could not work with, "dis" or "stages.NAME"."""
    for loss, settings in section.losses.items():
        weight = settings.get("weight", 1.0)
        if not isinstance(weight, int | float) or not weight >= 0:
            raise GdrdError(
                f"config.{name}.losses.{loss}.weight is {weight!r}; it must be a number, at least 0", "config-range"
            )
    if not used_losses(section.losses):
        raise GdrdError(f"config.{name}.losses has no loss with a weight above 0; a stage needs one", "loss-empty")
    for key in ("sampler", "selection"):
        if section[key] and not isinstance(section[key].get("name"), str):
            raise GdrdError(f"config.{name}.{key} has no name; set config.{name}.{key}.name", "entry-name")
    if section.freeze and section.init == "random":
        raise GdrdError(
            f"config.{name}.freeze keeps the backbone as it is, and config.{name}.init=random leaves it untrained; set "
            f"config.{name}.init=gen or config.{name}.freeze='()'",
            "freeze-untrained",
        )
    degraded = config.degradation.random and section.get("input") != "hr_small"
    if section.shift and degraded:
        raise GdrdError(f"config.degradation.random needs config.{name}.shift=0", "degradation-settings")
    if section.mixup and not degraded:
        wanted = "config.degradation.random=true" + (f" and config.{name}.input=lr" if name != "dis" else "")
        raise GdrdError(f"config.{name}.mixup needs {wanted}", "mixup-settings")
    if name != "dis" and section.input not in STAGE_INPUTS:
        raise GdrdError(
            f"config.{name}.input is {section.input!r}; it can be {', '.join(STAGE_INPUTS)}", "config-choice"
        )
