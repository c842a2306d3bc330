"""Writes the settings' tables of docs/configuration.md from gdrd_jax/config.

  python tools/generate_configuration.py           # rewrites the page
  python tools/generate_configuration.py --check   # fails if the page is stale

Names, types, defaults and allowed values come from `config.default()` and its checks, descriptions from the comments
above and beside each setting in the source of `default()`.
"""

import ast
import dataclasses
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable, Collection
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax import config as settings
from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.models.arguments import SHARED
from gdrd_jax.registry import (
    Registry,
    discriminative_teachers,
    explanations,
    generative_teachers,
    losses,
    samplers,
    selections,
    students,
)  # fmt: skip
from gdrd_jax.utils.errors import GdrdError

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: begin (tools/generate_configuration.py) -->", "<!-- settings: end -->"
SECTIONS = {
    "": "General",
    "task": "Task",
    "data": "Faces",
    "dev": "Dev set of stage dis",
    "views": "Stored views",
    "degradation": "Random degradation in stage dis",
    "discriminative": "Discriminative teacher T_d",
    "generative": "Generative teacher T_g",
    "sr": "An SR teacher trained on the faces",
    "student": "Student",
    "gen": "Stage gen",
    "dis": "Stage dis",
    "evaluation": "Report",
}


def descriptions(source: str) -> dict[str, str]:
    """The description of each setting.

    Args:
      source: of a function such as `config.default`.

    Returns:
      Dotted name of the setting to the text of the comment lines above it and of the comment beside it.
    """
    above, beside = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            where = above if not token.line[: token.start[1]].strip() else beside
            where[token.start[0]] = token.string.lstrip("# ")

    def described(line: int) -> str:
        lines, before = [], line - 1
        while before in above:
            lines.insert(0, above[before])
            before -= 1
        return " ".join([*lines, *([beside[line]] if line in beside else [])])

    def of_section(value: ast.expr) -> dict[str, str]:
        if isinstance(value, ast.Name):
            return shared[value.id]
        found: dict[str, str] = {}
        for key, inner in zip(value.keys, value.values):
            found |= of_section(inner) if key is None else {key.value: described(key.lineno)}
        return found

    shared: dict[str, dict[str, str]] = {}
    found: dict[str, str] = {}
    for statement in ast.parse(source).body[0].body:
        if not isinstance(statement, ast.Assign):
            continue
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            shared[target.id] = of_section(value)
        elif isinstance(target, ast.Attribute) and isinstance(value, ast.Call):
            inner = of_section(value.args[0])
            found |= {f"{target.attr}.{key}": text for key, text in inner.items()}
            if not inner:
                found[target.attr] = described(statement.lineno)
        elif isinstance(target, ast.Attribute):
            found[target.attr] = described(statement.lineno)
    return found


def allowed(name: str) -> str:
    """The values that `config.check` lets a setting have, as a cell of a table; "" if any of its type."""
    if name in settings.CHOICES:
        return ", ".join(f"`{_shown(choice)}`" for choice in settings.CHOICES[name])
    if name in settings.BELOW_ONE:
        return "at least 0, below 1"
    least = settings.AT_LEAST.get(name)
    if name in settings.AT_MOST:
        return f"{least} to {settings.AT_MOST[name]}"
    return f"at least {least}" if least is not None else "above 0" if name in settings.ABOVE_ZERO else ""


def tables() -> str:
    """The generated part of the page, Markdown."""
    config = settings.default()
    texts = descriptions(textwrap.dedent(inspect.getsource(settings.default)))
    lines = []
    for section, title in SECTIONS.items():
        lines += [f"### {title}" + (f": `{section}`" if section else ""), ""]
        lines += ["| setting | type | default | allowed | meaning |", "|---|---|---|---|---|"]
        for name, text in texts.items():
            if name.rpartition(".")[0] == section:
                value = settings.value_of(config, name)
                kind = "dict" if isinstance(value, ConfigDict) else type(value).__name__
                cells = f"`{name}`", kind, f"`{_shown(value)}`", allowed(name), _escaped(text)
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += ["### Losses of stage dis: `dis.losses`", ""]
    lines += ["| loss | reads | settings beside `weight` | meaning |", "|---|---|---|---|"]
    for name in _own(losses):
        needs = ", ".join(sorted(losses[name].needs))
        lines.append(f"| `{name}` | {needs} | {_fields(losses, name)} | {_about(losses, name)} |")
    for title, entries in {"Samplers: `dis.sampler`": samplers, "Selections: `dis.selection`": selections}.items():
        lines += ["", f"### {title}", "", "| name | settings | meaning |", "|---|---|---|"]
        lines += [f"| `{n}` | {_fields(entries, n)} | {_about(entries, n)} |" for n in _own(entries)]
    for section, teachers in (("generative", generative_teachers), ("discriminative", discriminative_teachers)):
        title = f"Kinds of {section} teachers: `{section}.kind` and `{section}.settings`"
        lines += ["", f"### {title}", "", "| kind | setting | default | meaning |", "|---|---|---|---|"]
        for name in _own(teachers):
            lines.append(f"| `{name}` | | | {_about(teachers, name)} |")
            texts = explanations(teachers[name].Config)
            for field in dataclasses.fields(teachers[name].Config):
                cells = f"`{name}`", f"`{field.name}`", f"`{_shown(field.default)}`", _escaped(texts[field.name])
                lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "### Students: `student.name`", ""]
    lines += ["| student | pixels | of the section `student` | `student.settings` | meaning |", "|---|---|---|---|---|"]
    for name in _own(students):
        own = {field.name for field in dataclasses.fields(students[name].Config)}
        shared = ", ".join(f"`{key}`" for key in SHARED if key in own)
        pixels = ", ".join(map(str, students[name].resolutions))
        given = _fields(students, name, set(SHARED))
        lines.append(f"| `{name}` | {pixels} | {shared} | {given} | {_about(students, name)} |")
    return "\n".join([*lines, ""])


def _own(entries: Registry) -> list[str]:
    """Names of this package's own entries, without those of plugins."""
    return [name for name in entries.names() if entries[name].__module__.startswith("gdrd_jax.")]


def _fields(entries: Registry, name: str, but: Collection[str] = ()) -> str:
    """The settings of an entry and their defaults, as a cell of a table."""
    found = (field for field in dataclasses.fields(entries[name].Config) if field.name not in but)
    return ", ".join(f"`{field.name}={_shown(field.default)}`" for field in found)


def _about(entries: Registry, name: str) -> str:
    """The first paragraph of an entry's docstring, as a cell of a table."""
    return _escaped((inspect.getdoc(entries[name]) or "").partition("\n\n")[0].replace("\n", " "))


def _shown(value: object) -> str:
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    return '""' if value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def page(now: str) -> str:
    """The page with its generated part made anew."""
    return replaced(now, PAGE, BEGIN, END, tables())


def replaced(now: str, path: Path, begin: str, end: str, new: str) -> str:
    """A page with what is between two of its lines made anew; `path` is where the page lies."""
    head, found, rest = now.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path} lacks the lines {begin!r} and {end!r}")
    return f"{head}{begin}\n\n{new}\n{end}{tail}"


def generate(description: str, path: Path, make: Callable[[str], tuple[str, dict[Path, bytes]]]) -> int:
    """The tool that writes a page, or with --check only compares it; returns the exit status.

    Args:
      description: of the tool.
      path: of the page, `NAME.md`; the tool is `generate_NAME.py`.
      make: of what the page holds, what it should hold, and pictures to write beside it.
    """

    def work() -> None:
        parser = ArgumentParser(description)
        parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
        given = parser.parse_args()
        now = path.read_text(encoding="utf-8")
        new, pictures = make(now)
        if given.check and new != now:
            raise GdrdError(f"{path} is stale; run: python tools/generate_{path.stem}.py", f"{path.stem}-stale")
        if not given.check:
            path.write_text(new, encoding="utf-8")
            for place, content in pictures.items():
                place.write_bytes(content)

    return guarded(work, resumes=False)


def main() -> int:
    """Runs the tool; returns the exit status."""
    return generate(__doc__, PAGE, lambda now: (page(now), {}))


if __name__ == "__main__":
    sys.exit(main())
