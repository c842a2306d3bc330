"""The table of a grid: runs, each judged under the same protocols, as rows that can be stored, collected and compared.

A stored row is a small JSON file, `NAME-seedN.json`, with the decisions behind its figures. So the difference of two
methods is paired by pair or probe and by seed, also where they were trained on different machines. The identities in
the pairs or probes of a protocol are in a file of their own, `DIGEST.people.json`, which all rows share.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.evaluation import bootstrap, paper_tables, report
from gdrd_jax.evaluation.methods import METHODS
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import write_json
from gdrd_jax.utils.tables import markdown_table

Cell = Callable[[Mapping[str, Any]], str]
FORMAT = 1
PEOPLE = ".people.json"
DEV = "lfw"  # the first column: the dev pairs
STAND_IN = " stand-in"  # end of a column's name
MAIN = ("accuracy", "rank_1")  # main figures of the protocols that the paper has


@dataclasses.dataclass(frozen=True)
class Judged:
    """What one model decided under one protocol.

    Attributes:
      right: whether each decision is right, bool `[P]`: of a pair, or of a probe.
      people: the identities of each decision, int `[P, 2]`, of a probe the same twice; None where they are not known.
      subject: fingerprint of what was decided; decisions on the same subject can be paired.
      figures: the protocol's further figures, in percent.
      pairs: the scored pairs of a verification; None of a stored row.
    """

    right: np.ndarray
    people: np.ndarray | None
    subject: str
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pairs: Pairs | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A trained model, or one that it is compared with.

    Attributes:
      name: of the combination of settings.
      seed: of its training; None if it was not trained here.
      judged: by column, the dev pairs first, under `DEV`.
      about: what can be said of the training, see `pipeline.run_record.described`.
    """

    name: str
    seed: int | None
    judged: Mapping[str, Judged]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name}.json" if self.seed is None else f"{self.name}-seed{self.seed}.json"

    def save(self, folder: Path) -> None:
        """Writes the row, and the identities of its decisions, into `folder`."""
        results: dict[str, dict[str, Any]] = {}
        for column, one in self.judged.items():
            results[column] = {
                "subject": one.subject, "count": len(one.right), "figures": dict(one.figures),
                "right": base64.b64encode(np.packbits(one.right).tobytes()).decode(),
            }  # fmt: skip
            if one.people is None:
                continue
            content = one.people.astype("<i4").tobytes()
            results[column]["people"] = hashlib.sha256(content).hexdigest()[:16]
            path = folder / f"{results[column]['people']}{PEOPLE}"
            if not path.exists():
                write_json(path, {"people": base64.b64encode(zlib.compress(content, 9)).decode()})
        head = {"format": FORMAT, "name": self.name, "seed": self.seed}
        write_json(folder / self.file, {**head, **self.about, "results": results})

    @classmethod
    def load(cls, path: Path) -> "Row":
        """Reads what `save` wrote.

        Raises:
          GdrdError: the file is damaged, or the file of its identities is missing.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results, name, seed = content.pop("results"), content.pop("name"), content.pop("seed")
            if content.pop("format") != FORMAT:
                raise ValueError("a later version wrote it")
            return cls(name, seed, {column: _judged(one, path) for column, one in results.items()}, content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            raise GdrdError(
                f"{path} is no row of a grid ({type(error).__name__}: {error}); move it elsewhere", "row-damaged"
            ) from error


def _judged(stored: dict, path: Path) -> Judged:
    right = np.unpackbits(np.frombuffer(base64.b64decode(stored["right"]), np.uint8), count=stored["count"])
    people = None
    if digest := stored.get("people"):
        packed = json.loads((path.parent / f"{digest}{PEOPLE}").read_text(encoding="utf-8"))["people"]
        people = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i4").reshape(-1, 2)
    return Judged(right.astype(bool), people, stored["subject"], stored["figures"])


def read_rows(folders: Iterable[Path]) -> dict[str, list[Row]]:
    """All stored rows of some folders: name to the rows of its seeds, the zoo's methods in its order, then by name.

    Raises:
      GdrdError: there is none; two have one name and seed; or one is damaged.
    """
    found: dict[tuple[str, int | None], tuple[Row, Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            if path.name.endswith(PEOPLE) or path.name == "table.json":
                continue
            row = Row.load(path)
            if (key := (row.name, row.seed)) in found:
                raise GdrdError(f"{path} and {found[key][1]} are of the same name and seed; remove one", "row-twice")
            found[key] = row, path
    if not found:
        raise GdrdError(f"there are no rows of a grid in {', '.join(map(str, folders))}", "rows-none")
    order = list(METHODS)
    names = sorted({name for name, _ in found}, key=lambda name: (order.index(name) if name in order else 999, name))
    rows = [row for row, _ in found.values()]
    return {name: sorted((row for row in rows if row.name == name), key=lambda row: row.seed or 0) for name in names}


def check_same_subjects(rows: Iterable[Row]) -> None:
    """Makes sure that all rows were judged by the same pairs and probes.

    Raises:
      GdrdError: they were not.
    """
    known: dict[str, tuple[str, Row]] = {}
    for row in rows:
        for column, one in row.judged.items():
            subject, first = known.setdefault(column, (one.subject, row))
            if subject != one.subject:
                raise GdrdError(
                    f"{row.file} and {first.file} were judged by other data under {column!r}; use the same for both",
                    "row-data",
                )


def compared(found: Mapping[str, Sequence[Row]], against: str | None) -> list[dict[str, Any]]:
    """One line for each name, from the rows of its seeds.

    Returns:
      For each name `name`, `seeds`, and of the dev pairs what `_column` gives; `columns`, the same of the others;
      `resolution`, `parameters` and `core_seconds` where they are known.
    """
    check_same_subjects(row for rows in found.values() for row in rows)
    columns = dict.fromkeys(column for rows in found.values() for row in rows for column in row.judged)
    of_columns = {column: _column(column, found, against) for column in columns}
    lines = []
    for name, rows in found.items():
        about = rows[0].about
        own = {column: of_names[name] for column, of_names in of_columns.items() if name in of_names}
        line = {"name": name, "seeds": len(rows), **own.pop(DEV, {}), "columns": own}
        line |= {key: about[key] for key in ("resolution", "parameters") if key in about}
        costs = [row.about["core_seconds"] for row in rows if row.about.get("core_seconds")]
        lines.append({**line, **({"core_seconds": float(np.mean(costs))} if costs else {})})
    return lines


def _column(column: str, found: Mapping[str, Sequence[Row]], against: str | None) -> dict[str, dict[str, Any]]:
    """Figures of each name under a column, in percent.

    `accuracy` (or whatever the protocol's main figure is), its `standard_error` over seeds and people, `low` and `high`
    (its 95 % interval over people), `lowest` and `highest` of the seeds, further figures, the `paper`'s, and the
    `difference` from `against` with `its_standard_error`, paired by decision and seed.
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
        reported = _paper(column, name, found[name][0].about.get("resolution", 0))
        line["paper"] = next((reported[main] for main in MAIN if main in reported), None)
        if name != against and (paired := _paired(own, other)):
            difference = 100 * np.array([np.subtract(a.right, b.right, dtype=float) for a, b in paired])
            line["difference"], line["its_standard_error"] = difference.mean(), _error(difference, weights)
        lines[name] = {key: float(value) if isinstance(value, np.floating) else value for key, value in line.items()}
    return lines


def _paired(own: Mapping[int | None, Judged], other: Mapping[int | None, Judged]) -> list[tuple[Judged, Judged]]:
    """Decisions of equal seeds; those of a model that was not trained here, and has no seed, are paired with all."""
    if None in own:
        return [(own[None], one) for one in other.values()]
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
    difference: dict[str, Cell] = {f"against {against}": _difference} if against else {}
    known: dict[str, Cell] = {"based on": _grounding} if any(line["name"] in METHODS for line in lines) else {}
    cells: dict[str, Cell] = {
        "name": _title, **known, "seeds": lambda line: str(line["seeds"]), "accuracy % (95 %)": _interval,
        "± std. error": lambda line: _number(line.get("standard_error")), "lowest to highest": _range,
        "AUC %": lambda line: _number(line.get("auc")), **difference,
        "parameters, M": lambda line: _number(line.get("parameters"), 1e-6),
        "training, core minutes": lambda line: _number(line.get("core_seconds"), 1 / 60, 1),
        "the paper's % (WebFace)": lambda line: _number(line.get("paper")),
    }  # fmt: skip
    text = _markdown(lines, cells)
    columns = dict.fromkeys(column for line in lines for column in line["columns"])
    if columns:
        others: dict[str, Cell] = {"name": _title}
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


def _title(line: Mapping[str, Any]) -> str:
    name = line["name"]
    return f"{METHODS[name].title} `{name}`" if name in METHODS else name


def _grounding(line: Mapping[str, Any]) -> str:
    return METHODS[line["name"]].grounding if line["name"] in METHODS else ""


def _interval(line: Mapping[str, Any]) -> str:
    return f"{line['accuracy']:.2f} ({line['low']:.1f}-{line['high']:.1f})" if "accuracy" in line else ""


def _range(line: Mapping[str, Any]) -> str:
    return f"{line['lowest']:.2f}-{line['highest']:.2f}" if line["seeds"] > 1 else ""


def _difference(line: Mapping[str, Any]) -> str:
    if "difference" not in line:
        return ""
    error = line["its_standard_error"]
    return f"{line['difference']:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def _with_difference(column: str, line: Mapping[str, Any]) -> str:
    found = line["columns"].get(column)
    if not found:
        return ""
    error = found["standard_error"]
    difference = f" ({_difference(found)})" if "difference" in found else ""
    return f"{found['accuracy']:.1f}" + ("" if error is None else f" ± {error:.1f}") + difference


def _reported(column: str, line: Mapping[str, Any]) -> str:
    found = _paper(column, line["name"], line.get("resolution", 0))
    return " / ".join(f"{value:.1f}" for value in found.values())


def _paper(column: str, name: str, resolution: int) -> Mapping[str, float]:
    """What the paper reports of a method under the protocol of a column."""
    method = METHODS[name].reported if name in METHODS else ""
    return paper_tables.figures(_protocol(column), method or name, resolution)


def _protocol(column: str) -> str:
    """The protocol of a column, if it is judged as in the paper."""
    return column.removesuffix(STAND_IN)


def draw_cost(lines: Sequence[Mapping[str, Any]]) -> bytes | None:
    """PNG of accuracy over training cost, with intervals over people; None where no cost is known."""
    shown = [line for line in lines if line.get("core_seconds") and "accuracy" in line]
    points = {
        line["name"]: (line["core_seconds"] / 60, line["accuracy"], (line["low"], line["high"])) for line in shown
    }
    return report.draw_cost(points, x="training, core minutes", y="dev accuracy, %") if points else None
