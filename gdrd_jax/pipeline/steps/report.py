"""Step `report`: the student beside its teacher and raw pixels, as tables, curves and pictures."""

from ml_collections import ConfigDict

from gdrd_jax.pipeline import stages
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step


def run(run: Run) -> None:
    """Compares the student on the test people with its teacher and with raw pixels."""
    from gdrd_jax.pipeline.report_step import report

    report(run)


def _after(config: ConfigDict) -> tuple[str, ...]:
    return ("dis",) if stages.reads_teacher(config) else ("dis", "discriminative")  # stage dis needs it, or not


STEP = Step(
    "report", run, ("evaluation", "discriminative.name"), after=_after,
    neutral={"evaluation.train_images": 100}, publishes=("metrics.json", "roc.csv", "roc.png", "report.html"),
)  # fmt: skip
