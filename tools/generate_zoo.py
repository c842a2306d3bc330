"""Writes the tables of docs/zoo.md and the picture docs/zoo/cost.png.

  python tools/generate_zoo.py           # rewrites them
  python tools/generate_zoo.py --check   # fails if the page is stale

The results come from the rows of trainings in docs/zoo, which `gdrd grid --rows docs/zoo` writes; the methods and the
notes on the paper's tables from gdrd_jax/evaluation.
"""

import sys
import textwrap
from pathlib import Path

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.evaluation import grid_table
from gdrd_jax.evaluation.methods import METHODS
from gdrd_jax.evaluation.paper_tables import NOTES
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.tables import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
ROWS = PAGE.with_suffix("")
PICTURE = ROWS / "cost.png"
AGAINST = "cosine"
WIDTH = 120
SHOWN = "\n![Accuracy over the cost of training](zoo/cost.png)\n"
NONE = "Nothing has been trained yet.\n"


def methods() -> str:
    """What each method is, and what it is based on."""
    rows = [[f"`{name}`", one.title, one.source, one.grounding] for name, one in METHODS.items()]
    return markdown_table([["config `zoo:`", "method", "published", "based on"], *rows])


def notes() -> str:
    """What to know of the paper's tables."""
    return "".join(textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ") + "\n" for note in NOTES)


def results() -> tuple[str, bytes | None]:
    """The table of the stored rows, and the picture."""
    if not list(ROWS.glob("*.json")):
        return NONE, None
    found = grid_table.read_rows([ROWS])
    against = AGAINST if AGAINST in found else None
    lines = grid_table.compared(found, against)
    picture = grid_table.draw_cost(lines)
    return grid_table.table(lines, against) + (SHOWN if picture else ""), picture


def replaced(page: str, name: str, new: str) -> str:
    """The page with what is between its two lines of this name made anew."""
    begin, end = f"<!-- {name}: begin (tools/generate_zoo.py) -->", f"<!-- {name}: end -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{PAGE} lacks the lines {begin!r} and {end!r}")
    return f"{head}{begin}\n\n{new}\n{end}{tail}"


def main() -> int:
    """Runs the tool; returns the exit status."""

    def work() -> None:
        parser = ArgumentParser(__doc__)
        parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
        given = parser.parse_args()
        now = PAGE.read_text(encoding="utf-8")
        table, picture = results()
        new = replaced(replaced(replaced(now, "methods", methods()), "notes", notes()), "results", table)
        if given.check and new != now:
            raise GdrdError(f"{PAGE} is stale; run: python tools/generate_zoo.py", "zoo-stale")
        if not given.check:
            PAGE.write_text(new, encoding="utf-8")
            if picture:
                PICTURE.write_bytes(picture)

    return guarded(work, resumes=False)


if __name__ == "__main__":
    sys.exit(main())
