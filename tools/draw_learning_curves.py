"""Draws accuracy on the dev pairs against training images seen, of several runs of `gdrd train`.

  python tools/draw_learning_curves.py runs/small runs/large --out curves.png

A run needs `config.dev.path` and `config.dis.evaluate_every`. The table that is printed has the same figures.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.config import of_workdir
from gdrd_jax.evaluation.report import saved
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path
from gdrd_jax.utils.tables import markdown_table


def curve(workdir: Path) -> dict[int, float]:
    """Accuracy in percent on the dev pairs, by images seen, repeated ones included.

    Raises:
      GdrdError: stage dis was not evaluated on dev pairs while it was trained.
    """
    path = workdir / "dis" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    found = {line["step"]: line["dev_accuracy"] for line in lines if "dev_accuracy" in line}
    if not found:
        raise GdrdError(
            f"{workdir} has no accuracy on dev pairs; train with config.dev.path and config.dis.evaluate_every",
            "curve-none",
        )
    batch = of_workdir(workdir)["dis"]["batch"]
    return {step * batch: accuracy for step, accuracy in found.items()}


def draw(curves: dict[str, dict[int, float]]) -> bytes:
    """PNG of accuracy over images seen."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name, points in curves.items():
        axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
    axes.set(xscale="log", xlabel="training images seen", ylabel="dev accuracy, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return saved(figure)


def work(argv: list[str]) -> None:
    """Reads all runs, then draws them."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("workdirs", type=user_path, nargs="+", help="of gdrd train")
    parser.add_argument("--out", type=user_path, required=True, help="the picture, PNG")
    given = parser.parse_args(argv)
    curves = {str(workdir): curve(workdir) for workdir in given.workdirs}
    given.out.write_bytes(draw(curves))
    seen = sorted({images for points in curves.values() for images in points})
    rows = [[f"{images:,}", *(f"{points[images]:.2f}" if images in points else "" for points in curves.values())]
            for images in seen]  # fmt: skip
    print(markdown_table([["images", *curves], *rows]))


if __name__ == "__main__":
    sys.exit(guarded(lambda: work(sys.argv[1:])))
