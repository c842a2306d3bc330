"""The steps in order: faces -> views -> targets of both teachers -> stage gen, others, stage dis -> report."""

import re

from ml_collections import ConfigDict

from gdrd_jax.pipeline import stages
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.steps import (
    discriminative,
    faces,
    gen,
    generative,
    hr_features,
    report,
    sr_teacher,
    stage,
    views,
)
from gdrd_jax.utils.errors import GdrdError

FIRST = (
    faces.STEP, views.VIEWS, views.SMALL_FACES, views.HR_SMALL, discriminative.STEP, hr_features.STEP, sr_teacher.STEP,
    generative.STEP, gen.STEP,
)  # fmt: skip
LAST = (*stage.stage_steps(stages.LAST), report.STEP)
OF_STAGES = (stages.embeddings_step(""), stages.selection_step(""))  # ends of the names of other steps of a stage


def steps(config: ConfigDict) -> tuple[Step, ...]:
    """All steps that a config can have, in an order in which each comes after those that it reads.

    Raises:
      GdrdError: the stages of the config refer to others that do not exist, or could be mistaken for other steps.
    """
    # `WORKDIR/steps` is the folder of outputs, not a link to one of them.
    taken = {"random", "steps", *(step.name for step in (*FIRST, *LAST))}
    for name in config.stages:
        if name in taken or not re.fullmatch("[a-z][a-z0-9_]*", name) or name.endswith(OF_STAGES):
            raise GdrdError(
                f"config.stages has a stage {name!r}; choose another name, of lowercase letters, digits and "
                f"underscores, which is not {', '.join(sorted(taken))}, and does not end with {' or '.join(OF_STAGES)}",
                "stage-name",
            )
    return (*FIRST, *(step for name in stages.names(config) for step in stage.stage_steps(name)), *LAST)
