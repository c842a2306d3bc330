"""What the output of a step was made from, its origin, as `STEP/step.json` records it."""

import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.config import RENAMED, value_of, with_current_names
from gdrd_jax.pipeline.step import Step
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import digest

NAME = "step.json"


def origin_of(step: Step, config: ConfigDict, files: dict[str, str], fingerprints: dict[str, str]) -> dict:
    """What the output of a step is made from.

    Args:
      step: the step.
      config: see `gdrd_jax.config`.
      files: what `step.files` returned.
      fingerprints: step name to the fingerprint of its output, of all steps that `step` reads.

    Returns:
      The format's version, settings, fingerprints of files, and fingerprints of earlier steps, as JSON can hold them.
    """
    return {
        "format_version": step.format_version,
        "settings": _settings(step, config),
        "files": files,
        "after": {name: fingerprints[name] for name in step.after(config)},
    }


def _settings(step: Step, config: ConfigDict) -> dict:
    settings = {name: plain(value_of(config, name)) for name in step.settings}
    step.adjust(config, settings)
    for name, neutral in step.neutral.items():
        if plain(value_of(config, name)) == plain(neutral):
            section, _, key = name.rpartition(".")
            settings.pop(name, None)
            settings.get(section, {}).pop(key, None)
    return settings


def plain(value: object):
    """A setting, or section of settings, as JSON gives it back."""
    return json.loads(value.to_json() if isinstance(value, ConfigDict) else json.dumps(value))


def address(step: str, origin: dict) -> str:
    """Name of the folder for the output of this origin."""
    return f"{step}-{digest(origin)[:12]}"


def recorded_origin(record: dict) -> dict:
    """The origin in a record, as this version writes it.

    Versions up to 0.4.0 recorded their own version instead of `format_version`, and some settings under other names;
    their output has format 1.
    """
    origin = {"format_version": 1} | {key: value for key, value in record["origin"].items() if key != "version"}
    renamed = {f"data.{before}": f"data.{today}" for before, today in RENAMED.items()}
    files = {renamed.get(name, name): fingerprint for name, fingerprint in origin["files"].items()}
    return {**origin, "settings": with_current_names(origin["settings"]), "files": files}


def is_of(record: dict, origin: dict) -> bool:
    """Whether a record, which may be empty, is of output with this origin."""
    return bool(record) and recorded_origin(record) == origin


def read(folder: Path) -> dict:
    """The record in a step's folder; empty if there is none.

    Raises:
      GdrdError: the record is damaged.
    """
    record = read_json(folder / NAME)
    if "origin" not in record:
        return {}
    if not {"settings", "files", "after"} <= record["origin"].keys() or "complete" not in record:
        raise _damaged(folder / NAME)
    return record


def read_json(path: Path) -> dict:
    """The contents of a JSON file; empty if there is none.

    Raises:
      GdrdError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> GdrdError:
    return GdrdError(
        f"{path} is damaged; move {path.parent} elsewhere and run the same command again", "record-damaged"
    )


def is_done(folder: Path, step: str, origin: dict) -> bool:
    """Whether a folder holds the complete output of a step with this origin, with no part of it lost."""
    record = read(folder)
    if not is_of(record, origin) or not record["complete"]:
        return False
    return all((folder / output).exists() for output in output_names(step, record))


def output_names(step: str, record: dict) -> list[str]:
    """Names of outputs in the step's folder; versions up to 0.4.0 recorded paths that begin at the workdir."""
    of_workdir = any(name.startswith(f"{step}/") for name in record["outputs"])
    return [name.removeprefix(f"{step}/") for name in record["outputs"] if not of_workdir or "/" in name]


def changes(old: dict, new: dict, prefix: str = "") -> Iterator[str]:
    """What differs between two origins, as `name (old -> new)`."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from changes(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key} ({_brief(a)} -> {_brief(b)})"


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) < 30 else text[:8] + "..."
