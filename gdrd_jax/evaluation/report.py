"""Results as files: metrics.json, roc.csv, roc.png and one self-contained report.html."""

import base64
import csv
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from gdrd_jax.evaluation import verification  # noqa: E402
from gdrd_jax.evaluation.result import Result  # noqa: E402
from gdrd_jax.evaluation.verification import Pairs  # noqa: E402
from gdrd_jax.utils import tables  # noqa: E402
from gdrd_jax.utils.files import write_text  # noqa: E402
from gdrd_jax.utils.pictures import with_line  # noqa: E402

COLORS = 10  # of curves, before they repeat
GREEN, RED = (40, 160, 60), (210, 50, 40)
WARNING = '<p class="warning">{}</p>'

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse }} th, td {{ padding: .3rem .7rem; text-align: right }}
th:first-child, td:first-child {{ text-align: left }} tr + tr {{ border-top: 1px solid #ddd }}
tr.first {{ font-weight: 600 }} .quoted, tr.first .quoted {{ font-weight: 400; font-style: italic; color: #555 }}
img {{ max-width: 100% }} figure {{ margin: 2rem 0 }}
figcaption, small, td span {{ color: #555 }}
td span {{ font-size: 12px; display: block; font-weight: 400; white-space: nowrap }}
.warning {{ background: #fff3d6; border-left: 4px solid #e0a800; padding: .6rem 1rem }}
pre {{ background: #f5f5f5; padding: 1rem; overflow: auto; font-size: 13px }}
</style>
<h1>{title}</h1>
{warning}<p>{summary}</p>
{table}
<p><small>{legend}</small></p>
{figures}
<details><summary>Settings that made these numbers</summary><pre>{settings}</pre></details>
</html>
"""


def write(
    folder: Path,
    results: Mapping[str, Result],
    *,
    columns: Mapping[str, str],
    curves: Mapping[str, Pairs],
    title: str,
    summary: str,
    legend: str,
    figures: list[tuple[bytes, str]],
    settings: dict,
    document: dict,
    warning: str = "",
    note: str = "",
    labels: Mapping[str, str] = MappingProxyType({}),
    quoted: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes metrics.json and report.html, and where there are curves roc.csv and roc.png, into `folder`.

    Args:
      folder: exists.
      results: name to results; the first is set off in the table.
      columns: of the table, key of `Result.metrics` ("a.b" for b in a) to heading.
      curves: name to the pairs whose ROC is drawn.
      title, summary, legend: texts of the report; `warning` stands above all.
      figures: `(png, caption)` shown under the curves.
      settings: shown at the end.
      document: what stands in metrics.json beside `results`.
      note: a line below the ROC curves.
      labels: what rows are called in the table, where it is not the name.
      quoted: keys of columns that hold others' figures, and a note under each figure.
    """
    rows = {name: {**result.metrics, "intervals": result.intervals} for name, result in results.items()}
    (folder / "metrics.json").write_text(json.dumps({**document, "results": rows}, indent=1), encoding="utf-8")
    if curves:
        _write_roc_csv(folder / "roc.csv", curves)
        draw_roc(folder / "roc.png", curves, title)
        if note:
            (folder / "roc.png").write_bytes(with_line((folder / "roc.png").read_bytes(), note))
        caption = "ROC of all pairs; the false accept rate is on a log scale."
        figures = [((folder / "roc.png").read_bytes(), caption), *figures]
    page = PAGE.format(
        title=html.escape(title), summary=html.escape(summary),
        table=html_table({labels.get(name, name): row for name, row in results.items()}, columns, quoted),
        legend=html.escape(f"{legend} The first row is in bold."),
        warning=WARNING.format(html.escape(warning)) if warning else "",
        figures="\n".join(_figure(*figure) for figure in figures),
        settings=html.escape(json.dumps(settings, indent=1)),
    )  # fmt: skip
    write_text(folder / "report.html", page)


def text_table(results: Mapping[str, Result], columns: Mapping[str, str]) -> str:
    """The table for a terminal."""
    return tables.text_table(_lines(results, columns))


def html_table(
    results: Mapping[str, Result], columns: Mapping[str, str], quoted: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The table of the page, intervals below the figures; `quoted` as of `write`."""
    notes = {
        (line, column): f"{ends[0]:.1f} – {ends[1]:.1f}"
        for line, result in enumerate(results.values(), 1)
        for column, key in enumerate(columns, 1)
        if (ends := result.intervals.get(key))
    }
    found = {column: key for column, key in enumerate(columns, 1) if key in quoted}
    notes |= {
        (line, column): quoted[key]
        for line, result in enumerate(results.values(), 1)
        for column, key in found.items() if result.figure(key) is not None
    }  # fmt: skip
    heading, *rows = _lines(results, columns)
    rows = [[name, *(figure.replace("-", "–") for figure in figures)] for name, *figures in rows]
    return tables.html_table([heading, *rows], notes, found)


def _lines(results: Mapping[str, Result], columns: Mapping[str, str]) -> list[list[str]]:
    lines = [["row", *columns.values()]]
    for name, result in results.items():
        figures = (result.figure(key) for key in columns)
        lines.append([name, *("-" if figure is None else f"{figure:.2f}" for figure in figures)])
    return lines


def draw_roc(path: Path, curves: Mapping[str, Pairs], title: str) -> None:
    """Draws the curves of all rows."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    floor = min(1 / (~pairs.same).sum() for pairs in curves.values())
    for number, (name, pairs) in enumerate(curves.items()):
        far, tar, _ = verification.thinned(*verification.roc(pairs))
        label = f"{name}  (AUC {100 * verification.auc(pairs):.1f} %)"
        axes.step(
            np.maximum(far, floor), tar, where="post", label=label, linewidth=1.5 if number else 3,
            linestyle="-" if number < COLORS else "--",
        )  # fmt: skip
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.01), title=title)
    axes.set(xlabel="false accept rate (FAR)", ylabel="true accept rate (TAR)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right", fontsize="small")
    path.write_bytes(saved(figure))


def draw_lines(lines: dict[str, tuple[np.ndarray, np.ndarray]], *, x: str, y: str, log: bool = False) -> bytes:
    """PNG of curves, name to `(x, y)`; `log` draws both on log scales."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, (at, values) in lines.items():
        axes.plot(at, values, label=name)
    axes.set(xlabel=x, ylabel=y)
    if log:
        axes.loglog()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both" if log else "major")
    axes.legend(fontsize="small")
    return saved(figure)


def draw_sweep(models: dict[str, dict[str, tuple[float, tuple[float, float]]]], *, y: str) -> bytes:
    """PNG of a figure over resolutions: model -> resolution -> (figure, interval)."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    order = sorted({r for line in models.values() for r in line}, key=lambda r: (not r.isdecimal(), r.zfill(4)))
    for name, line in models.items():
        present = [r for r in order if r in line]
        values = np.array([line[r][0] for r in present])
        ends = np.array([line[r][1] for r in present]).T
        axes.errorbar(
            [order.index(r) for r in present], values, np.abs(ends - values), label=name, marker="o", capsize=4
        )
    axes.set_xticks(range(len(order)), [r if not r.isdecimal() else f"{r}x{r}" for r in order])
    axes.set(xlabel="resolution", ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return saved(figure)


def draw_bars(bars: dict[str, list[tuple[float, tuple[float, float]] | None]], groups: list[str], *, y: str) -> bytes:
    """PNG of grouped bars: row -> for each group (figure, interval), or None."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    width = 0.8 / len(bars)
    for number, (name, values) in enumerate(bars.items()):
        there = [(i, *value) for i, value in enumerate(values) if value]
        at = [i + (number - (len(bars) - 1) / 2) * width for i, *_ in there]
        heights = np.array([height for _, height, _ in there])
        ends = np.array([ends for *_, ends in there]).reshape(-1, 2).T
        axes.bar(at, heights, width, label=name, yerr=np.abs(ends - heights), capsize=3)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylabel=y, ylim=(0, 105))
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small")
    return saved(figure)


def draw_points(panels: dict[str, np.ndarray], names: list[str]) -> bytes:
    """PNG of scatter plots side by side, `[N, 2]` each, colored by name."""
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(4.5 * across, 4.5 * down + 0.8), layout="constrained", squeeze=False
    )
    for ax in axes.ravel()[len(panels) :]:
        ax.axis("off")
    for ax, (title, points) in zip(axes.ravel(), panels.items()):
        for name in dict.fromkeys(names):
            chosen = [i for i, n in enumerate(names) if n == name]
            ax.scatter(*points[chosen].T, s=14, label=name)
        ax.set(title=title, xticks=[], yticks=[])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    return saved(figure)


def saved(figure: Figure) -> bytes:
    """A matplotlib figure as PNG; closes it."""
    file = io.BytesIO()
    figure.savefig(file, dpi=130, format="png")
    plt.close(figure)
    return file.getvalue()


def _write_roc_csv(path: Path, curves: Mapping[str, Pairs]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "far", "tar", "threshold"])
        for name, pairs in curves.items():
            points = verification.thinned(*verification.roc(pairs))
            writer.writerows([name, *map(float, point)] for point in zip(*points))


def _figure(picture: bytes, caption: str) -> str:
    source = base64.b64encode(picture).decode()
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
