"""The stages of a config that train a student: `config.stages`, then stage dis; and what each of them reads.

Stages refer to each other by name: `init` is the stage whose student a stage begins with, `teacher` the one whose
embeddings take the place of T_d's, `assistant` the one whose embeddings are given to losses beside T_d's. These
references are the order of the stages.
"""

import dataclasses

from ml_collections import ConfigDict

from gdrd_jax.config import LOSS_DEFAULTS, Config, used_losses
from gdrd_jax.models import arguments
from gdrd_jax.pipeline import inputs
from gdrd_jax.registry import losses, samplers, selections, students
from gdrd_jax.utils.errors import GdrdError, did_you_mean

LAST = "dis"
ANY_DIM = 24  # of an embedding, where that of the teacher is not known yet
REFERENCES = {"init": ("gen", "random"), "teacher": ("",), "assistant": ("",)}  # and what is no stage of `stages`
# Needs of losses that a feature store meets, and the step that makes the store.
STORES = {"generative": "generative", "hr_small": "hr_small", "hr_features": "hr_features"}
# What losses can need, see `losses.interface.Loss`: what every stage gives them, and what depends on the config.
OF_HEAD = {"embedding", "logits"}
OF_EVERY_STAGE = {*OF_HEAD, "label", "index", "discriminative", "stages"}
NEEDED = {
    "second": "a second image of each row", "balanced": "batches with several images of an identity",
    "assistant": "the embeddings of an assistant", "selected": "a selection of images",
    "generative": "T_g's features", "hr_small": "faces at a higher resolution", "hr_features": "T_d's feature maps",
}  # fmt: skip
NEED_OF = {"assistant": "assistant", "selection": "selected"}  # settings that meet a need


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
            found.views.update(dataclasses.asdict(inputs.hr_views(config)))
            found.degradation.random = False
    return found


def stores(config: ConfigDict) -> dict[str, str]:
    """What a batch of a stage has, and the step that stores it.

    Args:
      config: of the stage, see `stage_config`.
    """
    dis = config.dis
    if config.degradation.random:
        found = {"small": "small_faces"}
    elif inputs.is_teacher_features(config):
        found = {"lr": "generative"}
    else:
        found = {"lr": images_step(config)}
    found["discriminative"] = embeddings_step(dis.teacher) if dis.teacher else "discriminative"
    found |= {need: step for need, step in STORES.items() if inputs.losses_need(config, need)}
    if inputs.losses_need(config, "assistant"):
        found["assistant"] = embeddings_step(dis.assistant)
    return found


def unlabeled_splits(config: ConfigDict) -> list[str]:
    """The splits of label -1 that a stage learns from; `config` as of `stores`."""
    if not config.dis.use_unlabeled or set(used_losses(config.dis.losses)) == {"cls"}:
        return []  # cross-entropy learns nothing from unlabeled faces
    # There are no features of T_g of mixup images.
    mixup = config.data.mixup_per_face and not inputs.is_teacher_features(config)
    return ["unlabeled", "mixup"] if mixup else ["unlabeled"]


def images_step(config: ConfigDict) -> str:
    """The step that stores the images that the student of a stage is evaluated on; `config` as of `stores`."""
    return "hr_small" if config.dis.get("input") == "hr_small" else "views"


def any_loss_needs(config: ConfigDict, what: str) -> bool:
    """Whether a loss of any stage reads `what`."""
    return any(inputs.losses_need(stage_config(config, name), what) for name in (*names(config), LAST))


def embeddings_step(stage: str) -> str:
    """Name of the step that stores the embeddings of a stage's student."""
    return f"{stage}_embeddings"


def selection_step(stage: str) -> str:
    """Name of the step that selects images for a stage."""
    return f"{stage}_selection"


def check(config: ConfigDict, name: str) -> None:
    """Refuses settings of a stage that do not fit together.

    Args:
      config: of the stage, see `stage_config`.
      name: of the stage.
    """
    dis, place = config.dis, f"config.{place_of(name)}"
    asked = arguments.of_config(config)
    # The paper's student is known without importing JAX, which takes seconds.
    if asked["name"] != arguments.DEFAULT and not students[asked["name"]].__module__.startswith("gdrd_jax."):
        from gdrd_jax.models.student import check_output

        check_output({**asked, "embedding_dim": ANY_DIM})
    if config.student.init:
        inputs.initial_student(config)
    for loss, settings in used_losses(dis.losses).items():
        given = {key: value for key, value in settings.items() if key != "weight"}
        if loss not in LOSS_DEFAULTS or given:  # the losses themselves import JAX, which takes seconds
            losses.settings(loss, given)
            known = OF_EVERY_STAGE | NEEDED.keys()
            if unknown := sorted(losses[loss].needs - known):
                raise GdrdError(
                    f"the loss {loss!r} needs {unknown[0]!r}, which no batch has; {did_you_mean(unknown[0], known)}"
                    f"a loss can need {', '.join(sorted(known))}",
                    "loss-needs",
                )
    sampler, given = inputs.entry(dis.sampler)
    samplers.settings(sampler, given)
    gives = samplers[sampler].gives
    for need in ("second", "balanced"):
        if inputs.losses_need(config, need) and need not in gives:
            able = ", ".join(other for other in samplers.names() if need in samplers[other].gives)
            raise GdrdError(
                f"a loss of {place}.losses needs {NEEDED[need]}, which the sampler {sampler!r} does not give; set "
                f"{place}.sampler.name to {able}",
                "loss-needs",
            )
    if name != LAST and inputs.is_teacher_features(config):
        raise GdrdError(
            f"the student of {place} is 'teacher_features', which other stages cannot use; set "
            f'{place}.student={{"name": "gdrd"}}, or another network',
            "stage-student",
        )
    of_backbone = [need for need in ("stages", "hr_features") if inputs.losses_need(config, need)]
    if of_backbone and inputs.is_teacher_features(config):
        raise GdrdError(
            f"a loss of {place}.losses needs {of_backbone[0]!r}, to compare the features of a backbone, which "
            "config.student.name=teacher_features does not have; set another student",
            "loss-needs",
        )
    for need in ("assistant", "selection"):
        if inputs.losses_need(config, NEED_OF[need]) and not dis[need]:
            raise GdrdError(
                f"a loss of {place}.losses needs {NEEDED[NEED_OF[need]]}, and {place}.{need} is not set", "loss-needs"
            )
        if dis[need] and not inputs.losses_need(config, NEED_OF[need]):
            raise GdrdError(f"{place}.{need} is set, but no loss of {place}.losses reads it", "loss-needs")
    if dis.selection:
        selections.settings(*inputs.entry(dis.selection))
    if dis.mixup and "second" in gives:
        raise GdrdError(f"{place}.mixup needs a sampler without a second image", "mixup-settings")
    stored = [need for need in (*STORES, "assistant", "selected") if inputs.losses_need(config, need)]
    if stored and (config.data.packed or dis.mixup):
        raise GdrdError(
            f"a loss of {place}.losses needs {NEEDED[stored[0]]}, which packed faces and mixup images do not have; set "
            f"config.data.packed='' and {place}.mixup=0",
            "loss-needs",
        )
    maps = [need for need in ("generative", "hr_features") if inputs.losses_need(config, need)]
    if maps and config.degradation.random:  # which mirrors half of the images, and not the stored maps
        raise GdrdError(
            f"a loss of {place}.losses needs {NEEDED[maps[0]]}, which belong to stored views; set "
            "config.degradation.random=false",
            "loss-needs",
        )
    if inputs.losses_need(config, "generative") and config.data.mixup_per_face:
        raise GdrdError(
            f"a loss of {place}.losses needs {NEEDED['generative']}, which mixup images do not have; set "
            "config.data.mixup_per_face=0",
            "loss-needs",
        )
    if name == LAST:
        return
    if dis.init == "gen" and (dis.student or dis.input != "lr"):
        raise GdrdError(
            f"{place}.init is 'gen', the backbone that config.student describes, and the stage has another student or "
            f"input; set {place}.init=random",
            "stage-init",
        )


def check_embedding(config: ConfigDict, name: str) -> None:
    """Refuses a stage whose embeddings are used, but which trains the backbone alone; arguments as of `check`."""
    if not any(loss in LOSS_DEFAULTS or losses[loss].needs & OF_HEAD for loss in used_losses(config.dis.losses)):
        raise GdrdError(
            f"no loss of config.{place_of(name)}.losses reads the student's embedding, which "
            "would stay untrained; add another loss, such as embedding_cosine",
            "loss-embedding",
        )


def check_init(config: ConfigDict, name: str) -> None:
    """Refuses a stage that begins with the student of a stage that trains another network.

    Args:
      config: of all stages.
      name: of the stage.
    """
    init = section(config, name).init
    if init in ("gen", "random"):
        return
    own, other = (arguments.of_config(stage_config(config, stage)) for stage in (name, init))
    for key in sorted((own.keys() | other.keys()) - {"dtype"}):
        if own.get(key) != other.get(key):
            raise GdrdError(
                f"config.{place_of(name)}.init is {init!r}, whose student has "
                f"{key}={other.get(key)!r}, and the student of {name!r} has {key}={own.get(key)!r}; make them equal, "
                "or set init=random",
                "stage-init",
            )
