"""Writes the tables of docs/zoo.md and the picture docs/zoo/cost.png.

  python tools/generate_zoo.py           # rewrites them
  python tools/generate_zoo.py --check   # fails if the page is stale

The results come from the rows of trainings in docs/zoo, which `gdrd grid --rows docs/zoo` writes; the methods and the
notes on the paper's tables from gdrd_jax/evaluation.
"""

import re
import runpy
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import generate_configuration
import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.evaluation import grid_rows, grid_table
from gdrd_jax.evaluation.grid_rows import DEV, Row
from gdrd_jax.evaluation.methods import METHODS
from gdrd_jax.evaluation.paper_tables import NOTES
from gdrd_jax.pipeline import stages
from gdrd_jax.utils.tables import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
RECIPES = Path(__file__).parents[1] / "configs" / "zoo.py"
ROWS = PAGE.with_suffix("")
DEGRADED = ROWS / "degraded"
RATES = ROWS / "rates"
RESOLUTIONS = ROWS / "resolutions"
PICTURE = ROWS / "cost.png"
AGAINST = "cosine"
WIDTH = 120
SHOWN = "\n![Accuracy over the cost of training](zoo/cost.png)\n"
NONE = "Nothing has been trained yet.\n"


def methods() -> str:
    """What each method is, its losses, and what it is based on."""
    recipe = runpy.run_path(str(RECIPES))["get_config"]
    rows = [
        [
            f"`{name}`", one.title, _losses(recipe(name)), _linked(one.source), one.grounding, _link(one.code)
        ] for name, one in METHODS.items()
    ]  # fmt: skip
    return markdown_table([["config `zoo:`", "method", "losses", "published", "based on", "code read"], *rows])


def _losses(config: ConfigDict) -> str:
    """The losses of each stage with their weights."""
    of = {name: stages.section(config, name).losses for name in (*stages.names(config), stages.LAST)}
    texts = {name: " + ".join(_weighted(*loss) for loss in losses.items()) for name, losses in of.items()}
    if any(stages.section(config, name).init == "gen" for name in of):
        texts = {"gen": "`feature_regression`", **texts}
    return texts[stages.LAST] if len(texts) == 1 else "; ".join(f"{name}: {text}" for name, text in texts.items())


def _weighted(name: str, settings: ConfigDict) -> str:
    return f"`{name}`" if settings.weight == 1 else f"{settings.weight:g} `{name}`"


def _link(repository: str) -> str:
    return f"[{repository}](https://github.com/{repository})" if repository else ""


def _linked(source: str) -> str:
    """The source, with links to arXiv."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def notes() -> str:
    """What to know of the paper's tables."""
    return "".join(textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ") + "\n" for note in NOTES)


def compared(found: Mapping[str, list[Row]]) -> list[dict[str, Any]]:
    """The lines of a table of rows, the most accurate first."""
    return sorted(grid_table.compared(found, _against(found)), key=lambda line: -line["accuracy"])


def _against(found: Mapping[str, list[Row]]) -> str | None:
    return AGAINST if AGAINST in found else None


def results(found: Mapping[str, list[Row]]) -> tuple[str, bytes | None]:
    """The table of rows, and the picture."""
    if not found:
        return NONE, None
    lines = compared(found)
    picture = grid_table.draw_cost(lines)
    return grid_table.table(lines, _against(found)) + (SHOWN if picture else ""), picture


def noise(found: Mapping[str, list[Row]]) -> str:
    """How far the figures of one method differ from seed to seed: a standard deviation for each column."""
    several = [rows for rows in found.values() if len(rows) > 1]
    if not several:
        return NONE
    texts = []
    for column in several[0][0].judged:
        figures = [[100 * row.judged[column].right.mean() for row in rows] for rows in several]
        deviation = np.sqrt(np.mean([np.var(of_seeds, ddof=1) for of_seeds in figures]))
        texts.append(f"{deviation:.1f} ({column})")
    sentence = (
        f"The standard deviation of one training's figure over seeds, in points, from {len(several)} methods with "
        f"several seeds: {', '.join(texts)}."
    )
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False) + "\n"


def degraded(found: Mapping[str, list[Row]]) -> str:
    """The table of students that were trained with random degradation."""
    return grid_table.table(compared(found), _against(found)) if found else NONE


def logs(found: Mapping[str, list[Row]]) -> str:
    """What the losses of each method were like after a fifth of its steps and at the end, of the first seed."""
    lines = []
    for name, rows in found.items():
        for stage, log in rows[0].about.get("log", {}).items():
            early, late = (_figures(step, log[step]) for step in (min(log, key=int), max(log, key=int)))
            lines.append([f"`{name}`", stage, early, late])
    return markdown_table([["config `zoo:`", "stage", "early", "at the end"], *lines]) if lines else NONE


def _figures(step: str, log: Mapping[str, float]) -> str:
    """Step and figures in one cell, without the sum of the losses where that equals its only loss."""
    others = {name: value for name, value in log.items() if name != "loss"}
    shown = others if log["loss"] in others.values() else log
    return f"{int(step):,}: " + ", ".join(f"{name} {value:.3g}" for name, value in shown.items())


def variants(found: Mapping[str, list[Row]]) -> tuple[dict[str, dict[float, str]], list[float]]:
    """The names of rows by method and by the number after it, as in `kd-0.008`, methods as in the first table; and all
    numbers, ascending."""
    of: dict[str, dict[float, str]] = {}
    for name in sorted(found, key=lambda name: list(METHODS).index(name.rpartition("-")[0])):
        method, _, number = name.rpartition("-")
        of.setdefault(method, {})[float(number)] = name
    return of, sorted({number for names in of.values() for number in names})


def title(method: str) -> str:
    """The first cell of a method's row."""
    return grid_table.title({"name": method})


def rates(found: Mapping[str, list[Row]]) -> str:
    """Accuracy of each method by the rate of stage dis, and its best one against the best of plain distillation."""
    if not found:
        return NONE
    of, columns = variants(found)
    accuracy = {name: 100 * float(np.mean([row.judged[DEV].right for row in rows])) for name, rows in found.items()}
    best = {method: max(names.values(), key=accuracy.__getitem__) for method, names in of.items()}
    lines = {line["name"]: line for line in grid_table.compared(found, best.get(AGAINST))}
    table = [["name", *(f"{rate:g}" for rate in columns), "the best (95 %)", f"against {AGAINST}"]]
    for method, names in of.items():
        line = lines[best[method]]
        cells = [f"{accuracy[names[rate]]:.2f}" if rate in names else "" for rate in columns]
        table.append([title(method), *cells, grid_table.interval(line), grid_table.difference(line)])
    return markdown_table(table)


def resolutions(found: Mapping[str, list[Row]]) -> str:
    """Accuracy of each method by the resolution of student and faces, and its difference from plain distillation."""
    if not found:
        return NONE
    of, sides = variants(found)
    heading, lines = ["name"], {}
    for side in sides:
        rows = {names[side]: found[names[side]] for names in of.values() if side in names}
        lines |= {line["name"]: line for line in grid_table.compared(rows, of.get(AGAINST, {}).get(side))}
        heading += [f"{side:g}x{side:g} pixels, % (95 %)", f"against {AGAINST}"]
    table = [heading]
    for method, names in of.items():
        of_sides = [lines.get(names.get(side, ""), {}) for side in sides]
        cells = [cell(line) for line in of_sides for cell in (grid_table.interval, grid_table.difference)]
        table.append([title(method), *cells])
    return markdown_table(table)


def replaced(page: str, name: str, new: str) -> str:
    """The page with what is between its two lines of this name made anew."""
    begin, end = f"<!-- {name}: begin (tools/generate_zoo.py) -->", f"<!-- {name}: end -->"
    return generate_configuration.replaced(page, PAGE, begin, end, new)


def made(now: str) -> tuple[str, dict[Path, bytes]]:
    """The page with all of its generated parts made anew, and the picture."""
    rows = grid_rows.read_rows([ROWS])
    table, picture = results(rows)
    parts = {
        "methods": methods(), "notes": notes(), "results": table, "noise": noise(rows), "logs": logs(rows),
        "degraded": degraded(grid_rows.read_rows([DEGRADED])), "rates": rates(grid_rows.read_rows([RATES])),
        "resolutions": resolutions(grid_rows.read_rows([RESOLUTIONS])),
    }  # fmt: skip
    for name, part in parts.items():
        now = replaced(now, name, part)
    return now, {PICTURE: picture} if picture else {}


def main() -> int:
    """Runs the tool; returns the exit status."""
    return generate_configuration.generate(__doc__, PAGE, made)


if __name__ == "__main__":
    sys.exit(main())
