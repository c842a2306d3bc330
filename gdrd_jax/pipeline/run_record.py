"""What a finished run says of itself in the table of a grid: its settings, its student, and what it cost."""

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gdrd_jax.config import default, keys, stage, value_of
from gdrd_jax.config.sections import PATHS
from gdrd_jax.pipeline import planning, records
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import FIRST, gen, steps

# Settings that do not change what is trained, or how it is judged; and sections of steps that not every run has.
NEUTRAL = ("name", "outputs", "resume", "profile", "until", "seed", "data.residency", "data.cache")
OF_STEP = {"gen": "gen", "sr": "teacher", "generative": "generative"}
LOGGED = (0.2, 0.4, 0.6, 0.8, 1.0)  # of a stage's steps, after which a row has the figures of its losses
TARGETS = {step.name for step in FIRST} - {gen.STEP.name}  # steps that all methods which need them share


def changed_settings(config: ConfigDict) -> dict[str, Any]:
    """The settings of a config that differ from the defaults and count in its run, by dotted name; of paths only the
    last part, so that runs on several machines can be compared."""
    known, changed, needed = default(), {}, planning.with_ancestors((), config)
    for name in keys(config):
        value = records.plain(value_of(config, name))
        usual = stage() if name.startswith("stages.") else known
        of = name.split(".", 2)[2] if name.startswith("stages.") else name
        idle = OF_STEP.get(name.partition(".")[0], "faces") not in needed
        if name in NEUTRAL or idle or value == records.plain(value_of(usual, of)):
            continue
        changed[name] = ",".join(Path(path).name for path in value.split(",")) if name in PATHS else value
    return changed


def logged(folder: Path) -> dict[str, dict[str, float]]:
    """Losses and figures of a stage in the course of its training: number of steps, as text, to four significant digits
    of each; empty for a step that trains nothing."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    by_step = {line.pop("step"): line for line in lines if "loss" in line}
    first, last = min(by_step, default=0), max(by_step, default=0)
    chosen = [max((step for step in by_step if step <= share * last), default=first) for share in LOGGED]
    return {
        str(step): {name: float(f"{value:.4g}") for name, value in by_step[step].items()}
        for step in chosen
        if step in by_step
    }


def described(workdir: Path) -> dict[str, Any]:
    """What the row of a grid has of the run in a workdir.

    Returns:
      `settings` that differ from the defaults, `resolution`, `parameters` of the student without its classifier, `date`
      and `machine`; `steps`, name to `seconds` and `core_seconds`; `core_seconds`, the sum over the steps that train,
      select or embed, without the targets of T_d and T_g and without the views; and `log`, of each stage what `logged`
      gives.
    """
    run = Run.open(workdir)
    found = {
        step.name: record for step in steps(run.config) if (record := records.read(workdir / step.name)).get("complete")
    }  # fmt: skip
    cost = {
        name: {key: record[key] for key in ("seconds", "core_seconds") if key in record}
        for name, record in found.items()
    }  # fmt: skip
    own = [seconds.get("core_seconds") for name, seconds in cost.items() if name not in TARGETS]
    about = {
        "settings": changed_settings(run.config), "resolution": run.config.views.resolution,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, jax {metadata.version('jax')}", "steps": cost,
    }  # fmt: skip
    if own and None not in own:
        about["core_seconds"] = round(sum(own), 1)
    about["log"] = {name: log for name in found if (log := logged(workdir / name))}
    if (workdir / "dis" / "student").exists():
        from gdrd_jax.inference.recognizer import Recognizer  # which imports JAX, and takes seconds
        from gdrd_jax.models.student import parameters

        about["parameters"] = parameters(Recognizer.load(workdir / "dis" / "student").student)
    return about
