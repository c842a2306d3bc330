"""Step `teacher`: an SR diffusion network trained on the faces, where the user has no generative teacher."""

from ml_collections import ConfigDict

from gdrd_jax.data.degradation import STRENGTHS
from gdrd_jax.pipeline import teacher_options, view_settings
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step

DEGRADED = tuple(f"views.{name}" for name in STRENGTHS)


def run(run: Run) -> None:
    """Trains an SR diffusion network on the training people."""
    from gdrd_jax.teachers import sr_training

    sr_training.train(
        run.faces("train").in_colors(), view_settings.views(run.config), teacher_options.sr_settings(run.config),
        run.folder("teacher"), seed=run.config.seed,
    )  # fmt: skip


def _adjust(config: ConfigDict, settings: dict) -> None:
    settings |= view_settings.mirror_settings(config)


STEP = Step(
    "teacher", run, ("seed", "views.resolution", "views.kernel", *DEGRADED, "sr"), after=lambda config: ("faces",),
    neutral=dict.fromkeys(DEGRADED, 0), adjust=_adjust, trains=True,
)  # fmt: skip
