"""The stages of a config that train a student: `config.stages`, then stage dis; and what each of them reads.

Stages refer to each other by name: `init` is the stage whose student a stage begins with, `teacher` the one whose
embeddings take the place of T_d's, `assistant` the one whose embeddings are given to losses beside T_d's. These
references are the order of the stages.
"""

import dataclasses

from ml_collections import ConfigDict

from gdrd_jax.config import LOSS_DEFAULTS, Config, used_losses
from gdrd_jax.models.arguments import TEACHER_FEATURES
from gdrd_jax.pipeline import view_settings
from gdrd_jax.registry import losses
from gdrd_jax.utils.errors import GdrdError, did_you_mean

LAST = "dis"
REFERENCES = {"init": ("gen", "random"), "teacher": ("",), "assistant": ("",)}  # and what is no stage of `stages`
# Needs of losses that a feature store meets, which the step of the same name makes.
STORES = ("generative", "hr_small", "hr_features")


def place_of(name: str) -> str:
    """Where the config has the settings of a stage: "dis" or "stages.NAME"."""
    return name if name == LAST else f"stages.{name}"


def section(config: ConfigDict, name: str) -> ConfigDict:
    """The settings of a stage: "gen", "dis", or one of `config.stages`."""
    return config[name] if name in ("gen", LAST) else config.stages[name]


def names(config: ConfigDict) -> tuple[str, ...]:
    """The stages of `config.stages` in the order in which they are trained.

    Raises:
      GdrdError: a stage lacks settings; it refers to one that does not exist, or to itself over others; or no stage
        refers to it.
    """
    order: list[str] = []
    wanted_keys = {*config.dis, "student", "input"}
    for name, own in config.stages.items():
        lacking = sorted(wanted_keys - set(own)) if isinstance(own, ConfigDict) else ["settings"]
        if lacking:
            raise GdrdError(
                f"config.stages.{name} lacks {lacking[0]!r}; make each stage by gdrd_jax.config.stage(...), which has "
                "the settings of stage dis",
                "stage-settings",
            )

    def visit(name: str, path: tuple[str, ...]) -> None:
        for key, others in REFERENCES.items():
            wanted = section(config, name)[key]
            if wanted in others:
                continue
            place = f"config.{place_of(name)}.{key}"
            if wanted not in config.stages:
                known = [*config.stages, *filter(None, others)]
                raise GdrdError(
                    f"{place} is {wanted!r}, which is no stage; {did_you_mean(wanted, known)}it can be "
                    f"{', '.join(known) or 'a stage of config.stages, and there is none'}",
                    "stage-unknown",
                )
            if wanted in (*path, name):
                raise GdrdError(f"{place} is {wanted!r}, which itself is trained after {name!r}", "stage-circle")
            if wanted not in order:
                visit(wanted, (*path, name))
                order.append(wanted)

    visit(LAST, ())
    if unused := sorted(set(config.stages) - set(order)):
        raise GdrdError(
            f"config.stages has {unused[0]!r}, which no other stage uses as init, teacher or assistant; set "
            f"config.dis.teacher={unused[0]}, for example, or leave it out",
            "stage-unused",
        )
    return tuple(order)


def stage_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config of a stage: its own settings are in the section `dis`, and `student` and `views` are those it has."""
    if name == LAST:
        return config
    own, found = config.stages[name], Config(config.copy_and_resolve_references())
    if unknown := sorted(set(own.student) - set(config.student)):
        raise GdrdError(
            f"config.stages.{name}.student has {unknown[0]!r}, which is no setting of config.student; "
            f"{did_you_mean(unknown[0], config.student)}it has {', '.join(config.student)}",
            "stage-student",
        )
    with found.unlocked():
        found.dis = own
        found.student.update(own.student.to_dict())
        if own.input == "hr_small":
            found.views.update(dataclasses.asdict(view_settings.hr_views(config)))
            found.degradation.random = False
    return found


def entry(section: ConfigDict) -> tuple[str, dict]:
    """Name and settings of an entry of a registry, such as `dis.sampler`."""
    given = section.to_dict()
    return given.pop("name"), given


def is_teacher_features(config: ConfigDict) -> bool:
    """Whether the student is a head on T_g's features, the "SR" of the paper's ablation."""
    return config.student.name == TEACHER_FEATURES


def losses_need(config: ConfigDict, what: str) -> bool:
    """Whether a loss of stage dis reads `what`, one of `losses.interface.Loss.needs` that a config has to meet."""
    names = used_losses(config.dis.losses)
    if set(names) <= set(LOSS_DEFAULTS):  # the losses themselves import JAX, which takes seconds
        return what == "discriminative" and set(names) != {"cls"}
    return any(what in losses[name].needs for name in names)


def reads_teacher(config: ConfigDict) -> bool:
    """Whether a stage reads T_d's embeddings; with several stages all do, so that their students' sizes are equal."""
    dis = config.dis
    return bool(losses_need(config, "discriminative") or dis.mixup or dis.selection or config.stages)


def trains_backbone(config: ConfigDict) -> bool:
    """Whether stage dis trains the backbone, too."""
    return "backbone" not in config.dis.freeze and not is_teacher_features(config)


def stores(config: ConfigDict) -> dict[str, str]:
    """What a batch of a stage has, and the step that stores it.

    Args:
      config: of the stage, see `stage_config`.
    """
    dis = config.dis
    if config.degradation.random:
        found = {"small": "small_faces"}
    elif is_teacher_features(config):
        found = {"lr": "generative"}
    else:
        found = {"lr": images_step(config)}
    if reads_teacher(config):
        found["discriminative"] = embeddings_step(dis.teacher) if dis.teacher else "discriminative"
    found |= {need: need for need in STORES if losses_need(config, need)}
    if losses_need(config, "assistant"):
        found["assistant"] = embeddings_step(dis.assistant)
    return found


def unlabeled_splits(config: ConfigDict) -> list[str]:
    """The splits of label -1 that a stage learns from; `config` as of `stores`."""
    if not config.dis.use_unlabeled or set(used_losses(config.dis.losses)) == {"cls"}:
        return []  # cross-entropy learns nothing from unlabeled faces
    # There are no features of T_g of mixup images.
    mixup = config.data.mixup_per_face and not is_teacher_features(config)
    return ["unlabeled", "mixup"] if mixup else ["unlabeled"]


def images_step(config: ConfigDict) -> str:
    """The step that stores the images that the student of a stage is evaluated on; `config` as of `stores`."""
    return "hr_small" if config.dis.get("input") == "hr_small" else "views"


def any_loss_needs(config: ConfigDict, what: str) -> bool:
    """Whether a loss of any stage reads `what`."""
    return any(losses_need(stage_config(config, name), what) for name in (*names(config), LAST))


def embeddings_step(stage: str) -> str:
    """Name of the step that stores the embeddings of a stage's student."""
    return f"{stage}_embeddings"


def selection_step(stage: str) -> str:
    """Name of the step that selects images for a stage."""
    return f"{stage}_selection"
