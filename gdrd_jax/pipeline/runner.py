"""Runs the steps in order, and skips what is done.

The output of a step is in a folder named by the step and by what the output is made from (its origin):
`WORKDIR/steps/STEP-HASH`. `WORKDIR/STEP` is a link to the one that the last command used. So settings can be changed
back and forth at no cost, and nothing is removed or overwritten. With `config.outputs` several workdirs share one
folder of outputs. Each output has a `step.json`: its origin, and whether it is complete; an interrupted step is
continued. The results of the last step are copied into WORKDIR.
"""

import contextlib
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.data.extract import extract
from gdrd_jax.pipeline import records, stages, workdir_v04
from gdrd_jax.pipeline.planning import StepState, Walk, validate, warn, with_ancestors
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.steps import steps
from gdrd_jax.pipeline.workdir import link, lock_workdir, publish, read_users, register_user
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCK, digest, is_locked, locked, write_json
from gdrd_jax.utils.launch import SINGLE_PROCESS, ProcessInfo
from gdrd_jax.utils.platforms import check_platform
from gdrd_jax.utils.signals import check_signals, deferred

LOG = logging.getLogger(__name__)
POLL_SECONDS, SECONDS_BEFORE_MESSAGE, SECONDS_BEFORE_FAILURE = 0.2, 5.0, 120.0
SECONDS_BETWEEN_RECORDS = 30.0


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
    walk = Walk(config, workdir, validate(config, workdir, wanted))
    if process.world_size == 1:
        _check_later_steps(walk, process)
    current = Run(config, workdir, process)
    with contextlib.ExitStack() as stack:
        if process.rank == 0:
            stack.enter_context(lock_workdir(workdir, config))
            if process.world_size > 1:  # under the lock, which shows the others that this process works
                _check_later_steps(walk, process)
            _register(config, workdir)
            for step in steps(config):
                workdir_v04.adopt(step, config, workdir)
        walk.restart()
        take_part = _run_steps if process.rank == 0 else _follow_first_process
        while together := _next_steps(walk):
            check_signals()
            states = [walk.state(step) for step in together]
            current.folders |= {state.step.name: state.folder for state in states}
            walk.fingerprints |= take_part(states, current)
        if process.rank == 0:
            publish(current.folders, workdir)
            if "dis" in current.folders and not stages.is_teacher_features(config):
                LOG.info(
                    "student: %s; next: gdrd export %s FOLDER%s, gdrd evaluate --model %s ...",
                    workdir / "dis" / "student", workdir,
                    "" if config.data.calibration_people else " --calibration FACES", workdir,
                )  # fmt: skip


def _register(config: ConfigDict, workdir: Path) -> None:
    shared = Path(config.outputs or workdir / "steps").resolve()
    if shared == workdir.resolve() / "steps":  # its own, and no link to a folder that others use
        return
    if workdir.resolve() not in read_users(shared):
        with _sole_user(shared, wait=True):
            register_user(shared, workdir)


def _next_steps(walk: Walk) -> list[Step]:
    """The next step, and those that can be done in one pass over the same faces."""
    left = [step for step in steps(walk.config) if step.name in walk.needed and step.name not in walk.fingerprints]
    together = [s for s in left if s.extractions and set(s.after(walk.config)) <= walk.fingerprints.keys()]
    return together if left and left[0] in together else left[:1]


def _check_later_steps(walk: Walk, process: ProcessInfo) -> None:
    """Checks early, in seconds, what later steps need, unless all is done."""
    config = walk.config
    # With several processes JAX has to join them before it looks for devices.
    trains = any(step.trains and step.name in walk.needed for step in steps(config))
    uses_jax = os.environ.get("JAX_PLATFORMS") and trains and process.world_size == 1
    has_dev_set = config.dev.path and "dis" in walk.needed
    if not uses_jax and not has_dev_set and not config.student.init:
        return
    undone = {state.step.name for state in walk.look_ahead() if not state.is_done()}
    if uses_jax and undone:
        check_platform()
    warn(config, undone)
    if has_dev_set and undone & with_ancestors(("dis",), config):
        pairs = Path(config.dev.pairs) if config.dev.pairs else None
        with deferred("loading the dev set"):
            importlib.import_module("gdrd_jax.evaluation.dev").open_pairs(Path(config.dev.path), pairs)


def _run_steps(states: Sequence[StepState], current: Run) -> dict[str, str]:
    """Runs or skips steps; returns the fingerprints of their output by name."""
    alone, fingerprints = current.process.world_size == 1, {}
    with contextlib.ExitStack() as stack:
        reasons = {}
        for state in states:
            step = state.step
            if not state.is_done():
                workdir_v04.drop_foreign_link(state)
                reasons[step.name] = state.changes()
                if step.batched and alone:  # the devices of several processes are not known yet
                    trainer = importlib.import_module("gdrd_jax.training.trainer")
                    trainer.check_batch(stages.section(current.config, step.name).batch, f"stage {step.name}")
                stack.enter_context(_sole_user(state.folder, wait=alone))
        # Another run may have done some meanwhile.
        undone = [state for state in states if state.step.name in reasons and not state.is_done()]
        if undone:
            fingerprints = _do(undone, reasons, current)
    for state in states:
        name = state.step.name
        if name not in fingerprints:
            link(name, state.folder, state.workdir)
            record = records.read(state.folder)
            LOG.info("%s: done before, skipped", name)
            if remark := workdir_v04.remark(name, record):
                LOG.info("  %s", remark)
            fingerprints[name] = record["fingerprint"]
    return fingerprints


def _do(states: Sequence[StepState], reasons: dict[str, str], current: Run) -> dict[str, str]:
    """Does what is left of steps; returns the fingerprints of their output by name."""
    open_records = {}
    for state in states:
        open_records[state.step.name] = record = _begin(state, reasons[state.step.name])
        write_json(state.folder / records.NAME, record)
        link(state.step.name, state.folder, state.workdir)
    start = time.monotonic()
    with _metered(states, open_records):
        fingerprint = _work([state.step for state in states], current)
    for state in states:
        names = sorted(path.name for path in state.folder.iterdir() if path.name != LOCK)
        record = open_records[state.step.name]
        record |= {"outputs": names, "fingerprint": fingerprint or digest(state.origin), "complete": True}
        write_json(state.folder / records.NAME, record)
    for state in states:
        others = " and ".join(other.step.name for other in states if other is not state)
        seconds, total = time.monotonic() - start, open_records[state.step.name]["seconds"]
        parts = [f"{state.step.name}: done in {seconds:.1f} s"]
        parts += [f"{total:.1f} s with earlier commands"] if total > seconds + 1 else []
        LOG.info(", ".join([*parts, f"together with {others}"] if others else parts))
    return {name: record["fingerprint"] for name, record in open_records.items()}


@contextlib.contextmanager
def _metered(states: Sequence[StepState], open_records: dict[str, dict]) -> Iterator[None]:
    """Adds the time of the block to the records of its steps.

    The records are also written while the block runs, so that a process that is killed does not make training look
    cheaper than it was.
    """
    start, core_start, ended = time.monotonic(), time.process_time(), threading.Event()
    earlier = {name: (record["seconds"], record["core_seconds"]) for name, record in open_records.items()}

    def write() -> None:
        spent = time.monotonic() - start, time.process_time() - core_start
        for state in states:
            name, record = state.step.name, open_records[state.step.name]
            record["seconds"], record["core_seconds"] = (round(a + b, 1) for a, b in zip(earlier[name], spent))
            # The step's own error, such as a full disk, must not be hidden by another one here.
            with contextlib.suppress(OSError):
                write_json(state.folder / records.NAME, record)

    def write_regularly() -> None:
        while not ended.wait(SECONDS_BETWEEN_RECORDS):
            write()

    writer = threading.Thread(target=write_regularly, daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
        write()


def _begin(state: StepState, reason: str) -> dict:
    """The record of a step that is begun or continued."""
    record = records.read(state.folder)
    if record:
        LOG.info("%s: continued", state.step.name)
    else:
        if reason:
            LOG.info("%s: %s", state.step.name, reason)
        if any(path.name != LOCK for path in state.folder.iterdir()):
            _set_aside(state.folder)
        record = {"origin": state.origin}
    spent = {key: record.get(key, 0.0) for key in ("seconds", "core_seconds")}
    return record | {"complete": False, **spent}


def _work(together: Sequence[Step], current: Run) -> str | None:
    """Does one step, or several that read the same faces; returns what the step's function does."""
    if not together[0].extractions:
        return together[0].run(current)
    jobs = [step.extractions(current) for step in together]
    for split in dict.fromkeys(split for of_step in jobs for split in of_step):
        extract(*(of_step[split] for of_step in jobs if split in of_step), process=current.process)
    return None


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
                check_signals()
                time.sleep(POLL_SECONDS)
            try:
                stack.enter_context(locked(folder))
                break
            except GdrdError as error:
                if error.code != "folder-in-use" or not wait:  # otherwise a third run, which waited too, was faster
                    raise
        yield


def _follow_first_process(states: Sequence[StepState], current: Run) -> dict[str, str]:
    """What processes after the first do of steps: their share, or nothing; returns the fingerprints by name."""
    workdir, rank = current.workdir, current.process.rank

    def wait(state: StepState, what: str, enough: Callable[[], object]) -> None:
        since, logged = time.monotonic(), False
        while not enough():
            check_signals()
            time.sleep(POLL_SECONDS)
            alone = time.monotonic() - since
            if alone < SECONDS_BEFORE_MESSAGE:
                continue
            if not logged:
                differing = state.changes()
                LOG.info(
                    "rank %d waits for rank 0 to %s the step %s in %s%s", rank, what, state.step.name, state.folder,
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

    for state in states:
        wait(state, "begin", state.record)
    # Not by `complete`, because a lost part of the output is made again.
    undone = [state.step for state in states if state.step.shared and not state.is_done()]
    if undone:
        _work(undone, current)
    for state in states:
        wait(state, "finish", state.is_done)
    return {state.step.name: state.record()["fingerprint"] for state in states}
