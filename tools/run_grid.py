"""Trains every combination of some configs and seeds and compares them on the dev pairs, in one table.

  python tools/run_grid.py --out runs/ablation --configs 'configs/ablation.py:{none,sr,gen,dis,gen_dis,plain}' \
      --seeds 7 8 9 --against gen_dis -- --config.data.path=FACES --config.discriminative.path=ARCFACE.onnx \
      --config.generative.path=SR --config.dev.path=LFW --config.dev.pairs=pairs.txt

What stands after `--` goes to every run. Braces stand for several: two of them, in one word or in several, are every
combination, so `--config.views.resolution={8,16,32}` after `--` trains all resolutions. Each run has a workdir of its
own, OUT/NAME-seedN, named by what varies; steps that would be the same are taken from the runs before. A run that is
done is not done again; the same command continues what was stopped. OUT/table.md and table.json have, for each
combination, the mean accuracy of the seeds with its standard error, AUC, and the difference from `--against` with the
standard error of the difference, paired by dev pair and seed.
"""

import argparse
import itertools
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from gdrd_jax.command_line import guarded
from gdrd_jax.errors import GdrdError
from gdrd_jax.evaluation import verification
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.files import write_json

LOG = logging.getLogger("gdrd_jax.run_grid")
BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
# LFW at 16x16, trained on 494,414 WebFace faces: figure 3 of arXiv 2409.06371.
PAPER = {"none": 92.61, "sr": 93.30, "gen": 93.87, "dis": 95.25, "gen_dis": 96.13}


def expanded(words: list[str]) -> list[tuple[str, list[str]]]:
    """`(name, words)` of every combination of what stands in braces; the name tells what was chosen."""
    lists = [BRACES.findall(word) for word in words]
    choices = [choice.split(",") for found in lists for choice in found]
    combinations = []
    for chosen in itertools.product(*choices):
        left = iter(chosen)
        combinations.append(("-".join(map(_short, chosen)), [BRACES.sub(lambda _: next(left), word) for word in words]))
    return combinations


def _short(value: str) -> str:
    return Path(value).name or "none"


def train(name: str, words: list[str], seed: int, out: Path, before: list[Path]) -> Path:
    """Runs one combination, unless it is done, with what it shares with runs before; returns its workdir.

    Raises:
      GdrdError: it failed.
    """
    workdir = out / f"{name}-seed{seed}" if name else out / f"seed{seed}"
    command = [sys.executable, "-m", "gdrd_jax.main", *words, f"--config.seed={seed}", f"--workdir={workdir}"]
    command += [f"--config.base={','.join(map(str, before))}"]
    LOG.info("%s", shlex.join(command))
    status = subprocess.run(command, check=False).returncode
    if status:
        raise GdrdError(f"this run ended with {status}; the same command of run_grid.py continues")
    if not (workdir / "dis" / "metrics.json").exists():
        raise KeyboardInterrupt  # SIGTERM ends a run with 0
    return workdir


def right(workdir: Path) -> tuple[np.ndarray, Pairs]:
    """Which dev pairs a run decides rightly by the LFW protocol, bool `[P]`, in the order of folds, and the pairs."""
    found = np.load(workdir / "dis" / "dev.npz")
    pairs, folds = Pairs(found["scores"], found["same"]), found["folds"]
    if not np.ptp(folds):
        raise GdrdError("the dev set has no folds; give LFW with --config.dev.path and --config.dev.pairs")
    _, thresholds = verification.fold_accuracies(pairs, folds)
    at = thresholds[np.searchsorted(np.unique(folds), folds)]
    return (pairs.scores >= at) == pairs.same, pairs


def compared(runs: dict[str, list[Path]], against: str | None) -> list[dict]:
    """One row a combination."""
    found = {name: [right(workdir) for workdir in workdirs] for name, workdirs in runs.items()}
    decided = {name: np.array([mask for mask, _ in several], float) for name, several in found.items()}  # [S, P]
    rows = []
    for name, several in found.items():
        accuracies = 100 * decided[name].mean(axis=1)
        row = {
            "name": name, "seeds": len(several), "accuracy": accuracies.mean(), "standard_error": _error(accuracies),
            "lowest": accuracies.min(), "highest": accuracies.max(),
            "auc": 100 * np.mean([verification.auc(pairs) for _, pairs in several]),
            "paper": PAPER.get(name),
        }  # fmt: skip
        if against and name != against:
            # [S, P]: of the same seed and pair; seeds and pairs are both drawn, so both make the difference uncertain.
            difference = 100 * (decided[name] - decided[against])
            row["difference"] = difference.mean()
            row["its_standard_error"] = float(
                np.hypot(_error(difference.mean(axis=1)), _error(difference.mean(axis=0)))
            )
        rows.append({key: float(v) if isinstance(v, np.floating) else v for key, v in row.items()})
    return rows


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def table(rows: list[dict]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = [names, ["---"] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for workdirs and table")
    parser.add_argument("--configs", required=True, help="a config file, with braces for several")
    parser.add_argument("--seeds", type=int, nargs="+", default=(7, 8, 9))
    parser.add_argument("--against", help="name of the combination that the others are compared with")
    parser.add_argument("rest", nargs="*", metavar="-- --config.X=Y", help="for every run")
    given = parser.parse_args()
    combinations = expanded([f"--config={given.configs}", *given.rest])
    names = [name for name, _ in combinations]
    if given.against and given.against not in names:
        raise GdrdError(f"--against={given.against} is none of {', '.join(names)}")
    given.out.mkdir(parents=True, exist_ok=True)
    runs, before = {name: [] for name in names}, []
    for seed in given.seeds:
        for name, words in combinations:
            before.append(train(name, words, seed, given.out, before))
            runs[name].append(before[-1])
            if all(len(workdirs) == len(runs[names[0]]) for workdirs in runs.values()):
                rows = compared(runs, given.against)
                write_json(given.out / "table.json", {"command": sys.argv, "rows": rows})
                (given.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    sys.exit(guarded(main))
