"""What a finished run says of itself in the table of a grid: its settings, its student, and what it cost."""

import platform
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gdrd_jax.config import PATHS, default, keys, stage, value_of
from gdrd_jax.pipeline import records
from gdrd_jax.pipeline.run import Run
from gdrd_jax.pipeline.steps import FIRST, gen, steps

# Settings that do not change what is trained, or how it is judged.
NEUTRAL = ("name", "outputs", "resume", "profile", "until", "seed", "data.residency", "data.cache")
TARGETS = {step.name for step in FIRST} - {gen.STEP.name}  # steps that all methods which need them share


def changed_settings(config: ConfigDict) -> dict[str, Any]:
    """The settings of a config that differ from the defaults, by dotted name; of paths only the last part."""
    known, changed = default(), {}
    for name in keys(config):
        value = records.plain(value_of(config, name))
        usual = stage() if name.startswith("stages.") else known
        of = name.split(".", 2)[2] if name.startswith("stages.") else name
        if name in NEUTRAL or value == records.plain(value_of(usual, of)):
            continue
        changed[name] = ",".join(Path(path).name for path in value.split(",")) if name in PATHS else value
    return changed


def described(workdir: Path) -> dict[str, Any]:
    """What `evaluation.grid_table.Row.about` has of the run in a workdir.

    `steps` has the seconds of each step; `core_seconds` is the sum of those that train, select or embed, without the
    targets of T_d and T_g and without the views.
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
        "machine": f"{platform.machine()}, {platform.system()}", "steps": cost,
    }  # fmt: skip
    if own and None not in own:
        about["core_seconds"] = round(sum(own), 1)
    if (workdir / "dis" / "student").exists():
        import jax  # which takes seconds
        from flax import nnx

        from gdrd_jax.inference.recognizer import Recognizer

        student = Recognizer.load(workdir / "dis" / "student").student
        about["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(student, nnx.Param)))
    return about
