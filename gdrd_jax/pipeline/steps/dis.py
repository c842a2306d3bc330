"""Step `dis`: stage dis, in which the student learns from T_d and from identities (Eq. 2-3)."""

from ml_collections import ConfigDict

from gdrd_jax.config import LOSS_DEFAULTS, used_losses
from gdrd_jax.pipeline import inputs
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.registry import losses
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import digest, listed_paths, sha256


def files(config: ConfigDict) -> dict[str, str]:
    """Fingerprints of the dev set, of packed training faces, and of the student that the training begins with."""
    packed = [sha256(path) for path in listed_paths(config.data.packed)]
    found = {"data.packed": digest(sorted(packed))} if packed else {}
    return inputs.dev_files(config) | found | inputs.init_files(config)


def check(config: ConfigDict) -> None:
    """Refuses losses, or settings of losses, that do not exist."""
    for name, settings in used_losses(config.dis.losses).items():
        given = {key: value for key, value in settings.items() if key != "weight"}
        if name not in LOSS_DEFAULTS or given:  # the losses themselves import JAX, which takes seconds
            losses.settings(name, given)
    if inputs.losses_need(config, "generative") and (config.data.packed or config.data.mixup_per_face):
        raise GdrdError(
            "a loss of config.dis.losses needs T_g's features, which packed faces and mixup images do not have; set "
            "config.data.packed='' and config.data.mixup_per_face=0",
            "loss-needs",
        )


def run(run: Run) -> None:
    """Trains the student."""
    from gdrd_jax.pipeline.train_stages import dis

    dis(run)


def _after(config: ConfigDict) -> tuple[str, ...]:
    if config.data.packed:
        return ()
    if inputs.is_teacher_features(config):
        return ("generative", "discriminative")
    images = ("views", "small_faces") if config.degradation.random else ("views",)
    generative = ("generative",) if inputs.losses_need(config, "generative") else ()
    return (*images, *generative, *(("gen",) if config.dis.init == "gen" else ()), "discriminative")


def _adjust(config: ConfigDict, settings: dict) -> None:
    settings["dis"]["losses"] = used_losses(settings["dis"]["losses"])
    del settings["student"]["init"]  # a file, identified by its contents
    if not config.degradation.random:
        del settings["degradation"]
    if inputs.is_teacher_features(config):
        settings["dis"] |= {"init": "random", "freeze": []}  # there is no backbone of our own


STEP = Step(
    "dis", run, ("seed", "student", "dis", "degradation", "data.calibration_people"), after=_after, files=files,
    check=check,
    neutral={
        "dis.mixup": 0.0, "degradation.side_light": 0.0, "student.name": "gdrd",
    },
    adjust=_adjust, shared=True, trains=True, batched=True,
)  # fmt: skip
