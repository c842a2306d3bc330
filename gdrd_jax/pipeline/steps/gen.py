"""Step `gen`: stage gen, in which the backbone learns T_g's features (Eq. 1)."""

from ml_collections import ConfigDict

from gdrd_jax.pipeline import initial_student, stages
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step

BACKBONE = ("student.width", "student.head_stages", "student.dtype", "student.name", "student.settings")


def run(run: Run) -> None:
    """Trains the backbone."""
    from gdrd_jax.pipeline.train_stages import gen

    gen(run)


def _adjust(config: ConfigDict, settings: dict) -> None:
    # Versions up to 0.4 had one network, whose backbone stage gen trained also where stage dis did not use it.
    if stages.is_teacher_features(config):
        del settings["student.name"]
    if not settings["student.settings"]:
        del settings["student.settings"]


STEP = Step(
    "gen", run, ("seed", *BACKBONE, "gen"), after=lambda config: ("generative",), files=initial_student.files,
    neutral={"student.name": "gdrd"}, adjust=_adjust, shared=True, trains=True, batched=True,
)  # fmt: skip
