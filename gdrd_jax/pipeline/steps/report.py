"""Step `report`: the student beside its teacher and raw pixels, as tables, curves and pictures."""

from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step


def run(run: Run) -> None:
    """Compares the student on the test people with its teacher and with raw pixels."""
    from gdrd_jax.pipeline.report_step import report

    report(run)


STEP = Step(
    "report", run, ("evaluation", "discriminative.name"), after=lambda config: ("dis",),
    neutral={"evaluation.train_images": 100}, publishes=("metrics.json", "roc.csv", "roc.png", "report.html"),
)  # fmt: skip
