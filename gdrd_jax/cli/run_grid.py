"""Train every combination of some configs and seeds, and compare them on the dev pairs in one table.

What follows `--` is passed to every run. Braces list alternatives, there and in --configs: two lists, in one word or in
several, give every combination, so --config.views.resolution={8,16,32} after `--` trains all resolutions. Each run has
its own workdir, OUT/NAME-seedN, named by what varies; equal steps are shared, in OUT/steps or in --config.outputs. A
finished run is not repeated; the same command continues what was stopped.

OUT/table.md and table.json have, for each combination, the mean accuracy over seeds with its standard error, AUC, the
difference from --against, paired by dev pair and seed, with its standard error, and at 16x16 the paper's accuracy. The
standard errors cover both other seeds and other people in the pairs. roc.png has the curves of the first seed.
--baseline adds rows of gdrd evaluate on the same pairs, such as the teacher fed with enlarged faces.

Commands with different seeds may run side by side, on different GPUs or cores; one with all seeds then makes the table.

Examples:
  gdrd grid --out runs/ablation --configs 'ablation:{none,sr,gen,dis,gen_dis,plain}' \\
      --seeds 7 8 9 --against gen_dis -- --config.data.path=FACES --config.discriminative.path=ARCFACE.onnx \\
      --config.generative.path=SR --config.dev.path=LFW --config.dev.pairs=pairs.txt
"""

import dataclasses
import itertools
import logging
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.config import Config, of_workdir
from gdrd_jax.evaluation import bootstrap, dev, report, verification
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.pipeline import planning
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path, write_json, write_text
from gdrd_jax.utils.outputs import claim_folder
from gdrd_jax.utils.signals import Interrupted, Signals
from gdrd_jax.utils.tables import markdown_table

LOG = logging.getLogger("gdrd_jax.run_grid")
SECONDS_BETWEEN_LOOKS = 0.2
OUTPUTS = "--config.outputs="
CHECK = """import sys
from gdrd_jax.cli import train
from gdrd_jax.pipeline import planning
sys.exit(train.cli(sys.argv, lambda config, workdir, rank: planning.validate(config, workdir)))"""
DEV = "--config.dev.path="
BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
# LFW at 16x16, trained on 494,414 WebFace faces: figure 3 of arXiv 2409.06371.
PAPER = {"none": 92.61, "sr": 93.30, "gen": 93.87, "dis": 95.25, "gen_dis": 96.13}


def expanded(words: list[str]) -> list[tuple[str, list[str]]]:
    """`(name, words)` of every combination of the alternatives in braces; the name consists of the chosen ones."""
    lists = [BRACES.findall(word) for word in words]
    choices = [choice.split(",") for found in lists for choice in found]
    combinations = []
    for chosen in itertools.product(*choices):
        left = iter(chosen)
        combinations.append(("-".join(map(_short, chosen)), [BRACES.sub(lambda _: next(left), word) for word in words]))
    return combinations


def _short(value: str) -> str:
    return Path(value).name or "none"


def arguments(words: list[str], seed: int, workdir: Path) -> list[str]:
    """Arguments of `gdrd train` for one run, which shares the output of steps with the others of the grid."""
    shared = [] if any(word.startswith(OUTPUTS) for word in words) else [f"{OUTPUTS}{workdir.parent / 'steps'}"]
    return [*words, f"--config.seed={seed}", f"--workdir={workdir}", *shared]


def check(name: str, given: list[str]) -> None:
    """Finds mistakes in a combination's flags, faces and teachers, without training or writing anything.

    Raises:
      GdrdError: there is a mistake, which the command that checked it has printed.
    """
    if subprocess.run([sys.executable, "-c", CHECK, *given]).returncode:
        which = f"combination {name}" if name else "config"
        raise GdrdError(f"the {which} cannot be trained, see above; no run was started", "combination-invalid")


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
    if not planning.finished(_config(workdir), workdir):  # after a SIGTERM from elsewhere a run saves and ends with 0
        raise Interrupted(f"{workdir.name} was stopped", signal.SIGTERM)


def _config(workdir: Path) -> ConfigDict:
    return Config(of_workdir(workdir))


@dataclasses.dataclass(frozen=True)
class Verified:
    """Results on the dev pairs.

    Attributes:
      pairs: the pairs with their scores, in the order of the pairs file.
      faces: the faces of each pair, numbered by first appearance, int `[2, P]`.
      right: whether the LFW protocol decides each pair correctly, bool `[P]`.
      people: the identities of each pair, int `[P, 2]`; None for a row of gdrd evaluate.
      paper: the paper's accuracy, in percent; None if it has none.
    """

    pairs: Pairs
    faces: np.ndarray
    right: np.ndarray
    people: np.ndarray | None = None
    paper: float | None = None

    @classmethod
    def of(cls, found, scores: str, folds: str, **more) -> "Verified":
        """Evaluates scores with the arrays written beside them: those of these names, `same`, `first` and `second`."""
        _require_folds(found[folds])
        pairs = Pairs(found[scores], found["same"])
        _, thresholds = verification.fold_accuracies(pairs, found[folds])
        at = thresholds[np.searchsorted(np.unique(found[folds]), found[folds])]
        faces = _numbered(np.stack([found["first"], found["second"]]))
        return cls(pairs, faces, (pairs.scores >= at) == pairs.same, **more)


def _numbered(faces: np.ndarray) -> np.ndarray:
    """Numbers faces by first appearance, so that rows (of training) and names (of evaluation) can be compared."""
    _, first, inverse = np.unique(faces, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].reshape(faces.shape)


def trained(name: str, workdir: Path) -> Verified:
    """Results of a run of the combination `name`."""
    found = np.load(workdir / "dis" / "dev.npz")
    if "people" not in found:
        raise GdrdError(
            f"{workdir / 'dis' / 'dev.npz'} is of an earlier version, which did not record who is in the dev pairs; to "
            f"train it again, rename {workdir / 'dis'} and run the same command",
            "dev-scores-outdated",
        )
    paper = PAPER.get(name) if _config(workdir).views.resolution == 16 else None
    return Verified.of(found, "scores", "folds", people=found["people"], paper=paper)


def evaluated(folder: Path) -> dict[str, list[Verified]]:
    """The rows of an output of gdrd evaluate."""
    path = folder / "scores.npz"
    if not path.exists():
        raise GdrdError(
            f"--baseline: there is no {path}; give a folder that gdrd evaluate --protocol lfw wrote", "baseline-missing"
        )
    found = np.load(path)
    rows = [key.removesuffix("/scores") for key in found if key.endswith("/scores")]
    return {row: [Verified.of(found, f"{row}/scores", "fold")] for row in rows}


def check_same_pairs(faces: np.ndarray, same: np.ndarray, others: list[Verified]) -> None:
    """Makes sure that others have results on the pairs of these faces, `[2, P]`, and labels, `[P]`.

    Raises:
      GdrdError: they have not, or that cannot be known.
    """
    if not all(np.array_equal(faces, one.faces) and np.array_equal(same, one.pairs.same) for one in others):
        raise GdrdError(
            "--baseline holds other pairs than --config.dev.pairs; evaluate it with the same file", "baseline-pairs"
        )
    baseline = any(one.people is None for one in others)
    if baseline and len(np.unique(faces)) == faces.size:  # as in a .bin, whose faces have no names
        raise GdrdError(
            "--baseline needs LFW's pairs.txt: the faces of a .bin have no names, so two .bin files cannot be compared",
            "baseline-bin",
        )


def check_dev(words: list[str], baseline: dict[str, list[Verified]]) -> None:
    """Opens the dev pairs of a combination's flags, and compares those of --baseline with them, before any training.

    Raises:
      GdrdError: the pairs cannot be used.
    """
    given = {}
    for key in ("path", "pairs"):
        start = f"--config.dev.{key}="
        given[key] = next((user_path(word.removeprefix(start)) for word in words if word.startswith(start)), None)
    found = dev.open_pairs(given["path"], given["pairs"])
    _require_folds(found.folds)
    faces = _numbered(np.stack([found.first, found.second]))
    check_same_pairs(faces, found.same, [one for several in baseline.values() for one in several])


def _require_folds(folds: np.ndarray) -> None:
    if not np.ptp(folds):
        raise GdrdError(
            "the dev pairs have no folds; give LFW with --config.dev.path and --config.dev.pairs", "dev-folds"
        )


def compared(found: dict[str, list[Verified]], against: str | None) -> list[dict]:
    """One row for each combination, from the results of its seeds."""
    results = [one for several in found.values() for one in several]
    check_same_pairs(results[0].faces, results[0].pairs.same, results)
    people = next(one.people for several in found.values() for one in several if one.people is not None)
    decided = {name: np.array([one.right for one in several], float) for name, several in found.items()}  # [S, P]
    rows = []
    for name, several in found.items():
        accuracies = 100 * decided[name].mean(axis=1)
        row = {
            "name": name, "seeds": len(several), "accuracy": accuracies.mean(),
            "standard_error": _error(100 * decided[name], people),
            "lowest": accuracies.min(), "highest": accuracies.max(),
            "auc": 100 * np.mean([verification.auc(one.pairs) for one in several]), "paper": several[0].paper,
        }  # fmt: skip
        if against and name != against:
            difference = 100 * (decided[name] - decided[against])  # of the same seed and pair
            row["difference"], row["its_standard_error"] = difference.mean(), _error(difference, people)
        rows.append({key: float(v) if isinstance(v, np.floating) else v for key, v in row.items()})
    return rows


def _error(found: np.ndarray, people: np.ndarray) -> float | None:
    """Standard error of the mean of `[S, P]`, over seeds and over people."""
    if len(found) < 2:
        return None
    of_seeds = found.mean(axis=1).std(ddof=1) / np.sqrt(len(found))
    return float(np.hypot(of_seeds, bootstrap.error_of_pairs(found.mean(axis=0), people)))


def table(rows: list[dict]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    return markdown_table([names, *([_cell(row.get(name)) for name in names] for row in rows)])


def _cell(value) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def work(argv: list[str]) -> None:
    """Checks everything, then trains all combinations and compares them."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--out", type=user_path, required=True, help="folder for workdirs and table")
    parser.add_argument("--configs", required=True, help="config, see gdrd train, with braces for several")
    parser.add_argument("--seeds", type=int, nargs="+", default=(7, 8, 9), help="seeds (default: 7 8 9)")
    parser.add_argument("--against", metavar="NAME", help="combination to compare the others with")
    parser.add_argument(
        "--baseline", "--beside", type=user_path, metavar="DIR", help="gdrd evaluate's output: more rows"
    )
    parser.add_argument("rest", nargs="*", metavar="-- --config.X=Y", help="flags for every run")
    given = parser.parse_args(argv)
    combinations = expanded([f"--config={given.configs}", *given.rest])
    names = [name for name, _ in combinations]
    if given.against and given.against not in names:
        raise GdrdError(f"--against={given.against} is none of {', '.join(names)}", "flag-value")
    for several, what in ((names, "combinations have the name"), (given.seeds, "seeds are")):
        if twice := [one for one in several if several.count(one) > 1]:
            raise GdrdError(f"two {what} {twice[0]!r}; each run needs a workdir of its own", "run-twice")
    if not any(DEV in word for _, words in combinations for word in words):
        raise GdrdError(
            f"the runs are compared on LFW's pairs; give {DEV}LFW and --config.dev.pairs=pairs.txt after --",
            "dev-missing",
        )
    claim_folder(given.out, "a grid of runs", "--out")
    baseline = evaluated(given.baseline) if given.baseline else {}
    for name, words in combinations:  # a mistake in the last one is found before the first one is trained
        check(name, arguments(words, given.seeds[0], given.out / name))
        check_dev(words, baseline)
    given.out.mkdir(parents=True, exist_ok=True)
    found = {name: [] for name in names}
    for seed in given.seeds:
        for name, words in combinations:
            workdir = given.out / "-".join(filter(None, (name, f"seed{seed}")))
            train(arguments(words, seed, workdir), workdir)
            found[name].append(trained(name, workdir))
        rows = compared(found | baseline, given.against)
        write_json(given.out / "table.json", {"command": ["gdrd", "grid", *argv], "rows": rows})
        write_text(given.out / "table.md", table(rows))
        curves = {name: several[0].pairs for name, several in (found | baseline).items()}
        report.draw_roc(given.out / "roc.png", curves, "dev pairs")
    print(table(rows))


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    return guarded(lambda: work(argv))
