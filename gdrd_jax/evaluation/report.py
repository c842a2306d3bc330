"""Results as files: metrics.json, roc.csv, roc.png and one self-contained report.html."""

import base64
import csv
import html
import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from gdrd_jax.evaluation import verification  # noqa: E402
from gdrd_jax.evaluation.held_out import Row  # noqa: E402

COLUMNS = {"accuracy": "accuracy %", "auc": "AUC %", "eer": "EER %", "rank_1": "rank-1 %"}
CELL = 72  # pixels of a face in the pictures
GAP = 4

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} th, td {{ padding: .3rem .9rem; text-align: right }}
th:first-child, td:first-child {{ text-align: left }} tr + tr {{ border-top: 1px solid #ddd }}
tr.first {{ font-weight: 600 }} img {{ max-width: 100% }} figure {{ margin: 2rem 0 }}
figcaption, small {{ color: #555 }} pre {{ background: #f5f5f5; padding: 1rem; overflow: auto; font-size: 13px }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{table}
<p><small>{legend}</small></p>
{figures}
<details><summary>Settings that made these numbers</summary><pre>{settings}</pre></details>
</html>
"""

LEGEND = (
    "Accuracy: mean of the shares of genuine pairs accepted and impostor pairs rejected, at the threshold that is "
    "best on training people whose identity no row has learnt. AUC: area under the ROC curve. EER: equal "
    "error rate. Rank-1: the nearest of the gallery faces (the first of each test person) is of the right person."
)


def write(
    folder: Path,
    rows: dict[str, Row],
    *,
    title: str,
    summary: str,
    pictures: list[tuple[np.ndarray, str]],
    settings: str,
) -> None:
    """Writes the four files into `folder`.

    Args:
      folder: exists.
      rows: name to results; the first is set off in the table.
      title, summary: for the top of the report.
      pictures: `(uint8 RGB [H, W, 3], caption)` shown under the curves.
      settings: text shown at the end.
    """
    (folder / "metrics.json").write_text(json.dumps({name: row.metrics for name, row in rows.items()}, indent=1))
    _write_roc_csv(folder / "roc.csv", rows)
    draw_roc(folder / "roc.png", rows, title)
    curves = (
        (folder / "roc.png").read_bytes(),
        "ROC of all pairs of test people; the false accept rate is on a log scale.",
    )
    figures = [curves, *((_png(image), caption) for image, caption in pictures)]
    page = PAGE.format(
        title=html.escape(title), summary=html.escape(summary), table=_table(rows), legend=LEGEND,
        figures="\n".join(_figure(*figure) for figure in figures), settings=html.escape(settings),
    )  # fmt: skip
    (folder / "report.html").write_text(page)


def text_table(rows: dict[str, Row]) -> str:
    """The table for a terminal."""
    lines = [" ".join(["row".ljust(16), *(title.rjust(11) for title in COLUMNS.values())])]
    for name, row in rows.items():
        lines.append(" ".join([name.ljust(16), *(f"{row.metrics[key]:11.2f}" for key in COLUMNS)]))
    return "\n".join(lines)


def draw_roc(path: Path, rows: dict[str, Row], title: str) -> None:
    """Draws the curves of all rows."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    floor = 1.0
    for name, row in rows.items():
        far, tar, _ = verification.roc(row.pairs)
        floor = min(floor, 1 / (~row.pairs.same).sum())
        label = f"{name}  (AUC {row.metrics['auc']:.1f} %)"
        axes.step(
            np.maximum(far, floor), tar, where="post", label=label, linewidth=3 if name == next(iter(rows)) else 1.5
        )
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.01), title=title)
    axes.set(xlabel="false accept rate (FAR)", ylabel="true accept rate (TAR)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def grid(lines: list[list[np.ndarray]], frames: list[list[tuple[int, int, int] | None]] | None = None) -> np.ndarray:
    """Lays faces out in lines, enlarged to one size without smoothing.

    Args:
      lines: uint8 RGB faces `[h, w, 3]` of any size.
      frames: for each face the colour of its frame, or None.

    Returns:
      uint8 RGB `[H, W, 3]`, white between the faces.
    """
    width = max(map(len, lines)) * (CELL + GAP) + GAP
    canvas = np.full((len(lines) * (CELL + GAP) + GAP, width, 3), 255, np.uint8)
    for y, line in enumerate(lines):
        for x, face in enumerate(line):
            top, left = GAP + y * (CELL + GAP), GAP + x * (CELL + GAP)
            frame = frames[y][x] if frames else None
            if frame:
                canvas[top - 3 : top + CELL + 3, left - 3 : left + CELL + 3] = frame
            interpolation = cv2.INTER_AREA if face.shape[0] > CELL else cv2.INTER_NEAREST
            canvas[top : top + CELL, left : left + CELL] = cv2.resize(face, (CELL, CELL), interpolation=interpolation)
    return canvas


def _write_roc_csv(path: Path, rows: dict[str, Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "far", "tar", "threshold"])
        for name, row in rows.items():
            writer.writerows([name, *map(float, point)] for point in zip(*verification.roc(row.pairs)))


def _table(rows: dict[str, Row]) -> str:
    lines = ["<tr><th>" + "</th><th>".join(["row", *COLUMNS.values()]) + "</th></tr>"]
    for number, (name, row) in enumerate(rows.items()):
        cells = [html.escape(name), *(f"{row.metrics[key]:.1f}" for key in COLUMNS)]
        lines.append(f"<tr{' class=first' if number == 0 else ''}><td>" + "</td><td>".join(cells) + "</td></tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _figure(png: bytes, caption: str) -> str:
    source = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
