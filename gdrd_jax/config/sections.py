"""Sections of a config, and settings by their dotted names."""

import difflib
from typing import Any

from ml_collections import ConfigDict

from gdrd_jax.config.losses import Losses, set_loss
from gdrd_jax.config.names_v04 import (
    BACKBONES,
    FLAT_LOSSES,
    FLAT_TEACHER,
    RENAMED,
    current_settings,
    warn_of_name,
)
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path

KINDS = {bool: "a boolean", int: "a whole number", float: "a number", str: "text", tuple: "a tuple"}
# Sections whose names are not fixed: those of losses, or settings of an entry that is chosen by name.
OPEN = ("losses", "sampler", "selection", "settings")
PATHS = (
    "outputs", "data.path", "data.unlabeled", "data.packed", "data.detector", "dev.path", "dev.pairs",
    "discriminative.path", "generative.path", "student.init",
)  # fmt: skip


class Config(ConfigDict):
    """A `ConfigDict` that takes the names of earlier versions, too, with a warning."""

    def __getitem__(self, key: str) -> Any:
        if flat := self._flat_loss(key):
            loss, setting = flat
            return super().__getitem__("losses").get(loss, {}).get(setting, 0.0 if setting == "weight" else None)
        if self._of_teacher(key):
            return super().__getitem__("settings").get(key, FLAT_TEACHER[key])
        if key == "backbone":
            return next(before for before, today in BACKBONES.items() if today["freeze"] == self["freeze"])
        return super().__getitem__(RENAMED.get(key, key))

    def __setitem__(self, key: str, value: Any) -> None:
        if flat := self._flat_loss(key):
            warn_of_name(key, ".".join(("losses", *flat)))
            set_loss(self, *flat, value)
        elif self._of_teacher(key):
            warn_of_name(key, f"settings.{key}")
            _set_teacher(self, key, None if value == FLAT_TEACHER[key] else value)
        else:
            for name, each in current_settings(key, value).items():
                self._set(name, each)

    def _set(self, name: str, value: Any) -> None:
        before = super().get(name)
        if value is None and before is not None:
            raise _wrong_type(name, value, before)
        try:
            super().__setitem__(name, _opened(name, value))
        except TypeError as error:
            raise _wrong_type(name, value, before) from error

    def _flat_loss(self, key: str) -> tuple[str, str] | None:
        """The loss and setting that a setting of stage dis of version 0.4 is today."""
        return FLAT_LOSSES.get(RENAMED.get(key, key)) if super().__contains__("losses") else None

    def _of_teacher(self, key: str) -> bool:
        """Whether this is a setting of section `generative` of version 0.4 that is in `settings` today."""
        return key in FLAT_TEACHER and super().__contains__("tap") and not super().__contains__("output")

    def __contains__(self, key: str) -> bool:
        today = "freeze" if key == "backbone" else RENAMED.get(key, key)
        return self._flat_loss(key) is not None or self._of_teacher(key) or super().__contains__(today)

    def get_type(self, key: str) -> type:
        if flat := self._flat_loss(key):
            return str if flat[1] in ("positive", "pairs") else float
        if self._of_teacher(key):
            return type(FLAT_TEACHER[key])
        return str if key == "backbone" else super().get_type(RENAMED.get(key, key))

    def update(self, *other: Any, **more: Any) -> None:
        given = dict(*other, **more)
        # "settings" are replaced as a whole, for their names differ between entries.
        for key in [k for k in given if self._flat_loss(k) or self._of_teacher(k) or k == "settings"]:
            self[key] = given.pop(key)
        today = [current_settings(key, value) for key, value in given.items()]
        super().update({name: each for settings in today for name, each in settings.items()})


def _opened(name: str, value: Any) -> Any:
    """A section whose names are not fixed as one that takes any type: what it is for checks that."""
    if name not in OPEN or not isinstance(value, dict | ConfigDict):
        return value
    given = value.to_dict() if isinstance(value, ConfigDict) else value
    return (Losses if name == "losses" else ConfigDict)(given, type_safe=False)


def _wrong_type(name: str, value: Any, before: Any) -> GdrdError:
    kind = next((words for type_, words in KINDS.items() if isinstance(before, type_)), "a section, a dict of settings")
    example = "" if isinstance(before, ConfigDict) else f", such as {before!r}"
    return GdrdError(f"the setting {name!r} is {value!r}; it must be {kind}{example}", "setting-type")


def _set_teacher(section: ConfigDict, setting: str, value: object) -> None:
    """Changes a setting of the kind of teacher in its section of the config, in place; None takes it away."""
    settings = {**section["settings"].to_dict(), setting: value}
    with section.unlocked():
        section["settings"] = {name: each for name, each in settings.items() if each is not None}


def keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found: list[str] = []
    for key, value in config.items():
        of_stage = key == "student" and prefix  # changes to the section of that name
        section = isinstance(value, ConfigDict) and key not in OPEN and not of_stage
        found += keys(value, f"{prefix}{key}.") if section else [prefix + key]
    return found


def value_of(config: ConfigDict, name: str) -> Any:
    """The setting, or section, of a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def set_open(config: ConfigDict, name: str, value: object) -> None:
    """Changes a setting in a section whose names are not fixed, such as "dis.losses.kd.weight", in place.

    Raises:
      GdrdError: there is no such section.
    """
    section, _, setting = name.rpartition(".")
    try:
        if section.split(".")[-2:-1] == ["losses"]:
            stage, _, loss = section.rpartition(".losses.")
            set_loss(value_of(config, stage), loss, setting, value)
            return
        parent, _, key = section.rpartition(".")
        within = value_of(config, parent) if parent else config
        settings = {**within[key].to_dict(), setting: value}
    except KeyError as error:
        raise GdrdError(unknown_key(name, config), "setting-unknown") from error
    with within.unlocked():
        within[key] = settings


def expand_paths(config: ConfigDict) -> None:
    """Puts the home folder in the place of a `~` at the beginning of a path, in place; the shell leaves it there."""
    names = [name.rpartition(".") for name in PATHS]
    given = [(config[section] if section else config, key) for section, _, key in names]
    students = [stage.get("student") for stage in config.stages.values() if isinstance(stage, ConfigDict)]
    given += [(student, "init") for student in students if student and isinstance(student.get("init"), str)]
    for section, key in given:
        paths = section[key].split(",")
        section[key] = ",".join(str(user_path(path)) if path.startswith("~") else path for path in paths)


def unknown_key(name: str, config: ConfigDict) -> str:
    """One sentence for a setting that does not exist, with the nearest that does."""
    if name == "base":
        return "config.base is gone: give the runs that share output the same folder with --config.outputs=DIR"
    section, _, key = name.rpartition(".")
    if section.startswith("stages."):
        own = [known.removeprefix("dis.") for known in keys(config) if known.startswith("dis.")]
        near = difflib.get_close_matches(key, own, n=1, cutoff=0.0)
        return (
            f"there is no setting --config.{name}: a stage has the settings of config.dis, of which the nearest is "
            f"{near[0]}, and config.stages has only the stages that the config file adds"
        )
    siblings = [known for known in keys(config) if known.rpartition(".")[0] == section]
    near = difflib.get_close_matches(name, siblings or keys(config), n=1, cutoff=0.0)
    return f"there is no setting --config.{name}; the nearest one is --config.{near[0]}"
