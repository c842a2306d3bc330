"""Checks of the settings of a stage before any work."""

from ml_collections import ConfigDict

from gdrd_jax.config import LOSS_DEFAULTS, used_losses
from gdrd_jax.models import arguments
from gdrd_jax.pipeline import initial_student
from gdrd_jax.pipeline.stages import (
    LAST,
    STORES,
    entry,
    is_teacher_features,
    losses_need,
    place_of,
    section,
    stage_config,
)
from gdrd_jax.registry import losses, samplers, selections, students
from gdrd_jax.utils.errors import GdrdError, did_you_mean

ANY_DIM = 24  # of an embedding, where that of the teacher is not known yet
# What losses can need, see `losses.interface.Loss`: what every stage gives them, and what depends on the config.
OF_HEAD = {"embedding", "logits"}
OF_EVERY_STAGE = {*OF_HEAD, "label", "index", "discriminative", "stages"}
NEEDED = {
    "second": "a second image of each row", "balanced": "batches with several images of an identity",
    "assistant": "the embeddings of an assistant", "selected": "a selection of images",
    "generative": "T_g's features", "hr_small": "faces at a higher resolution", "hr_features": "T_d's feature maps",
}  # fmt: skip
NEED_OF = {"assistant": "assistant", "selection": "selected"}  # settings that meet a need


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
        initial_student.settings(config)
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
    sampler, given = entry(dis.sampler)
    samplers.settings(sampler, given)
    gives = samplers[sampler].gives
    for need in ("second", "balanced"):
        if losses_need(config, need) and need not in gives:
            able = ", ".join(other for other in samplers.names() if need in samplers[other].gives)
            raise GdrdError(
                f"a loss of {place}.losses needs {NEEDED[need]}, which the sampler {sampler!r} does not give; set "
                f"{place}.sampler.name to {able}",
                "loss-needs",
            )
    if name != LAST and is_teacher_features(config):
        raise GdrdError(
            f"the student of {place} is 'teacher_features', which other stages cannot use; set "
            f'{place}.student={{"name": "gdrd"}}, or another network',
            "stage-student",
        )
    of_backbone = [need for need in ("stages", "hr_features") if losses_need(config, need)]
    if of_backbone and is_teacher_features(config):
        raise GdrdError(
            f"a loss of {place}.losses needs {of_backbone[0]!r}, to compare the features of a backbone, which "
            "config.student.name=teacher_features does not have; set another student",
            "loss-needs",
        )
    for need in ("assistant", "selection"):
        if losses_need(config, NEED_OF[need]) and not dis[need]:
            raise GdrdError(
                f"a loss of {place}.losses needs {NEEDED[NEED_OF[need]]}, and {place}.{need} is not set", "loss-needs"
            )
        if dis[need] and not losses_need(config, NEED_OF[need]):
            raise GdrdError(f"{place}.{need} is set, but no loss of {place}.losses reads it", "loss-needs")
    if dis.selection:
        selections.settings(*entry(dis.selection))
    if dis.mixup and "second" in gives:
        raise GdrdError(f"{place}.mixup needs a sampler without a second image", "mixup-settings")
    stored = [need for need in (*STORES, "assistant", "selected") if losses_need(config, need)]
    if stored and (config.data.packed or dis.mixup):
        raise GdrdError(
            f"a loss of {place}.losses needs {NEEDED[stored[0]]}, which packed faces and mixup images do not have; set "
            f"config.data.packed='' and {place}.mixup=0",
            "loss-needs",
        )
    if losses_need(config, "generative") and config.degradation.random:
        raise GdrdError(
            f"a loss of {place}.losses needs {NEEDED['generative']}, which belong to stored views; set "
            "config.degradation.random=false",
            "loss-needs",
        )
    if losses_need(config, "generative") and config.data.mixup_per_face:
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
