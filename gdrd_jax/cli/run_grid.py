"""Train every combination of some configs and seeds, and compare them on the dev pairs in one table.

What follows `--` is passed to every run. Braces list alternatives, there and in --configs: two lists, in one word or in
several, give every combination, so --config.views.resolution={8,16,32} after `--` trains all resolutions; --configs
'zoo:*' trains all modes of a config. Each run has its own workdir, OUT/NAME-seedN, named by what varies, or else by the
config; equal steps are shared, in OUT/steps or in --config.outputs. A finished run is not repeated; the same command
continues what was stopped.

OUT/table.md and table.json have, for each combination, the mean accuracy over seeds with its standard error and its
95 % interval over people, AUC, the difference from --against, paired by dev pair and seed, with its standard error, the
student's parameters, the core minutes of its training, and what the paper reports. The standard errors cover both other
seeds and other people in the pairs. roc.png has the curves of the first seed, cost.png the accuracy over the training
cost. --evaluate judges every student by further protocols of gdrd evaluate, each of which is a column. --baseline adds
rows without training: recognizers as gdrd evaluate takes them, which are fed with enlarged faces, and with
--super-resolve also with super-resolved ones, or what gdrd evaluate wrote of the same pairs.

--rows is a folder of small files, one for each run, from which the table is made, by default OUT/rows. A run that has a
row there is not trained again, so runs of several machines can be collected in one folder; a run of the same name with
other settings is an error. --against may name a row that is there. Without --configs nothing is trained, and the table
of all rows is printed, and with --out written.

The same command may run several times side by side, on different GPUs or cores: each takes the next run that no other
works on, and at the end makes the table of all runs of the command.

Examples:
  gdrd grid --out runs/ablation --configs 'ablation:{none,sr,gen,dis,gen_dis,plain}' \\
      --seeds 7 8 9 --against gen_dis -- --config.data.path=FACES --config.discriminative.path=ARCFACE.onnx \\
      --config.generative.path=SR --config.dev.path=LFW --config.dev.pairs=pairs.txt
  gdrd grid --rows docs/zoo --against cosine    # the table of what was trained before
"""

import argparse
import itertools
import logging
import runpy
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

import jax

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.cli.evaluate import arguments as evaluate_arguments
from gdrd_jax.cli.evaluate import settings_of
from gdrd_jax.cli.train import config_file
from gdrd_jax.config import default
from gdrd_jax.data.degradation import Degradation
from gdrd_jax.evaluation import baselines, dev, grid_rows, grid_table, judges, report
from gdrd_jax.evaluation.grid_rows import DEV, Row
from gdrd_jax.evaluation.judges import Judge
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.inference.embedders import Embedder
from gdrd_jax.pipeline import dev_set, grid
from gdrd_jax.utils.errors import GdrdError, did_you_mean
from gdrd_jax.utils.files import user_path, write_json, write_text
from gdrd_jax.utils.outputs import claim_folder

LOG = logging.getLogger("gdrd_jax.run_grid")
DEV_PATH = "--config.dev.path="


def all_modes(configs: str) -> str:
    """`NAME:*` with the config's `MODES` in braces; other texts, and names of no config, as they are.

    Raises:
      GdrdError: the config has no `MODES`.
    """
    name, _, mode = configs.partition(":")
    if mode != "*":
        return configs
    try:
        found = tuple(runpy.run_path(config_file(name)).get("MODES", ()))
    except Exception:  # the check of the runs says what is wrong with the file
        return configs
    if not found:
        raise GdrdError(
            f"--configs={configs}: {name} has no MODES, a list of its modes; give them in braces, {name}:{{ONE,TWO}}",
            "config-mode",
        )
    return f"{name}:{{{','.join(found)}}}" if len(found) > 1 else f"{name}:{found[0]}"


def check_against(name: str | None, known: Collection[str]) -> None:
    """Makes sure that `--against` is a row's name."""
    if name and name not in known:
        raise GdrdError(
            f"--against={name}: there is no such row; {did_you_mean(name, known)}there are {', '.join(known)}",
            "flag-value",
        )


def open_dev(words: Sequence[str], baseline: dict[str, list[Row]]) -> PairList:
    """Opens the dev pairs of a combination's flags, and compares those of --baseline with them, before any training.

    Raises:
      GdrdError: the pairs cannot be used.
    """

    def given(key: str) -> list[Path]:
        start = f"--config.dev.{key}="
        return [user_path(word.removeprefix(start)) for word in words if word.startswith(start)]

    pairs = dev.open_pairs(given("path")[0], next(iter(given("pairs")), None))
    judges.check_baseline(judges.dev_subject(pairs), [row for rows in baseline.values() for row in rows])
    return pairs


def dev_degradation(settings: dict) -> Degradation:
    """What the faces of the dev pairs go through in a run, whose settings differ from the defaults in these."""
    config = default()
    config.update_from_flattened_dict({key: settings[key] for key in settings if key.startswith(("dev.", "views."))})
    return dev_set.degradation(config)


def write_table(folder: Path, found: dict[str, list[Row]], against: str | None, argv: list[str]) -> str:
    """Writes table.md, table.json and the pictures of some rows; returns the first."""
    lines = grid_table.compared(found, against)
    text = grid_table.table(lines, against)
    write_json(folder / "table.json", {"command": ["gdrd", "grid", *argv], "rows": lines})
    write_text(folder / "table.md", text)
    curves = {name: rows[0].judged[DEV].pairs for name, rows in found.items() if DEV in rows[0].judged}
    if scored := {name: pairs for name, pairs in curves.items() if pairs is not None}:
        report.draw_roc(folder / "roc.png", scored, "dev pairs")
    if picture := grid_table.draw_cost(lines):
        (folder / "cost.png").write_bytes(picture)
    return text


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments.

    Raises:
      GdrdError: they contradict each other.
    """
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--out", type=user_path, help="folder for workdirs and table")
    add("--configs", help="config, see gdrd train, with braces for several, or NAME:* for all modes")
    add("--seeds", type=int, nargs="+", default=(7, 8, 9), help="seeds (default: 7 8 9)")
    add("--against", metavar="NAME", help="row to compare the others with, trained now or stored before")
    add(
        "--baseline", "--beside", nargs="+", default=(), metavar="MODEL",
        help="more rows: recognizers as gdrd evaluate takes them, or its output",
    )  # fmt: skip
    add("--super-resolve", default="", metavar="DIR", help="an SR network in front of --baseline, see gdrd evaluate")
    add("--evaluate", nargs="+", default=(), metavar="OPTIONS", help="options of gdrd evaluate, quoted: more columns")
    add("--rows", type=user_path, metavar="DIR", help="where the rows of runs are kept (default: OUT/rows)")
    add("rest", nargs="*", metavar="-- --config.X=Y", help="flags for every run")
    given = parser.parse_args(argv)
    if given.configs and not given.out:
        parser.error("--configs needs --out, the folder for workdirs and table")
    if not given.configs and not given.rows:
        parser.error("give --configs, what is trained, or --rows, what was trained before")
    given.rows = given.rows or given.out / "rows"
    return given


def opened(texts: Sequence[str]) -> list[Judge]:
    """The judges of `--evaluate`; all data are read."""
    found = []
    for text in texts:
        options = evaluate_arguments([*shlex.split(text), "--out=unused"])
        if options.model:
            raise GdrdError(f"--evaluate={text!r} names a model; the students of the grid are judged", "flag-value")
        found += Judge.open(settings_of(options, ()))
    columns = [judge.column for judge in found]
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise GdrdError(f"--evaluate has two columns {twice[0]!r}", "run-twice")
    return found


def table_of_rows(given: argparse.Namespace, baseline: dict[str, list[Row]], argv: list[str]) -> str:
    """The table of all stored rows, which is written if there is a folder for it."""
    found = grid_rows.read_rows([given.rows]) | baseline
    if not found:
        raise GdrdError(f"there are no rows of a grid in {given.rows}", "rows-none")
    check_against(given.against, found)
    if not given.out:
        return grid_table.table(grid_table.compared(found, given.against), given.against)
    claim_folder(given.out, "a grid of runs", "--out")
    given.out.mkdir(parents=True, exist_ok=True)
    return write_table(given.out, found, given.against, argv)


def table_of_runs(
    given: argparse.Namespace, baseline: dict[str, list[Row]], models: list[Embedder], argv: list[str]
) -> str:
    """Checks everything, then trains all combinations, and writes their table after each seed."""
    combinations = grid.expanded(all_modes(given.configs), given.rest)
    labels = [name for name, _ in combinations]
    before = grid_rows.read_rows([given.rows])
    check_against(given.against, {**dict.fromkeys(labels), **baseline, **before})
    beside = {given.against: before[given.against]} if given.against in before and given.against not in labels else {}
    for several, what in ((labels, "combinations have the name"), (given.seeds, "seeds are")):
        if twice := [one for one in several if several.count(one) > 1]:
            raise GdrdError(f"two {what} {twice[0]!r}; each run needs a workdir of its own", "run-twice")
    if not all(any(DEV_PATH in word for word in words) for _, words in combinations):
        raise GdrdError(
            f"the runs are compared on LFW's pairs; give {DEV_PATH}LFW and --config.dev.pairs=pairs.txt after --",
            "dev-missing",
        )
    claim_folder(given.out, "a grid of runs", "--out")
    claim_folder(given.rows, "the rows of a grid", "--rows")
    # An accelerator is the runs': the first process that uses it takes most of its memory.
    jax.config.update("jax_platforms", "cpu")
    runs = []
    for seed, (name, words) in itertools.product(given.seeds, combinations):
        workdir = given.out / f"{name}-seed{seed}"
        runs.append(grid.Run(name, seed, workdir, grid.arguments(words, seed, workdir)))
    # A mistake in the last combination is found before any training; seeds make no difference.
    settings = dict(zip(labels, grid.checked(runs[: len(labels)])))
    trained_before = sum(grid.stored(run, given.rows, settings[run.name]) is not None for run in runs)
    LOG.info("%d runs, %d of them trained before", len(runs), trained_before)
    flags = {tuple(word for word in words if word.startswith("--config.dev.")) for _, words in combinations}
    hows = tuple(dict.fromkeys(map(dev_degradation, settings.values())))
    baselines.check_sizes(models, hows)
    pairs = [open_dev(words, beside | baseline) for words in flags]
    others = opened(given.evaluate)
    for folder in (given.out, given.rows):
        folder.mkdir(parents=True, exist_ok=True)
    for row in (row for rows in baseline.values() for row in rows):
        row.save(given.rows)
    for model, how in itertools.product(models, hows):
        row = baselines.judged(model, how, pairs[0], others, given.rows)
        baseline[row.name] = [row]
    found: dict[tuple[str, int], Row] = {}
    for run in grid.in_turn(runs, given.out):
        found[run.name, run.seed] = grid.trained(run, given.rows, settings[run.name], others)
        done = [seed for seed in given.seeds if all((label, seed) in found for label in labels)]
        if run.seed in done:
            rows = {label: [found[label, seed] for seed in done] for label in labels}
            text = write_table(given.out, rows | beside | baseline, given.against, argv)
    return text


def work(argv: list[str]) -> None:
    """Trains the runs of a command line, if there are any, and prints the table."""
    given = parse(argv)
    baseline, models = baselines.opened(given.baseline, given.super_resolve)
    if models and not given.configs:
        raise GdrdError(
            f"--baseline: {models[0].name} is judged by the dev pairs of the runs; give --configs, too", "flag-value"
        )
    print(table_of_runs(given, baseline, models, argv) if given.configs else table_of_rows(given, baseline, argv))


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    return guarded(lambda: work(argv))
