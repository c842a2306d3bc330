"""Removes output of steps that no workdir uses any more."""

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
from gdrd_jax.utils.outputs import is_run


@dataclass(frozen=True)
class Unused:
    """Output to which no link leads.

    Attributes:
      folder: of the output; may be a link of version 0.4 to another workdir's output.
      size: in bytes.
      trained: whether it is a trained network, or of a step that no config of the workdirs has, and may be one.
    """

    folder: Path
    size: int
    trained: bool


@contextlib.contextmanager
def find_unused(folder: Path) -> Iterator[list[Unused]]:
    """A context in which no run can begin to use the output in a folder; gives what is unused there.

    Used is what a link `WORKDIR/STEP` leads to, in the workdir that the folder belongs to or in one whose
    `config.outputs` was this folder: runs write their workdirs into the file `.workdirs` there.

    Args:
      folder: a workdir, whose own `WORKDIR/steps` is looked at and not its `config.outputs`; or a folder that workdirs
        share by `config.outputs`.

    Raises:
      GdrdError: it is neither, `WORKDIR/steps` is a link, a run uses a workdir or output, or a workdir in `.workdirs`
        is missing.
    """
    if (folder / USERS).exists():
        outputs, owners = folder, [folder.parent] if folder.name == "steps" and is_run(folder.parent) else []
    else:
        outputs, owners = folder / "steps", [Run.open(folder).workdir]
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
        for owner in owners:
            stack.enter_context(locked(owner))
        stack.enter_context(locked(outputs))  # in which others are entered into `.workdirs`
        for user in (users := read_users(outputs)):
            if not (user / "config.json").exists():
                raise GdrdError(
                    f"{outputs / USERS} lists the workdir {user}, which uses this output, but it is not there; if it "
                    "was moved, replace the line, and if it was removed, remove the line",
                    "clean-workdir-missing",
                )
            stack.enter_context(locked(user))
        workdirs = [*owners, *users]
        configs = [Run.open(workdir).config for workdir in workdirs]
        untrained = {step.name for config in configs for step in steps(config) if not step.trains}
        links = [path for workdir in workdirs for path in workdir.iterdir() if path.is_symlink()]
        used = {os.path.realpath(link) for link in links}
        found = []
        for output in sorted(outputs.iterdir()):
            path = os.path.join(os.path.realpath(outputs), output.name)
            if not output.is_dir() and not output.is_symlink() or path in used or os.path.realpath(path) in used:
                continue
            if not output.is_symlink() and is_locked(output):
                raise GdrdError(f"another run is working in {output}; wait for it", "folder-in-use")
            found.append(Unused(output, _size(output), output.name.partition("-")[0] not in untrained))
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
