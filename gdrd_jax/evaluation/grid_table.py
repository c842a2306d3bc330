"""The table of a grid: its rows (`evaluation.grid_rows`) compared by method, with seeds and intervals over people."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gdrd_jax.evaluation import bootstrap, cost_plot, paper_tables
from gdrd_jax.evaluation.grid_rows import DEV, STAND_IN, Judged, Row, check_same_subjects
from gdrd_jax.evaluation.methods import METHODS, SUPER_RESOLUTION, Method
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.tables import markdown_table

Cell = Callable[[Mapping[str, Any]], str]
MAIN = ("accuracy", "rank_1")  # main figures of the protocols that the paper has


def compared(found: Mapping[str, Sequence[Row]], against: str | None) -> list[dict[str, Any]]:
    """One line for each name, from the rows of its seeds.

    Returns:
      For each name `name`, `seeds` (their number, 0 of a model that was not trained here), and of the dev pairs what
      `_column` gives; `columns`, the same of the others; `resolution`, `parameters` and `core_seconds` where they are
      known.
    """
    check_same_subjects(row for rows in found.values() for row in rows)
    columns = dict.fromkeys(column for rows in found.values() for row in rows for column in row.judged)
    of_columns = {column: _column(column, found, against) for column in columns}
    lines = []
    for name, rows in found.items():
        about, seeds = rows[0].about, sum(row.seed is not None for row in rows)
        own = {column: of_names[name] for column, of_names in of_columns.items() if name in of_names}
        line = {"name": name, "seeds": seeds, **own.pop(DEV, {}), "columns": own}
        line |= {key: about[key] for key in ("resolution", "parameters", "super_resolution") if key in about}
        costs = [row.about["core_seconds"] for row in rows if row.about.get("core_seconds")]
        lines.append({**line, **({"core_seconds": float(np.mean(costs))} if costs else {})})
    return lines


def _column(column: str, found: Mapping[str, Sequence[Row]], against: str | None) -> dict[str, dict[str, Any]]:
    """Figures of each name under a column, in percent.

    `accuracy` (or whatever the protocol's main figure is), its `standard_error` over seeds and people, `low` and `high`
    (its 95 % interval over people), `lowest` and `highest` of the seeds, further figures, the `paper`'s, and the
    `difference` from `against` with `difference_standard_error` and, over people alone, `difference_low` and
    `difference_high`, paired by decision and seed.
    """
    judged = {of: {row.seed: row.judged[column] for row in rows if column in row.judged} for of, rows in found.items()}
    people = next((one.people for of in judged.values() for one in of.values() if one.people is not None), None)
    if people is None:
        raise GdrdError(f"no row says who is in the decisions of {column!r}", "row-people")
    weights = bootstrap.resamples_of_pairs(people)
    other, lines = judged.get(against or "", {}), {}
    for name, own in judged.items():
        if not own:
            continue
        decided = 100 * np.array([one.right for one in own.values()], float)  # [S, P]
        accuracies = decided.mean(axis=1)
        low, high = bootstrap.interval(weights @ decided.mean(axis=0))
        line: dict[str, Any] = {
            "accuracy": accuracies.mean(), "standard_error": _error(decided, weights), "low": low, "high": high,
            "lowest": accuracies.min(), "highest": accuracies.max(),
        }  # fmt: skip
        for key in next(iter(own.values())).figures:
            line[key] = np.mean([one.figures[key] for one in own.values()])
        reported = _paper(column, {"name": name, **found[name][0].about})
        line["paper"] = next((reported[main] for main in MAIN if main in reported), None)
        if name != against and (paired := _paired(own, other)):
            difference = 100 * np.array([np.subtract(a.right, b.right, dtype=float) for a, b in paired])
            line["difference"], line["difference_standard_error"] = difference.mean(), _error(difference, weights)
            line["difference_low"], line["difference_high"] = bootstrap.interval(weights @ difference.mean(axis=0))
        lines[name] = {key: float(value) if isinstance(value, np.floating) else value for key, value in line.items()}
    return lines


def _paired(own: Mapping[int | None, Judged], other: Mapping[int | None, Judged]) -> list[tuple[Judged, Judged]]:
    """Decisions of equal seeds; those of a model that was not trained here, and has no seed, are paired with all."""
    if None in own:
        return [(own[None], one) for one in other.values()]
    if None in other:
        return [(one, other[None]) for one in own.values()]
    return [(one, other[seed]) for seed, one in own.items() if seed in other]


def _error(found: np.ndarray, weights: np.ndarray) -> float | None:
    """Standard error of the mean of `[S, P]`, over seeds and people; None with one seed.

    Args:
      found: values.
      weights: see `bootstrap.resamples_of_pairs`.
    """
    if len(found) < 2:
        return None
    of_seeds = found.mean(axis=1).std(ddof=1) / np.sqrt(len(found))
    return float(np.hypot(of_seeds, (weights @ found.mean(axis=0)).std(ddof=1)))


def table(lines: Sequence[Mapping[str, Any]], against: str | None = None) -> str:
    """Markdown: a table of the dev pairs, and where there are other columns one of these.

    Args:
      lines: of `compared`.
      against: as given to it, for headings.
    """
    differences: dict[str, Cell] = {f"against {against}": difference} if against else {}
    known: dict[str, Cell] = {"based on": _grounding} if any(map(_method, lines)) else {}
    cells: dict[str, Cell] = {
        "name": title, **known, "seeds": lambda line: str(line["seeds"] or ""), "accuracy % (95 %)": interval,
        "± std. error": lambda line: _number(line.get("standard_error")), "lowest to highest": _range,
        "AUC %": lambda line: _number(line.get("auc")), **differences,
        "parameters, M": lambda line: _number(line.get("parameters"), 1e-6),
        "training, core minutes": lambda line: _number(line.get("core_seconds"), 1 / 60, 1),
        "the paper's % (WebFace)": lambda line: _number(line.get("paper")),
    }  # fmt: skip
    text = _markdown(lines, cells)
    columns = dict.fromkeys(column for line in lines for column in line["columns"])
    if columns:
        others: dict[str, Cell] = {"name": title}
        for column in columns:
            others[f"{column} %"] = functools.partial(_with_difference, column)
            others[f"the paper's {_protocol(column)} %"] = functools.partial(_reported, column)
        text += "\n" + _markdown(lines, others)
    return text


def _markdown(lines: Sequence[Mapping[str, Any]], cells: Mapping[str, Cell]) -> str:
    """Columns that are empty in all lines are left out."""
    columns = [[heading, *(cell(line) for line in lines)] for heading, cell in cells.items()]
    return markdown_table([list(row) for row in zip(*(column for column in columns if any(column[1:])))])


def _number(value: float | None, unit: float = 1.0, digits: int = 2) -> str:
    return "" if value is None else f"{value * unit:.{digits}f}"


def title(line: Mapping[str, Any]) -> str:
    """The cell with the name of a line, and of its method if it is one of the zoo's."""
    method, name = _method(line), line["name"]
    return f"{method.title} `{name}`" if method else name


def _grounding(line: Mapping[str, Any]) -> str:
    method = _method(line)
    return method.grounding if method else ""


def interval(line: Mapping[str, Any]) -> str:
    """The cell with accuracy and interval, empty where there is none."""
    return f"{line['accuracy']:.2f} ({line['low']:.1f}-{line['high']:.1f})" if "accuracy" in line else ""


def _range(line: Mapping[str, Any]) -> str:
    return f"{line['lowest']:.2f}-{line['highest']:.2f}" if line["seeds"] > 1 else ""


def difference(line: Mapping[str, Any]) -> str:
    """The cell with the difference from the line that others are compared with, with its standard error, or with one
    seed its interval over people; empty for that line itself."""
    if "difference" not in line:
        return ""
    error = line["difference_standard_error"]
    over_people = f" ({line['difference_low']:+.1f} to {line['difference_high']:+.1f})"
    return f"{line['difference']:+.2f}" + (over_people if error is None else f" ± {error:.2f}")


def _with_difference(column: str, line: Mapping[str, Any]) -> str:
    found = line["columns"].get(column)
    if not found:
        return ""
    error = found["standard_error"]
    paired = f"; {difference(found)}" if "difference" in found else ""
    return f"{found['accuracy']:.1f}" + ("" if error is None else f" ± {error:.1f}") + paired


def _reported(column: str, line: Mapping[str, Any]) -> str:
    found = _paper(column, line)
    return " / ".join(f"{value:.1f}" for value in found.values())


def _method(line: Mapping[str, Any]) -> Method | None:
    return SUPER_RESOLUTION.get(line.get("super_resolution", "")) or METHODS.get(line["name"])


def _paper(column: str, line: Mapping[str, Any]) -> Mapping[str, float]:
    """What the paper reports of the method of a line under the protocol of a column."""
    method = _method(line)
    name = (method.reported if method else "") or line.get("super_resolution", line["name"])
    return paper_tables.figures(_protocol(column), name, line.get("resolution", 0))


def _protocol(column: str) -> str:
    """The protocol of a column, if it is judged as in the paper."""
    return column.removesuffix(STAND_IN)


def draw_cost(lines: Sequence[Mapping[str, Any]]) -> bytes | None:
    """PNG of accuracy over training cost, with intervals over people; None where no cost is known."""
    shown = [line for line in lines if line.get("core_seconds") and "accuracy" in line]
    points = {
        line["name"]: (line["core_seconds"] / 60, line["accuracy"], (line["low"], line["high"])) for line in shown
    }
    return cost_plot.draw_cost(points, x="training, core minutes", y="dev accuracy, %") if points else None
