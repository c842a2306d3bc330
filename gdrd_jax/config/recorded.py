"""Settings that a workdir or a student records, also of an earlier version."""

import json
import os
from pathlib import Path

from gdrd_jax.config.defaults import default, stage
from gdrd_jax.config.losses import used_losses
from gdrd_jax.config.names_v04 import BACKBONES, FLAT_LOSSES, FLAT_TEACHER, RANDOM, RENAMED
from gdrd_jax.config.sections import OPEN, PATHS
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import listed_paths


def of_workdir(workdir: Path) -> dict:
    """The config that a workdir was last used with, nested; empty where it is not known.

    Settings that are newer than the workdir have their default values.

    Raises:
      GdrdError: `config.json` is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        return {}
    try:
        recorded = with_current_names(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise GdrdError(
            f"{path} is damaged; move it elsewhere and run gdrd train with the same settings again", "record-damaged"
        ) from error
    found = dict(recorded)
    for key, value in default().to_dict().items():
        if isinstance(value, dict):
            section = recorded.get(key, {})
            found[key] = {**section, **{name: value[name] for name in value if name not in section}}
        else:
            found.setdefault(key, value)
    for name, section in found["stages"].items():
        found["stages"][name] = {**stage().to_dict(), **section}
    return found


def with_current_names(settings: dict) -> dict:
    """Settings that an earlier version wrote, nested, under the names of today."""
    found = {
        # Open sections are newer than the renames: in them `cos` is the name of a plugin's loss.
        RENAMED.get(key, key): with_current_names(value) if isinstance(value, dict) and key not in OPEN else value
        for key, value in settings.items()
    }
    if "timestep" in found.get("generative", {}):
        of_kind = {name: found["generative"].pop(name, before) for name, before in FLAT_TEACHER.items()}
        found["generative"]["settings"] = {n: value for n, value in of_kind.items() if value != FLAT_TEACHER[n]}
    if "cls" in found.get("dis", {}):
        found["dis"]["losses"] = _losses_of_0_4(found["dis"])
    if "backbone" in found.get("dis", {}):
        backbone = found["dis"].pop("backbone")
        # JSON has lists for tuples.
        found["dis"] |= {key: list(v) if key == "freeze" else v for key, v in BACKBONES.get(backbone, RANDOM).items()}
        if backbone == "teacher":
            found.setdefault("student", {})["name"] = "teacher_features"
    return found


def _losses_of_0_4(dis: dict) -> dict[str, dict]:
    """Takes the flat settings of the losses out of a section of version 0.4; returns them as `losses`."""
    losses: dict[str, dict] = {}
    for flat, (loss, setting) in FLAT_LOSSES.items():
        if flat in dis:
            losses.setdefault(loss, {})[setting] = dis.pop(flat)
    return used_losses({name: {"weight": 0.0, **settings} for name, settings in losses.items()})


def without_folders(config: dict) -> dict:
    """A run's settings with file names in place of paths, which are those of the machine that it ran on."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    kept.pop("outputs", None)
    kept.pop("base", None)  # of version 0.4
    for section, key in (name.split(".") for name in PATHS if "." in name):
        given = kept.get(section, {}).get(key)
        if given and os.sep in given:  # not what an earlier export has without folders already
            kept[section][key] = ", ".join(path.name.strip() for path in listed_paths(given))
    if "data" in kept:
        kept["data"].pop("cache", None)
    return kept
