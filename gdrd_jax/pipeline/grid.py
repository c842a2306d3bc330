"""The runs of a grid: every combination of settings and seeds, each trained by a command of its own."""

import dataclasses
import itertools
import json
import logging
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gdrd_jax.config import Config, of_workdir
from gdrd_jax.data.loader import available_cores
from gdrd_jax.evaluation import judges
from gdrd_jax.evaluation.grid_rows import DEV, Row
from gdrd_jax.evaluation.judges import Judge
from gdrd_jax.inference.embedders import student_embedder
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.pipeline import planning, run_record
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import LOCKS, locked_if_free
from gdrd_jax.utils.signals import Interrupted, Signals, check_signals

LOG = logging.getLogger("gdrd_jax.run_grid")
SECONDS_BETWEEN_LOOKS = 0.2
OUTPUTS = "--config.outputs="
CHECK = """import json, sys
from gdrd_jax.cli import train
from gdrd_jax.pipeline import planning, run_record
def check(config, workdir, rank):
    planning.validate(config, workdir)
    print(json.dumps(run_record.changed_settings(config)))
sys.exit(train.cli(sys.argv, check))"""
BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def expanded(config: str, flags: Sequence[str]) -> list[tuple[str, list[str]]]:
    """`(name, words)` of every combination of the alternatives in braces.

    Args:
      config: as in `--config=`.
      flags: further words.

    Returns:
      The name consists of the chosen alternatives; without any it is that of the config. The words are the flags of
      `gdrd train`.
    """
    names = [_config_name, *[_short] * len(flags)]
    words = [f"--config={config}", *flags]
    lists = [(name, choice.split(",")) for name, word in zip(names, words) for choice in BRACES.findall(word)]
    combinations = []
    for chosen in itertools.product(*(choices for _, choices in lists)):
        left, named = iter(chosen), [name(choice) for (name, _), choice in zip(lists, chosen)]
        found = [BRACES.sub(lambda _: next(left), word) for word in words]
        combinations.append(("-".join(named) or _config_name(config), found))
    return combinations


def _config_name(text: str) -> str:
    """A config's mode, or the name of its file; also of one alternative of either."""
    file, _, mode = text.partition(":")
    return _short(mode or file.removesuffix(".py"))


def _short(value: str) -> str:
    return Path(value).name or "none"


def arguments(words: list[str], seed: int, workdir: Path) -> list[str]:
    """Arguments of `gdrd train` for one run, which shares the output of steps with the others of the grid."""
    shared = [] if any(word.startswith(OUTPUTS) for word in words) else [f"{OUTPUTS}{workdir.parent / 'steps'}"]
    return [*words, f"--config.seed={seed}", f"--workdir={workdir}", *shared]


def check(name: str, given: list[str]) -> dict:
    """Finds mistakes in a combination's flags, faces and teachers, without training or writing anything.

    Returns:
      The settings that differ from the defaults.

    Raises:
      GdrdError: there is a mistake, which the command that checked it has printed.
    """
    done = subprocess.run([sys.executable, "-c", CHECK, *given], stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise GdrdError(
            f"the combination {name} cannot be trained, see above; no run was started", "combination-invalid"
        )
    return json.loads(done.stdout.splitlines()[-1])


def train(given: list[str], workdir: Path) -> None:
    """Runs one combination, unless it is done.

    Raises:
      GdrdError: it failed.
      Interrupted: a signal arrived, here or there.
    """
    command = [sys.executable, "-m", "gdrd_jax.cli", "train", *given]
    LOG.info("%s", shlex.join(command))
    with Signals() as signals:
        # In a session of its own, the run gets signals only from here, once.
        with subprocess.Popen(command, start_new_session=True) as process:
            while process.poll() is None:
                if signals.received:
                    process.send_signal(signal.SIGTERM)
                    process.wait()
                time.sleep(SECONDS_BETWEEN_LOOKS)
    if signals.received:
        raise Interrupted(f"{workdir.name} saved", signals.received)
    if process.returncode:
        raise GdrdError(
            f"the run in {workdir} ended with status {process.returncode}, see above; the same command continues",
            "run-failed",
        )
    # After a SIGTERM from elsewhere, a run saves its state and ends with status 0.
    if not planning.finished(Config(of_workdir(workdir)), workdir):
        raise Interrupted(f"{workdir.name} was stopped", signal.SIGTERM)


def judged_too(row: Row, workdir: Path, others: Sequence[Judge]) -> Row:
    """The row with the columns of further protocols, as far as its student is there."""
    folder = workdir / "dis" / "student"
    if not folder.exists() or all(judge.column in row.judged for judge in others):
        return row
    embedder = student_embedder(row.name, Recognizer.load(folder))
    fitting = [judge for judge in others if judge.fits(embedder.input_size)]
    return dataclasses.replace(row, judged=judges.columns(embedder, fitting, row.judged))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the grid: `name` and `seed` of its row, its workdir, and the `arguments` of its command."""

    name: str
    seed: int
    workdir: Path
    arguments: list[str]


def checked(runs: Sequence[Run]) -> list[dict]:
    """`check` of every run. Each is a process that takes seconds; as many run at once as there are cores."""
    with ThreadPoolExecutor(available_cores()) as pool:
        settings = pool.map(lambda run: check(run.name, run.arguments), runs)
        return list(tqdm(settings, "checking the runs", len(runs), unit="run", disable=len(runs) == 1))


def in_turn(runs: Sequence[Run], out: Path) -> Iterator[Run]:
    """Yields runs, first those that no other command works on, and locks each one while it is worked on.

    So the same command can run several times side by side, and each takes the next run that is left.

    Args:
      runs: the runs of a grid.
      out: the folder of the grid, where the locks are.
    """
    left, waits = list(runs), False
    while left:
        for run in left:
            with locked_if_free(out / LOCKS / run.workdir.name) as free:
                if free:
                    left.remove(run)
                    yield run
                    break
        else:
            if not waits:
                LOG.info("waiting for runs that other commands work on: %s", ", ".join(r.workdir.name for r in left))
            waits = True
            check_signals()
            time.sleep(SECONDS_BETWEEN_LOOKS)


def stored(run: Run, folder: Path, settings: dict) -> Row | None:
    """The row of a run that was trained before, here or elsewhere; None if there is none.

    Args:
      run: the run.
      folder: of the rows.
      settings: of the run, those that differ from the defaults.

    Raises:
      GdrdError: the row that is there is of other settings.
    """
    path = folder / Row(run.name, run.seed, {}).file
    if not path.exists():
        return None
    row = Row.load(path)
    known = row.about.get("settings", {})
    if differing := sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key)):
        raise GdrdError(
            f"{path} is of a run with other settings ({', '.join(differing)}), and rows of one table are compared; "
            "give other folders with --out and --rows, or move the file away to train it again",
            "row-settings",
        )
    return row


def trained(run: Run, folder: Path, settings: dict, others: Sequence[Judge]) -> Row:
    """The row of a run, which is trained unless it was before, here or elsewhere.

    Args:
      run: the run.
      folder: of the rows.
      settings: of the run, those that differ from the defaults.
      others: further protocols.

    Raises:
      GdrdError: the row that is there is of other settings, or the run failed.
      Interrupted: a signal arrived.
    """
    before, workdir = stored(run, folder, settings), run.workdir
    if before and not workdir.exists():
        LOG.info("%s: trained before, %s", run.name, folder / before.file)
        return before
    train(run.arguments, workdir)
    judged = {DEV: judges.of_training(workdir / "dis")}
    if before and np.array_equal(before.judged[DEV].right, judged[DEV].right):  # of the same student, not a later one
        judged = {**before.judged, **judged}
    row = judged_too(Row(run.name, run.seed, judged, run_record.described(workdir)), workdir, others)
    row.save(folder)
    return row
