"""List what configs can choose by name, with one line and the settings of each, and the sizes of students.

Examples:
  gdrd list
  gdrd list losses
  gdrd list students
  gdrd --plugin my_losses list losses
"""

import dataclasses
import inspect

from gdrd_jax import registry
from gdrd_jax.cli.common import ArgumentParser, guarded

KINDS = {
    "losses": registry.losses, "protocols": registry.protocols, "samplers": registry.samplers,
    "selections": registry.selections, "students": registry.students, "tasks": registry.tasks,
    "generative_teachers": registry.generative_teachers, "discriminative_teachers": registry.discriminative_teachers,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""

    def work() -> None:
        parser = ArgumentParser(__doc__)
        parser.add_argument("kind", nargs="?", choices=KINDS, help=f"{', '.join(KINDS)} (default: the names of all)")
        given = parser.parse_args(argv)
        if given.kind is None:
            for kind, entries in KINDS.items():
                print(f"{kind}: {', '.join(entries.names())}")
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


def size_of(student: str) -> str:
    """The number of a student's parameters for images of 16x16, or of the size nearest to it, and 512 dimensions."""
    from gdrd_jax.models.arguments import RGB
    from gdrd_jax.models.student import abstract_student, parameters

    entry = registry.students[student]
    side = min(entry.resolutions, key=lambda side: abs(side - 16))
    channels = RGB if RGB in entry.channel_counts else max(entry.channel_counts)
    made = {"name": student, "resolution": side, "channels": channels, "embedding_dim": 512}
    return f"Parameters at {side}x{side}: {parameters(abstract_student(made)) / 1e6:.2f} M."
