"""Step `gen`: stage gen, in which the backbone learns T_g's features (Eq. 1)."""

from gdrd_jax.pipeline import inputs
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step

BACKBONE = ("student.width", "student.head_stages", "student.dtype")


def run(run: Run) -> None:
    """Trains the backbone."""
    from gdrd_jax.pipeline.train_stages import gen

    gen(run)


STEP = Step(
    "gen", run, ("seed", *BACKBONE, "gen"), after=lambda config: ("generative",), files=inputs.init_files,
    shared=True, trains=True, batched=True,
)  # fmt: skip
