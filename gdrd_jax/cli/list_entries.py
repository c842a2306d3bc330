"""List what configs can choose by name, with one line and the settings of each, and the sizes of students.

`gdrd list pretrained` has the students with weights, which all commands take by name: their resolution, parameters,
teacher, and figures on LFW with 95 % intervals (the model card in `gdrd export` has the others).

Examples:
  gdrd list
  gdrd list losses
  gdrd list students
  gdrd list pretrained
  gdrd --plugin my_losses list losses
"""

import dataclasses
import inspect

from gdrd_jax import registry
from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.inference.pretrained import describe_student, find_student, list_pretrained
from gdrd_jax.models.arguments import RGB
from gdrd_jax.utils import tables

KINDS = {
    "losses": registry.losses, "protocols": registry.protocols, "samplers": registry.samplers,
    "selections": registry.selections, "students": registry.students, "tasks": registry.tasks,
    "generative_teachers": registry.generative_teachers, "discriminative_teachers": registry.discriminative_teachers,
}  # fmt: skip
PRETRAINED = "pretrained"


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""

    def work() -> None:
        parser, kinds = ArgumentParser(__doc__), (*KINDS, PRETRAINED)
        parser.add_argument("kind", nargs="?", choices=kinds, help=f"{', '.join(kinds)} (default: the names of all)")
        given = parser.parse_args(argv)
        if given.kind is None:
            for kind, entries in KINDS.items():
                print(f"{kind}: {', '.join(entries.names())}")
            print(f"{PRETRAINED}: {', '.join(list_pretrained())}")
            return
        if given.kind == PRETRAINED:
            print(tables.text_table(pretrained_table()))
            return
        for name in KINDS[given.kind].names():
            size = f" {size_of(name)}" if given.kind == "students" else ""
            print(described(KINDS[given.kind], name) + size)

    return guarded(work, resumes=False)


def described(entries: registry.Registry, name: str) -> str:
    """Name, first line of the docstring, and settings with their default values."""
    entry = entries[name]
    settings = ", ".join(f"{field.name}={field.default!r}" for field in dataclasses.fields(entry.Config))
    about = (inspect.getdoc(entry) or "").partition("\n\n")[0].replace("\n", " ")
    return f"{name}: {about}" + (f" Settings: {settings}." if settings else "")


def pretrained_table() -> list[list[str]]:
    """The pretrained students as a table: a heading, and a line for each."""
    from gdrd_jax.models.student import abstract_student, parameters

    lines = [["name", "pixels", "parameters", "teacher", "LFW %", "LFW %, degraded"]]
    for name in list_pretrained():
        manifest = describe_student(find_student(name))
        side, figures = manifest["student"]["resolution"], {}
        for evaluation in manifest.get("evaluations", ()):
            row = next((row for row in evaluation["rows"] if row["row"] == f"{name}_{side}"), None)
            if row and evaluation["protocol"] == "lfw":
                figures[bool(evaluation["degraded"])] = "{:.1f} ({:.1f}-{:.1f})".format(*row["accuracy"])
        size = parameters(abstract_student(manifest["student"])) / 1e6
        teacher = (manifest.get("teacher") or {}).get("name", "-")
        lines.append([name, str(side), f"{size:.2f} M", teacher, figures.get(False, "-"), figures.get(True, "-")])
    return lines


def size_of(student: str) -> str:
    """The number of a student's parameters for images of 16x16, or of the size nearest to it, and 512 dimensions."""
    from gdrd_jax.models.student import abstract_student, parameters

    entry = registry.students[student]
    side = min(entry.resolutions, key=lambda side: abs(side - 16))
    channels = RGB if RGB in entry.channel_counts else max(entry.channel_counts)
    made = {"name": student, "resolution": side, "channels": channels, "embedding_dim": 512}
    return f"Parameters at {side}x{side}: {parameters(abstract_student(made)) / 1e6:.2f} M."
