"""Removes output of steps that a workdir no longer uses."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gdrd_jax.pipeline import records
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import steps
from gdrd_jax.pipeline.workdir import USERS, read_users
from gdrd_jax.utils.errors import GdrdError, did_you_mean
from gdrd_jax.utils.files import LOCK, is_locked, locked


@dataclass(frozen=True)
class Unused:
    """Output to which no link leads.

    Attributes:
      folder: of the output; may be a link of version 0.4 to another workdir's output.
      size: in bytes.
      trained: whether it is a trained network, or of a step that the workdir's config has not, and may be one.
    """

    folder: Path
    size: int
    trained: bool


@contextlib.contextmanager
def find_unused(workdir: Path) -> Iterator[list[Unused]]:
    """A context in which no run can begin to use the output in `WORKDIR/steps`; gives what is unused there.

    Used is what a link `WORKDIR/STEP` leads to, here or in a workdir whose `config.outputs` was `WORKDIR/steps`: runs
    write their workdirs into the file `.workdirs` there. The folder `config.outputs` of this workdir is not looked at.

    Raises:
      GdrdError: it is no workdir, `WORKDIR/steps` is a link, a run uses it or its output, or a workdir in `.workdirs`
        is missing.
    """
    untrained = {step.name for step in steps(Run.open(workdir).config) if not step.trains}
    outputs = workdir / "steps"
    if not outputs.is_dir():
        yield []
        return
    if outputs.is_symlink():
        raise GdrdError(
            f"{outputs} is a link, and workdirs with the same link use its output without being listed there, so what "
            "is unused is not known; share output by config.outputs instead",
            "clean-steps-link",
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(workdir))
        stack.enter_context(locked(outputs))  # in which others are entered into `.workdirs`
        users = read_users(outputs)
        for user in users:
            if not (user / "config.json").exists():
                raise GdrdError(
                    f"{outputs / USERS} lists the workdir {user}, which uses this output, but it is not there; if it "
                    "was moved, replace the line, and if it was removed, remove the line",
                    "clean-workdir-missing",
                )
            stack.enter_context(locked(user))
        links = [path for user in (workdir, *users) for path in user.iterdir() if path.is_symlink()]
        used = {os.path.realpath(link) for link in links}
        found = []
        for folder in sorted(outputs.iterdir()):
            path = os.path.join(os.path.realpath(outputs), folder.name)
            if not folder.is_dir() and not folder.is_symlink() or path in used or os.path.realpath(path) in used:
                continue
            if not folder.is_symlink() and is_locked(folder):
                raise GdrdError(f"another run is working in {folder}; wait for it", "folder-in-use")
            found.append(Unused(folder, _size(folder), folder.name.partition("-")[0] not in untrained))
        yield found


def remove(unused: Sequence[Unused]) -> None:
    """Removes output; whatever happens, what is left of it is not taken for complete."""
    for output in unused:
        if output.folder.is_symlink():
            output.folder.unlink()
            continue
        (output.folder / records.NAME).unlink(missing_ok=True)
        shutil.rmtree(output.folder)


def choose(unused: Sequence[Unused], trained: Sequence[str]) -> list[Unused]:
    """All output that is not trained, and of the trained that with these names of folders.

    Raises:
      GdrdError: there is no unused trained output of a name.
    """
    names = {output.folder.name for output in unused if output.trained}
    for name in trained:
        if name not in names:
            known = f"unused are {', '.join(sorted(names))}" if names else "there is none"
            raise GdrdError(
                f"--trained {name} names no trained output that is unused; {did_you_mean(name, names)}{known}",
                "clean-trained-unknown",
            )
    return [output for output in unused if not output.trained or output.folder.name in trained]


def _size(folder: Path) -> int:
    if folder.is_symlink():
        return 0
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() and path.name != LOCK)
