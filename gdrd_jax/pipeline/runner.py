"""The steps in order, their fingerprints, what is skipped.

Each step writes into a folder of its own, `WORKDIR/STEP`, with `step.json`: what the
output was made from (its origin) and whether it is complete. A step whose origin is
unchanged is skipped, or continued if it was interrupted; one whose origin changed is run
again. The results of the last step are in WORKDIR itself.

A trained network is never removed: it is moved to `WORKDIR/previous/N`, with the networks
trained from it and their results. All other output can be computed again and is replaced.
"""

import contextlib
import importlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.config import RENAMED, check, value_of, with_current_names
from gdrd_jax.data.degradation import STRENGTHS
from gdrd_jax.pipeline import inputs
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCK, ORBAX_FORBIDDEN, digest, is_locked, listed_paths, locked, storable, write_json
from gdrd_jax.utils.launch import SINGLE_PROCESS, ProcessInfo
from gdrd_jax.utils.outputs import is_run, kind_of
from gdrd_jax.utils.platforms import check_platform
from gdrd_jax.utils.signals import deferred

LOG = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS, SECONDS_BEFORE_TOLD, SECONDS_BEFORE_GIVEN_UP = 0.2, 5.0, 120.0
DIS_AFTER = {"scratch": ("views", "discriminative"), "teacher": ("generative", "discriminative")}  # by `dis.backbone`
RESULTS = ("metrics.json", "roc.csv", "roc.png", "report.html")
PREVIOUS = "previous"  # folder of a workdir for trained networks that were set aside, numbered from 1
# What versions up to 0.4.0, whose output is used all the same, did otherwise in rare cases.
READ_OTHERWISE = {
    "views": "ignored EXIF behind other segments and the range of 16-bit images: use a new workdir for such faces",
    "discriminative": (
        "guessed a graph's preprocessing from the names of its operations: use a new workdir if the log of "
        "gdrd evaluate shows another preprocessing than `teacher` in discriminative/train/manifest.json"
    ),
}
# Settings that are newer than 0.4.0, with the values at which they change nothing: workdirs without them stay valid.
ADDED = {
    "dis": {"dis.nce": 0.0, "dis.nce_scale": 16.0, "dis.mixup": 0.0},
    "teacher": {"views.blur": 0.0, "views.motion": 0.0, "views.noise": 0.0, "views.jpeg": 0},
}
USES_JAX = {"gen", "dis", "report"}


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
      name: of the step and of its folder; of the function `(config, workdir)` that does it, too.
      settings: of the config, that its output depends on; a section stands for all in it.
      after: steps whose output it reads.
      files: `config` -> name to fingerprint of files from outside that it reads.
      module: where the function is; imported when the step has to run, for it is heavy. The
        function may return a fingerprint of its output; the fingerprint of its origin serves otherwise.
      publishes: files that are moved from the step's folder to the workdir when it is done.
      shared: several processes can do it together; its function takes a `ProcessInfo`, too.
      trains: its output is a trained network, which is set aside and not removed.
      batched: the section of its name has the size of its batches, which are shared among JAX's devices.
      format_version: version of its output. Raise it when a new version of this program cannot use, or would not
        write, the same output from the same origin; the program's own version does not count.
    """

    name: str
    settings: tuple[str, ...]
    after: tuple[str, ...] = ()
    files: Callable[[ConfigDict], dict[str, str]] = lambda config: {}
    module: str = "gdrd_jax.pipeline.precompute_steps"
    publishes: tuple[str, ...] = ()
    shared: bool = False
    trains: bool = False
    batched: bool = False
    format_version: int = 1


# T_d sees views before they are reduced, so students of other resolutions can share its targets.
MOVED = tuple(f"views.{name}" for name in ("count", "seed", "shift", "rotate", "scale", "light"))
DEGRADED = tuple(f"views.{name}" for name in STRENGTHS)
TAKEN = ("discriminative.preprocessing", "discriminative.precision", *MOVED)
TAPPED = ("generative.kind", "generative.precision")  # and what `generative_files` tells
BACKBONE = ("student.width", "student.head_stages", "student.dtype")
LEARNED = ("views", "gen", "discriminative")
TRAINED = ("seed", "student", "dis", "data.calibration_people")
STEPS = (
    Step("faces", ("data.align", "data.test_people"), files=inputs.face_files),
    Step("views", ("views",), ("faces",), shared=True),
    Step("small_faces", ("views.resolution",), ("faces",), shared=True),
    Step("discriminative", TAKEN, ("faces",), inputs.discriminative_files, shared=True),
    Step("teacher", ("seed", "views.resolution", "views.kernel", *DEGRADED, "sr"), ("faces",), trains=True),
    Step("generative", TAPPED, ("views", "teacher"), inputs.generative_files, shared=True),
    Step(
        "gen",
        ("seed", *BACKBONE, "gen"),
        ("generative",),
        inputs.init_files,
        module="gdrd_jax.pipeline.train_steps",
        shared=True,
        trains=True,
        batched=True,
    ),
    Step(
        "dis",
        TRAINED,
        LEARNED,
        inputs.dis_files,
        module="gdrd_jax.pipeline.train_steps",
        shared=True,
        trains=True,
        batched=True,
    ),
    Step(
        "report",
        ("evaluation", "discriminative.name"),
        ("dis",),
        module="gdrd_jax.pipeline.report_step",
        publishes=RESULTS,
    ),
)


def _after(step: Step, config: ConfigDict) -> tuple[str, ...]:
    """Steps whose output a step reads."""
    if step.name == "generative" and config.generative.path:  # the user's teacher
        return ("views",)
    if step.name == "dis" and config.data.packed:
        return ()
    if step.name == "dis":
        after = DIS_AFTER.get(config.dis.backbone, step.after)
        return (*after, "small_faces") if config.degradation.random else after
    return step.after


def run(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = (), process: ProcessInfo = SINGLE_PROCESS) -> None:
    """Runs steps and all they need, skipping what is done.

    Args:
      config: see `gdrd_jax.config`.
      workdir: made if it is missing.
      wanted: names of steps; `config.until` if there is none.
      process: which of several processes this is that work in one `workdir`. The first does everything; the others
        help with the steps that can be shared, and wait for it at all others.

    Raises:
      GdrdError: a mistake of the user's, found before the work as far as possible.
      Interrupted: a signal arrived; the same call goes on.
    """
    needed = validate(config, workdir, wanted)
    if process.world_size == 1:
        _check_later_steps(config, workdir, needed, process)
    fingerprints: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        if process.rank == 0:
            stack.enter_context(lock_workdir(workdir, config))
            for base in listed_paths(config.base):  # nothing of it may be removed meanwhile
                stack.enter_context(locked(base, shared=True))
            if process.world_size > 1:  # under the lock, by which the others know that this one works
                _check_later_steps(config, workdir, needed, process)
        previous = _next_previous(workdir)
        take_part = partial(_run_step, previous=previous) if process.rank == 0 else _follow_first_process
        for step in STEPS:
            if step.name in needed:
                origin = _origin(step, config, fingerprints)
                fingerprints[step.name] = take_part(step, origin, config, workdir, process)


def validate(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = ()) -> set[str]:
    """Finds a user's mistakes without doing or writing anything; arguments as of `run`.

    Returns:
      Names of all steps that `run` would look at.

    Raises:
      GdrdError: the first mistake.
    """
    needed = _with_ancestors(wanted or (config.until,), config)
    check(config, needed)
    inputs.check(config, needed)
    storable(workdir, ORBAX_FORBIDDEN)
    for base in listed_paths(config.base):
        if not (base / "config.json").exists() and not any((base / step.name / "step.json").exists() for step in STEPS):
            raise GdrdError(f"config.base: {base} is no workdir of a run")
        if base.resolve() == workdir.resolve():
            raise GdrdError(f"config.base: {base} is the workdir itself")
    return needed


def _check_later_steps(config: ConfigDict, workdir: Path, needed: set[str], process: ProcessInfo) -> None:
    """Checks early, in seconds, what later steps need, unless all is done."""
    # With several processes JAX has to join them before it looks for devices.
    if os.environ.get("JAX_PLATFORMS") and needed & USES_JAX and process.world_size == 1:
        if not finished(config, workdir, tuple(needed)):
            check_platform()
    if config.dev.path and "dis" in needed and not finished(config, workdir, ("dis",)):
        pairs = Path(config.dev.pairs) if config.dev.pairs else None
        _import_function("gdrd_jax.evaluation.dev", "open_pairs")(Path(config.dev.path), pairs)


def finished(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = ()) -> bool:
    """Whether everything the config asks for is done in `workdir`, and nothing has changed since."""
    needed, fingerprints = _with_ancestors(wanted or (config.until,), config), {}
    for step in STEPS:
        if step.name in needed:
            if not _is_done(step, _origin(step, config, fingerprints), workdir):
                return False
            fingerprints[step.name] = _read(workdir / step.name / "step.json")["fingerprint"]
    return True


def _origin(step: Step, config: ConfigDict, fingerprints: dict[str, str]) -> dict:
    """What the output of a step is made from."""
    return {
        "format_version": step.format_version,
        "settings": _settings(step, config),
        "files": step.files(config),
        "after": {name: fingerprints[name] for name in _after(step, config)},
    }


def _settings(step: Step, config: ConfigDict) -> dict:
    settings = {name: _plain(value_of(config, name)) for name in step.settings}
    for name, neutral in ADDED.get(step.name, {}).items():
        if value_of(config, name) == neutral:
            section, _, key = name.rpartition(".")
            settings.pop(name, None)
            settings.get(section, {}).pop(key, None)
    if step.name == "discriminative":
        settings["views.count"] = inputs.target_views(config)
    settings.get("student", {}).pop("init", None)  # a file, known by its contents
    return settings


def _same_origin(record: dict, origin: dict) -> bool:
    """Whether a step's record has this origin.

    Versions up to 0.4.0 recorded their own version instead of `format_version`; their outputs are of version 1.
    """
    return "origin" in record and _without_program_version(record["origin"]) == origin


def _without_program_version(origin: dict) -> dict:
    """A recorded origin as this version writes it, with today's names of settings."""
    known = {"format_version": 1} | {key: value for key, value in origin.items() if key != "version"}
    renamed = {f"data.{before}": f"data.{today}" for before, today in RENAMED.items()}
    files = {renamed.get(name, name): fingerprint for name, fingerprint in known["files"].items()}
    return {**known, "settings": with_current_names(known["settings"]), "files": files}


def _with_ancestors(wanted: tuple[str, ...], config: ConfigDict) -> set[str]:
    needed = set(wanted)
    for step in reversed(STEPS):
        if step.name in needed:
            needed.update(_after(step, config))
    return needed


def _run_step(
    step: Step, origin: dict, config: ConfigDict, workdir: Path, process: ProcessInfo, *, previous: Path
) -> str:
    """Runs or skips a step; returns what later steps know it by. What must not be removed is moved to `previous`."""
    folder = workdir / step.name
    if folder.is_symlink() and not _is_done(step, origin, workdir):  # another workdir's, not to be written to
        folder.unlink()
    record = _read(folder / "step.json")
    if not _same_origin(record, origin):
        bases = () if step.publishes else listed_paths(config.base)
        base = next((base for base in bases if _is_done(step, origin, base)), None)
        if not base and step.batched and process.world_size == 1:  # the devices of several processes are not known yet
            _import_function("gdrd_jax.training.trainer", "check_batch")(config[step.name].batch, f"stage {step.name}")
        if record:
            changed = ", ".join(_changed(_without_program_version(record["origin"]), origin))
            LOG.info("%s: out of date, because this changed: %s", step.name, changed)
        _set_aside(step, origin, config, workdir, previous)
        (workdir / "report" / "step.json").unlink(missing_ok=True)  # the report tells of all steps
        for name in step.publishes:
            (workdir / name).unlink(missing_ok=True)
        _remove(folder)
        if base:
            folder.symlink_to((base / step.name).resolve())
            LOG.info("%s: that of %s", step.name, base)
            return _read(folder / "step.json")["fingerprint"]
        folder.mkdir()
        record = {"origin": origin, "complete": False, "seconds": 0.0}
        write_json(folder / "step.json", record)
    elif _is_done(step, origin, workdir):
        LOG.info("%s: done before, skipped", step.name)
        if "version" in record["origin"] and step.name in READ_OTHERWISE:
            LOG.info("  by version %s, which %s", record["origin"]["version"], READ_OTHERWISE[step.name])
        return record["fingerprint"]
    else:
        LOG.info("%s: continued", step.name)
    start = time.monotonic()
    try:
        fingerprint = _run_function(step, config, workdir, process)
        for name in step.publishes:
            os.replace(folder / name, workdir / name)
        record["outputs"] = [f"{step.name}/{path.name}" for path in folder.iterdir()] + list(step.publishes)
        record["fingerprint"] = fingerprint or digest(origin)
        record["complete"] = True
    finally:
        record["seconds"] = round(record["seconds"] + time.monotonic() - start, 1)
        # Where the disk is full the step has told it, and this must not take its place.
        with contextlib.nullcontext() if record["complete"] else contextlib.suppress(OSError):
            write_json(folder / "step.json", record)
    LOG.info("%s: done in %.1f s", step.name, record["seconds"])
    return record["fingerprint"]


def _import_function(module: str, name: str) -> Callable:
    with deferred(f"loading {module}"):
        return getattr(importlib.import_module(module), name)


def _is_done(step: Step, origin: dict, workdir: Path) -> bool:
    record = _read(workdir / step.name / "step.json")
    done = _same_origin(record, origin) and record["complete"]
    return done and all((workdir / path).exists() for path in record["outputs"])


def _next_previous(workdir: Path) -> Path:
    numbers = [int(path.name) for path in (workdir / PREVIOUS).glob("*") if path.name.isdecimal()]
    return workdir / PREVIOUS / str(max(numbers, default=0) + 1)


def _set_aside(step: Step, origin: dict, config: ConfigDict, workdir: Path, previous: Path) -> None:
    """Moves what a changed step trained, what later steps trained from it, and their results, to `previous`.

    It moves before the changed step runs, so that one folder holds what belongs together even if that step is
    interrupted. Whether later steps are affected by the step `faces` is known only when that step is done.
    """
    affected, unchanged = {step.name}, digest(origin)  # of a step that is only made again, for it was lost
    for later in STEPS if step.name != "faces" else ():
        known = _read(workdir / later.name / "step.json").get("origin", {}).get("after", {})
        names = affected & set(_after(later, config))
        if names - ({step.name} if known.get(step.name) == unchanged else set()):
            affected.add(later.name)
    trained = [each.name for each in reversed(STEPS) if each.trains and each.name in affected]
    moved = [name for name in trained if _holds_training(workdir / name)]
    if not moved:
        return
    if "dis" in affected:
        moved = [*(name for name in RESULTS if (workdir / name).exists()), *moved]
    previous.mkdir(parents=True, exist_ok=True)
    for name in moved:
        os.rename(workdir / name, previous / name)
    LOG.info("%s: what was trained before is kept in %s: %s", step.name, previous, ", ".join(moved))


def _holds_training(folder: Path) -> bool:
    """Whether a step's folder has more in it than its record; a link leads to another workdir, which keeps its own."""
    return not folder.is_symlink() and folder.is_dir() and any(path.name != "step.json" for path in folder.iterdir())


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # what it leads to is another workdir's
        folder.unlink()
    elif folder.exists():
        # The record goes first: what is left of an interrupted removal must not pass for output.
        (folder / "step.json").unlink(missing_ok=True)
        shutil.rmtree(folder)


def _run_function(step: Step, config: ConfigDict, workdir: Path, process: ProcessInfo) -> str | None:
    function = _import_function(step.module, step.name)
    return function(config, workdir, process) if step.shared else function(config, workdir)


def _follow_first_process(step: Step, origin: dict, config: ConfigDict, workdir: Path, process: ProcessInfo) -> str:
    """What ranks after the first do of a step: their share of it, or nothing; returns its fingerprint."""

    def wait(for_what: str, enough: Callable[[dict], bool]) -> dict:
        seen, told = time.monotonic(), False
        while not enough(record := _read(workdir / step.name / "step.json")):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            alone = time.monotonic() - seen
            if alone < SECONDS_BEFORE_TOLD:
                continue
            if not told:
                differing = ", ".join(_changed(_without_program_version(record["origin"]), origin)) if record else ""
                LOG.info(
                    "rank %d waits for rank 0 to %s the step %s in %s%s", process.rank, for_what, step.name, workdir,
                    f"; now it differs in {differing}" if differing else "",
                )  # fmt: skip
                told = True
            if is_locked(workdir):
                seen = time.monotonic() - SECONDS_BEFORE_TOLD
            elif alone > SECONDS_BEFORE_GIVEN_UP:
                raise GdrdError(f"rank 0 is not working in {workdir}: it failed, or was never started")
        return record

    record = wait("begin", lambda record: _same_origin(record, origin))
    if step.shared and not record["complete"]:
        _run_function(step, config, workdir, process)
    return wait("finish", lambda record: record.get("complete", False))["fingerprint"]


def _plain(value):
    return json.loads(value.to_json() if isinstance(value, ConfigDict) else json.dumps(value))


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise GdrdError(f"{path} is damaged; move {path.parent} elsewhere and run the same command again") from error


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) < 30 else text[:8] + "..."


def _changed(old: dict, new: dict, prefix: str = "") -> Iterator[str]:
    """What differs between two origins, as `name (old -> new)`."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _changed(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key} ({_brief(a)} -> {_brief(b)})"


@contextlib.contextmanager
def lock_workdir(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Makes `workdir` this config's for the duration, and records the config in it.

    Raises:
      GdrdError: it belongs to another config, holds other things, or is in use.
    """
    if workdir.exists() and not workdir.is_dir():
        raise GdrdError(f"the workdir {workdir} is a file; choose a folder with --workdir=DIR")
    path, ours = workdir / "config.json", (LOCK, "config.json.")
    if workdir.exists() and not is_run(workdir) and any(not e.name.startswith(ours) for e in workdir.iterdir()):
        found = kind_of(workdir)
        what = f"is {found}" if found else "holds files that are not this program's"
        raise GdrdError(f"the workdir {workdir} {what}; choose another with --workdir=DIR")
    with locked(workdir):
        if path.exists() and not config.resume:
            raise GdrdError(
                f"the workdir {workdir} was used before, and config.resume is false; choose another with --workdir=DIR"
            )
        owner = _read(path).get("name", config.name)
        if owner != config.name:
            raise GdrdError(
                f"the workdir {workdir} was made by the config {owner!r}, this one is {config.name!r}; "
                "choose another with --workdir=DIR"
            )
        write_json(path, _plain(config))
        yield
