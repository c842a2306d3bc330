"""Runs the steps in order, and skips what is done.

The output of a step is in a folder named by the step and by what the output is made from (its origin):
`WORKDIR/steps/STEP-HASH`. `WORKDIR/STEP` is a link to the one that the last command used. So settings can be changed
back and forth at no cost, and nothing is removed or overwritten. With `config.outputs` several workdirs share one
folder of outputs. Each output has a `step.json`: its origin, and whether it is complete; an interrupted step is
continued. The results of the last step are copied into WORKDIR.
"""

import contextlib
import errno
import importlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.config import check
from gdrd_jax.pipeline import inputs, records, stages
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.steps import report, steps
from gdrd_jax.registry import load_plugins
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCK, ORBAX_FORBIDDEN, digest, is_locked, locked, storable, write_json
from gdrd_jax.utils.launch import SINGLE_PROCESS, ProcessInfo
from gdrd_jax.utils.outputs import is_run, is_step_output, kind_of
from gdrd_jax.utils.platforms import check_platform
from gdrd_jax.utils.signals import deferred

LOG = logging.getLogger(__name__)
POLL_SECONDS, SECONDS_BEFORE_MESSAGE, SECONDS_BEFORE_FAILURE = 0.2, 5.0, 120.0
RESULTS = report.STEP.publishes
# Rare cases in which versions up to 0.4.0, whose output is used all the same, did otherwise.
READ_OTHERWISE = {
    "views": "ignored EXIF behind other segments and the range of 16-bit images: use a new workdir for such faces",
    "discriminative": (
        "guessed a graph's preprocessing from the names of its operations: use a new workdir if the log of "
        "gdrd evaluate shows another preprocessing than `teacher` in discriminative/train/manifest.json"
    ),
}


@dataclass(frozen=True)
class Plan:
    """What a command would do with one step.

    Attributes:
      name: name of the step.
      action: "skip", "continue" or "run".
      reason: why, in a few words.
    """

    name: str
    action: str
    reason: str


def run(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = (), process: ProcessInfo = SINGLE_PROCESS) -> None:
    """Runs steps and all they need, skipping what is done.

    Args:
      config: see `gdrd_jax.config`.
      workdir: made if it is missing.
      wanted: names of steps; `config.until` if there is none.
      process: this process among those that work in `workdir`. The first does everything; the others help with the
        steps that can be shared, and wait for it at all others.

    Raises:
      GdrdError: a mistake of the user's, found before the work as far as possible.
      Interrupted: a signal arrived; the same call goes on.
    """
    needed = validate(config, workdir, wanted)
    if process.world_size == 1:
        _check_later_steps(config, workdir, needed, process)
    fingerprints: dict[str, str] = {}
    current = Run(config, workdir, process)
    with contextlib.ExitStack() as stack:
        if process.rank == 0:
            stack.enter_context(lock_workdir(workdir, config))
            if process.world_size > 1:  # under the lock, which shows the others that this process works
                _check_later_steps(config, workdir, needed, process)
            for step in steps(config):
                _adopt(step, config, workdir)
        take_part = _run_step if process.rank == 0 else _follow_first_process
        for step in steps(config):
            if step.name in needed:
                origin = records.origin_of(step, config, fingerprints)
                current.folders[step.name] = _place(step, origin, config, workdir)
                fingerprints[step.name] = take_part(step, origin, current)
        if process.rank == 0:
            _publish(needed, current)


def _place(step: Step, origin: dict, config: ConfigDict, workdir: Path) -> Path:
    """The folder of a step's output. Results name the run, so they are not shared with others."""
    folder = workdir / "steps" if step.publishes else outputs(config, workdir)
    return folder / records.address(step.name, origin)


def outputs(config: ConfigDict, workdir: Path) -> Path:
    """The folder of all outputs of steps."""
    return Path(config.outputs) if config.outputs else workdir / "steps"


def validate(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = ()) -> set[str]:
    """Finds a user's mistakes without doing or writing anything; arguments as of `run`.

    Returns:
      Names of all steps that `run` would look at.

    Raises:
      GdrdError: the first mistake.
    """
    load_plugins(config.plugins)
    needed = _with_ancestors(wanted or (config.until,), config)
    check(config, needed)
    inputs.check(config, needed)
    for step in steps(config):
        if step.name in needed:
            step.check(config)
    for place in (workdir, outputs(config, workdir)):
        storable(place, ORBAX_FORBIDDEN)
    shared = Path(config.outputs)
    if config.outputs and shared.resolve() == workdir.resolve():
        raise GdrdError(f"config.outputs is the workdir {workdir} itself; choose another folder", "outputs-is-workdir")
    if config.outputs and shared.exists() and not (shared.is_dir() and all(map(is_step_output, shared.iterdir()))):
        raise GdrdError(
            f"config.outputs: {shared} holds other things than the output of steps; choose a new folder, or "
            "WORKDIR/steps of another run",
            "outputs-other",
        )
    return needed


def plan(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = ()) -> list[Plan]:
    """What `run` would do, without doing or writing anything; arguments and errors as of `run`."""
    needed, fingerprints, found, uncertain = validate(config, workdir, wanted), {}, [], set()
    _check_workdir(workdir, config)
    for step in steps(config):
        if step.name not in needed:
            continue
        origin = records.origin_of(step, config, fingerprints)
        folder = _existing(step, origin, config, workdir)
        record = records.read(folder)
        # Only the step `faces` has a fingerprint that is not known before it runs; earlier faces stand for it.
        earlier = records.read(workdir / step.name) if step.name == "faces" and not record else record
        fingerprints[step.name] = earlier.get("fingerprint") or digest(origin)
        waits = sorted(uncertain & set(step.after(config)))
        if records.is_done(folder, step.name, origin):
            action, reason = "skip", f"done, in {folder}"
            if waits:
                reason += f", if {' and '.join(waits)} gives the same output"
        elif record:
            action, reason = "continue", f"not finished, in {folder}"
        else:
            action, reason = "run", _reason(step, origin, workdir) or "no output of these settings yet"
        if action != "skip" and step.name == "faces" or waits:
            uncertain.add(step.name)
        found.append(Plan(step.name, action, reason))
    return found


def finished(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = ()) -> bool:
    """Whether everything the config asks for is done in `workdir`, and nothing has changed since."""
    needed, fingerprints = _with_ancestors(wanted or (config.until,), config), {}
    for step in steps(config):
        if step.name in needed:
            origin = records.origin_of(step, config, fingerprints)
            folder = _existing(step, origin, config, workdir)
            if not records.is_done(folder, step.name, origin):
                return False
            fingerprints[step.name] = records.read(folder)["fingerprint"]
    return all((workdir / name).exists() for name in RESULTS) if "report" in needed else True


def _existing(step: Step, origin: dict, config: ConfigDict, workdir: Path) -> Path:
    """The folder of a step's output; `WORKDIR/STEP` where an earlier version wrote it there."""
    folder, before = _place(step, origin, config, workdir), workdir / step.name
    return before if not folder.exists() and records.is_of(records.read(before), origin) else folder


def _check_later_steps(config: ConfigDict, workdir: Path, needed: set[str], process: ProcessInfo) -> None:
    """Checks early, in seconds, what later steps need, unless all is done."""
    # With several processes JAX has to join them before it looks for devices.
    trains = any(step.trains and step.name in needed for step in steps(config))
    if os.environ.get("JAX_PLATFORMS") and trains and process.world_size == 1:
        if not finished(config, workdir, tuple(needed)):
            check_platform()
    if config.dev.path and "dis" in needed and not finished(config, workdir, ("dis",)):
        pairs = Path(config.dev.pairs) if config.dev.pairs else None
        with deferred("loading the dev set"):
            importlib.import_module("gdrd_jax.evaluation.dev").open_pairs(Path(config.dev.path), pairs)


def _with_ancestors(wanted: tuple[str, ...], config: ConfigDict) -> set[str]:
    needed = set(wanted)
    for step in reversed(steps(config)):
        if step.name in needed:
            needed.update(step.after(config))
    return needed


def _adopt(step: Step, config: ConfigDict, workdir: Path) -> None:
    """Moves what version 0.4 wrote to `WORKDIR/STEP` to where this version looks for it."""
    before = workdir / step.name
    if before.is_symlink() and not before.readlink().is_absolute():  # this version's, see `_link`
        return
    record = records.read(before)
    if not record:
        return
    folder = _place(step, records.recorded_origin(record), config, workdir)
    if folder.exists():
        if before.is_symlink():
            before.unlink()
            return
        if not folder.samefile(before):
            return
        folder.unlink()  # another workdir's link to this output, made before this workdir was used again
    if step.publishes and not before.is_symlink():
        for name in step.publishes:
            if (workdir / name).exists():
                shutil.copyfile(workdir / name, before / name)
        record["outputs"] = [*records.output_names(step.name, record), *step.publishes]  # also those that are missing
        write_json(before / records.NAME, record)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(before, folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise GdrdError(
            f"{before}, which version 0.4 wrote, cannot be moved to {folder.parent} on another file system; run the "
            "same command without config.outputs once",
            "outputs-other-device",
        ) from error
    _link(step.name, folder, workdir)


def _link(name: str, folder: Path, workdir: Path) -> None:
    """Makes `WORKDIR/STEP` a link to the folder; results in the workdir that may be of other output are taken back."""
    # A relative link is read from where its folder really is, which matters where `workdir` leads through a link.
    real = os.path.realpath(folder.parent), os.path.realpath(workdir)
    link, target = workdir / name, Path(os.path.relpath(*real)) / folder.name
    if link.is_symlink() and link.readlink() == target:
        return
    if link.is_symlink():
        if name in ("dis", "report"):
            _unpublish(workdir)
        link.unlink()
    elif link.exists():
        raise GdrdError(
            f"{link} is in the way of a link to {folder}; move it elsewhere and run the same command again",
            "link-blocked",
        )
    link.symlink_to(target, target_is_directory=True)


def _publish(needed: set[str], current: Run) -> None:
    """Copies the results of the last step into the workdir."""
    for step in steps(current.config):
        for name in step.publishes if step.name in needed else ():
            there, here = current.folder(step.name) / name, current.workdir / name
            if not here.exists() or here.read_bytes() != there.read_bytes():
                shutil.copyfile(there, here)


def _unpublish(workdir: Path) -> None:
    for name in RESULTS:
        (workdir / name).unlink(missing_ok=True)


def _reason(step: Step, origin: dict, workdir: Path) -> str:
    """What changed since the output that the workdir's link leads to; empty where there is none."""
    before = records.read(workdir / step.name)
    changed = ", ".join(records.changes(records.recorded_origin(before), origin)) if before else ""
    return f"changed: {changed}" if changed else ""


def _run_step(step: Step, origin: dict, current: Run) -> str:
    """Runs or skips a step; returns the fingerprint of its output."""
    folder, workdir = current.folder(step.name), current.workdir
    if not records.is_done(folder, step.name, origin):
        _drop_foreign_link(folder, origin)
        reason = _reason(step, origin, workdir)
        if step.batched and current.process.world_size == 1:  # the devices of several processes are not known yet
            trainer = importlib.import_module("gdrd_jax.training.trainer")
            trainer.check_batch(stages.section(current.config, step.name).batch, f"stage {step.name}")
        with _sole_user(folder, wait=current.process.world_size == 1):
            if not records.is_done(folder, step.name, origin):  # another run may have done it meanwhile
                return _do(step, origin, current, reason)
    _link(step.name, folder, workdir)
    record = records.read(folder)
    LOG.info("%s: done before, skipped", step.name)
    if "version" in record["origin"] and step.name in READ_OTHERWISE:
        LOG.info("  by version %s, which %s", record["origin"]["version"], READ_OTHERWISE[step.name])
    return record["fingerprint"]


def _drop_foreign_link(folder: Path, origin: dict) -> None:
    """Removes a link of version 0.4 to another workdir's output that is gone by now, or of another origin."""
    if folder.is_symlink() and not records.is_of(records.read(folder), origin):
        folder.unlink()


def _do(step: Step, origin: dict, current: Run, reason: str) -> str:
    """Does what is left of a step; returns the fingerprint of its output."""
    folder, record = current.folder(step.name), records.read(current.folder(step.name))
    if record:
        LOG.info("%s: continued", step.name)
    else:
        if reason:
            LOG.info("%s: %s", step.name, reason)
        if any(path.name != LOCK for path in folder.iterdir()):
            _set_aside(folder)
        record = {"origin": origin}
    record |= {"complete": False, "seconds": record.get("seconds", 0.0)}
    write_json(folder / records.NAME, record)
    _link(step.name, folder, current.workdir)
    start = time.monotonic()
    try:
        fingerprint = step.run(current)
        record["outputs"] = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
        record |= {"fingerprint": fingerprint or digest(origin), "complete": True}
    finally:
        record["seconds"] = round(record["seconds"] + time.monotonic() - start, 1)
        # The step's own error, such as a full disk, must not be hidden by another one here.
        with contextlib.nullcontext() if record["complete"] else contextlib.suppress(OSError):
            write_json(folder / records.NAME, record)
    LOG.info("%s: done in %.1f s", step.name, record["seconds"])
    return record["fingerprint"]


def _set_aside(folder: Path) -> None:
    """Moves what is in a folder without a record, which may be trained, out of the way."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.unknown{number}")).exists():
        number += 1
    aside.mkdir()
    for path in folder.iterdir():
        if path.name != LOCK:
            path.rename(aside / path.name)
    LOG.warning("%s has no %s; what was in it is kept in %s", folder, records.NAME, aside)


@contextlib.contextmanager
def _sole_user(folder: Path, *, wait: bool) -> Iterator[None]:
    """Waits for other runs that make the same output, which can be where `config.outputs` is shared.

    Without `wait` another run is an error: processes that help would begin before this one.
    """
    with contextlib.ExitStack() as stack:
        while True:
            if wait and is_locked(folder):
                LOG.info("waiting for another run, which is working in %s", folder)
            while wait and is_locked(folder):
                time.sleep(POLL_SECONDS)
            try:
                stack.enter_context(locked(folder))
                break
            except GdrdError as error:
                if error.code != "folder-in-use" or not wait:  # otherwise a third run, which waited too, was faster
                    raise
        yield


def _is_done(step: Step, origin: dict, current: Run) -> bool:
    return records.is_done(_existing(step, origin, current.config, current.workdir), step.name, origin)


def _follow_first_process(step: Step, origin: dict, current: Run) -> str:
    """What processes after the first do of a step: their share of it, or nothing; returns its fingerprint."""
    folder, workdir, rank = current.folder(step.name), current.workdir, current.process.rank

    def wait(what: str, enough: Callable[[dict], bool]) -> dict:
        since, logged = time.monotonic(), False
        while not enough(record := records.read(_existing(step, origin, current.config, workdir))):
            time.sleep(POLL_SECONDS)
            alone = time.monotonic() - since
            if alone < SECONDS_BEFORE_MESSAGE:
                continue
            if not logged:
                differing = _reason(step, origin, workdir)
                LOG.info(
                    "rank %d waits for rank 0 to %s the step %s in %s%s", rank, what, step.name, folder,
                    f"; {differing}" if differing else "",
                )  # fmt: skip
                logged = True
            if is_locked(workdir):
                since = time.monotonic() - SECONDS_BEFORE_MESSAGE
            elif alone > SECONDS_BEFORE_FAILURE:
                raise GdrdError(
                    f"rank 0 is not working in {workdir}: it failed, or was never started; look at its output",
                    "rank-0-missing",
                )
        return record

    wait("begin", bool)
    # Not by `complete`, because a lost part of the output is made again.
    if step.shared and not _is_done(step, origin, current):
        step.run(current)
    return wait("finish", lambda record: _is_done(step, origin, current))["fingerprint"]


@contextlib.contextmanager
def lock_workdir(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Makes `workdir` this config's for the duration, and records the config in it.

    Raises:
      GdrdError: it belongs to another config, holds other things, or is in use.
    """
    _check_workdir(workdir, config)
    with locked(workdir):
        _check_workdir(workdir, config)  # again, because another process may have been faster
        write_json(workdir / "config.json", records.plain(config))
        yield


def _check_workdir(workdir: Path, config: ConfigDict) -> None:
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
