"""The workdir of a run: its config, the links to the output of its steps, and the results."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.pipeline import records
from gdrd_jax.pipeline.steps import report
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCK, locked, write_json
from gdrd_jax.utils.outputs import is_run, kind_of

RESULTS = report.STEP.publishes
USERS = ".workdirs"  # file in a folder of outputs with the workdirs that share it, one a line


@contextlib.contextmanager
def lock_workdir(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Makes `workdir` this config's for the duration, and records the config in it.

    Raises:
      GdrdError: it belongs to another config, holds other things, or is in use.
    """
    check_workdir(workdir, config)
    with locked(workdir):
        check_workdir(workdir, config)  # again, because another process may have been faster
        write_json(workdir / "config.json", records.plain(config))
        yield


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Refuses a workdir of another config or of another use, see `lock_workdir`."""
    if workdir.exists() and not workdir.is_dir():
        raise GdrdError(f"the workdir {workdir} is a file; choose a folder with --workdir=DIR", "workdir-file")
    path, ours = workdir / "config.json", (LOCK, "config.json.")
    if workdir.exists() and not is_run(workdir) and any(not e.name.startswith(ours) for e in workdir.iterdir()):
        found = kind_of(workdir)
        what = f"is {found}" if found else "holds files that are not this program's"
        raise GdrdError(f"the workdir {workdir} {what}; choose another with --workdir=DIR", "workdir-other")
    if path.exists() and not config.resume:
        raise GdrdError(
            f"the workdir {workdir} was used before, and config.resume is false; choose another with --workdir=DIR",
            "workdir-used",
        )
    owner = records.read_json(path).get("name", config.name)
    if owner != config.name:
        raise GdrdError(
            f"the workdir {workdir} was made by the config {owner!r}, this one is {config.name!r}; "
            "choose another with --workdir=DIR",
            "workdir-owner",
        )


def register_user(outputs: Path, workdir: Path) -> None:
    """Enters a workdir into the list of those that share a folder of outputs, for `gdrd clean`.

    The folder's lock has to be held.
    """
    user = str(workdir.resolve())
    if os.fsencode(user) not in _lines(outputs):
        with (outputs / USERS).open("ab") as file:
            file.write(os.fsencode(user) + b"\n")


def read_users(outputs: Path) -> list[Path]:
    """The workdirs that have shared a folder of outputs, but not the one that the folder belongs to."""
    return [Path(os.fsdecode(line)) for line in _lines(outputs)]


def _lines(outputs: Path) -> list[bytes]:
    try:
        return [line for line in (outputs / USERS).read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []


def is_link(path: Path) -> bool:
    """Whether `link` made the path. Version 0.4 wrote folders, and links with absolute targets."""
    return path.is_symlink() and not path.readlink().is_absolute()


def link(name: str, folder: Path, workdir: Path) -> None:
    """Makes `WORKDIR/STEP` a link to the folder; results in the workdir that may be of other output are taken back."""
    # A relative link is read from where its folder really is, which matters where `workdir` leads through a link.
    real = os.path.realpath(folder.parent), os.path.realpath(workdir)
    path, target = workdir / name, Path(os.path.relpath(*real)) / folder.name
    if path.is_symlink() and path.readlink() == target:
        return
    if path.is_symlink():
        if name in ("dis", "report"):
            _take_back_results(workdir)
        path.unlink()
    elif path.exists():
        raise GdrdError(
            f"{path} is in the way of a link to {folder}; move it elsewhere and run the same command again",
            "link-blocked",
        )
    path.symlink_to(target, target_is_directory=True)


def publish(folders: dict[str, Path], workdir: Path) -> None:
    """Copies the results of the last step into the workdir; `folders` has the step's folder if it was done."""
    for name in RESULTS if report.STEP.name in folders else ():
        source, copy = folders[report.STEP.name] / name, workdir / name
        if source.exists() and (not copy.exists() or copy.read_bytes() != source.read_bytes()):  # some have no ROC
            shutil.copyfile(source, copy)


def _take_back_results(workdir: Path) -> None:
    for name in RESULTS:
        (workdir / name).unlink(missing_ok=True)
