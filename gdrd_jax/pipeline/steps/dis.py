"""Step `dis`: stage dis, in which the student learns from T_d and from identities (Eq. 2-3)."""

from ml_collections import ConfigDict

from gdrd_jax.pipeline import inputs
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.utils.files import digest, listed_paths, sha256


def files(config: ConfigDict) -> dict[str, str]:
    """Fingerprints of the dev set, of packed training faces, and of the student that the training begins with."""
    packed = [sha256(path) for path in listed_paths(config.data.packed)]
    found = {"data.packed": digest(sorted(packed))} if packed else {}
    return inputs.dev_files(config) | found | inputs.init_files(config)


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
    return (*images, *(("gen",) if config.dis.init == "gen" else ()), "discriminative")


def _adjust(config: ConfigDict, settings: dict) -> None:
    del settings["student"]["init"]  # a file, identified by its contents
    if not config.degradation.random:
        del settings["degradation"]


STEP = Step(
    "dis", run, ("seed", "student", "dis", "degradation", "data.calibration_people"), after=_after, files=files,
    neutral={
        "dis.nce": 0.0, "dis.nce_scale": 16.0, "dis.mixup": 0.0, "degradation.side_light": 0.0, "student.name": "gdrd",
    },
    adjust=_adjust, shared=True, trains=True, batched=True,
)  # fmt: skip
