"""Which steps a command needs, what the output of each is made from, and what is done already."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.config import check
from gdrd_jax.pipeline import initial_student, inputs, records
from gdrd_jax.pipeline.step import Step
from gdrd_jax.pipeline.steps import steps
from gdrd_jax.pipeline.workdir import RESULTS, check_workdir, is_link
from gdrd_jax.registry import load_plugins
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import ORBAX_FORBIDDEN, digest, storable
from gdrd_jax.utils.outputs import is_step_output

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedStep:
    """What a command would do with one step.

    Attributes:
      name: name of the step.
      action: "skip", "continue" or "run".
      reason: why, in a few words.
    """

    name: str
    action: str
    reason: str


@dataclass(frozen=True)
class StepState:
    """A step of a command, and its output.

    Attributes:
      step: the step.
      origin: what the output is made from, see `records.origin_of`.
      folder: of the output.
      workdir: of the command.
    """

    step: Step
    origin: dict
    folder: Path
    workdir: Path

    def existing_folder(self) -> Path:
        """`folder`, or `WORKDIR/STEP` where version 0.4 wrote the output there."""
        before = self.workdir / self.step.name
        if self.folder.exists() or is_link(before) or not records.is_of(records.read(before), self.origin):
            return self.folder
        return before

    def record(self) -> dict:
        """The record of the output; empty where there is none."""
        return records.read(self.existing_folder())

    def is_done(self) -> bool:
        """Whether the output is complete."""
        return records.is_done(self.existing_folder(), self.step.name, self.origin)

    def changes(self) -> str:
        """What differs from the output that the workdir's link leads to; empty where there is none."""
        before = records.read(self.workdir / self.step.name)
        changed = ", ".join(records.changes(records.recorded_origin(before), self.origin)) if before else ""
        return f"changed: {changed}" if changed else ""


@dataclass
class Walk:
    """Follows the steps that a command needs in order, and finds the origin of each; nothing is written.

    Attributes:
      config: see `gdrd_jax.config`.
      workdir: of the command.
      needed: names of the steps.
      fingerprints: step name to the fingerprint of its output, of the steps that were passed.
    """

    config: ConfigDict
    workdir: Path
    needed: set[str]
    fingerprints: dict[str, str] = field(default_factory=dict)
    _files: dict[str, dict[str, str]] = field(default_factory=dict)

    def state(self, step: Step) -> StepState:
        """A step whose earlier steps were all passed. Files are fingerprinted once, which can take minutes."""
        if step.name not in self._files:
            self._files[step.name] = step.files(self.config)
        origin = records.origin_of(step, self.config, self._files[step.name], self.fingerprints)
        return StepState(step, origin, place(step, origin, self.config, self.workdir), self.workdir)

    def look_ahead(self) -> list[StepState]:
        """All steps as they are before the command. Output that is missing is taken for what it was made to be."""
        self.fingerprints, states = {}, []
        for step in steps(self.config):
            if step.name in self.needed:
                states.append(state := self.state(step))
                record = state.record()
                # Only the step `faces` has a fingerprint that is not known before it runs; earlier faces stand for it.
                earlier = records.read(self.workdir / step.name) if step.name == "faces" and not record else record
                self.fingerprints[step.name] = earlier.get("fingerprint") or digest(state.origin)
        return states

    def restart(self) -> None:
        """Forgets the fingerprints of output, but not those of files."""
        self.fingerprints = {}


def with_ancestors(wanted: tuple[str, ...], config: ConfigDict) -> set[str]:
    """Names of these steps (`config.until` if there is none) and of all that they depend on."""
    needed = set(wanted or (config.until,))
    for step in reversed(steps(config)):
        if step.name in needed:
            needed.update(step.after(config))
    return needed


def outputs(config: ConfigDict, workdir: Path) -> Path:
    """The folder of all outputs of steps."""
    return Path(config.outputs) if config.outputs else workdir / "steps"


def place(step: Step, origin: dict, config: ConfigDict, workdir: Path) -> Path:
    """The folder of a step's output. Results name the run, so they are not shared with others."""
    folder = workdir / "steps" if step.publishes else outputs(config, workdir)
    return folder / records.address(step.name, origin)


def validate(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = ()) -> set[str]:
    """Finds a user's mistakes without doing or writing anything; arguments as of `runner.run`.

    Returns:
      Names of all steps that `runner.run` would look at.

    Raises:
      GdrdError: the first mistake.
    """
    load_plugins(config.plugins)
    needed = with_ancestors(wanted, config)
    check(config, needed)
    inputs.check(config, needed)
    for step in steps(config):
        if step.name in needed:
            step.check(config)
    for folder in (workdir, outputs(config, workdir)):
        storable(folder, ORBAX_FORBIDDEN)
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


def warn(config: ConfigDict, undone: set[str]) -> None:
    """Logs what is allowed and most likely a mistake, of steps that are not done."""
    if "dis" in undone and (remark := initial_student.other_teacher(config)):
        LOG.warning(remark)


def plan(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = ()) -> list[PlannedStep]:
    """What `runner.run` would do, without doing or writing anything; arguments and errors as of `runner.run`."""
    walk, found, uncertain = Walk(config, workdir, validate(config, workdir, wanted)), [], set()
    check_workdir(workdir, config)
    for state in walk.look_ahead():
        name, record, waits = state.step.name, state.record(), sorted(uncertain & set(state.step.after(config)))
        if state.is_done():
            action, reason = "skip", f"done, in {state.existing_folder()}"
            if waits:
                reason += f", if {' and '.join(waits)} gives the same output"
        elif record:
            action, reason = "continue", f"not finished, in {state.existing_folder()}"
        else:
            action, reason = "run", state.changes() or "no output of these settings yet"
        if action != "skip" and name == "faces" or waits:
            uncertain.add(name)
        found.append(PlannedStep(name, action, reason))
    warn(config, {step.name for step in found if step.action != "skip"})
    return found


def finished(config: ConfigDict, workdir: Path, wanted: tuple[str, ...] = ()) -> bool:
    """Whether everything the config asks for is done in `workdir`, and nothing has changed since."""
    load_plugins(config.plugins)
    needed = with_ancestors(wanted, config)
    states = list(Walk(config, workdir, needed).look_ahead())
    if not all(state.is_done() for state in states):
        return False
    made = [name for name in RESULTS if (states[-1].folder / name).exists()]  # some reports have no ROC
    return all((workdir / name).exists() for name in made) if "report" in needed else True
