"""Registries: named entries of one kind, each with documented settings, that configs choose by name."""

import dataclasses
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from gdrd_jax.utils.errors import GdrdError, did_you_mean, first_line

ENTRY_POINTS = "gdrd_jax.plugins"  # group of entry points by which an installed package adds entries


class Registry:
    """Entries of one kind by name.

    An entry may have a frozen dataclass `Config`, whose fields are its settings.

    Args:
      kind: what an entry is, in the singular, for error messages.
      builtin: module that registers this package's own entries; imported at the first use.
      base: class from which an entry has to be derived, as "MODULE.NAME".
    """

    def __init__(self, kind: str, builtin: str, base: str):
        self.kind = kind
        self._builtin, self._base = builtin, base
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """A decorator that adds a class or function under a name.

        Raises:
          ValueError: the name is taken by another entry.
          TypeError: the entry is not derived from `base`, or its `Config` is no frozen dataclass.
        """

        def add(entry: Any) -> Any:
            bases = [f"{base.__module__}.{base.__qualname__}" for base in getattr(entry, "__mro__", ())]
            if self._base not in bases:
                raise TypeError(f"the {self.kind} {name!r} has to be a class derived from {self._base}")
            config = getattr(entry, "Config", None)
            if config and not getattr(getattr(config, "__dataclass_params__", None), "frozen", False):
                raise TypeError(f"Config of the {self.kind} {name!r} has to be a @dataclass(frozen=True)")
            taken = self._entries.setdefault(name, entry)
            if _place(taken) != _place(entry):
                raise ValueError(f"the {self.kind} {name!r} of {taken.__module__} is registered already")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._load()
        return tuple(sorted(self._entries))

    def __getitem__(self, name: str) -> Any:
        """The entry of a name.

        Raises:
          GdrdError: there is none.
        """
        self._load()
        if name not in self._entries:
            raise GdrdError(
                f"there is no {self.kind} {name!r}; {did_you_mean(name, self._entries)}the known ones are "
                f"{', '.join(self.names())}, and those of modules that config.plugins or gdrd --plugin names",
                "entry-unknown",
            )
        return self._entries[name]

    def name_of(self, entry: Any) -> str:
        """The name under which an entry is registered.

        Raises:
          GdrdError: it is not registered.
        """
        self._load()
        found = [name for name, known in self._entries.items() if _place(known) == _place(entry)]
        if not found:
            raise GdrdError(
                f"the {self.kind} {entry.__module__}.{entry.__qualname__} is not registered; register it by a name",
                "entry-unregistered",
            )
        return found[0]

    def settings(self, name: str, given: Mapping[str, object]) -> Any:
        """The `Config` of an entry with some settings changed.

        Raises:
          GdrdError: there is no such entry or setting, or a value has the wrong type or range.
        """
        config = self[name].Config
        fields = {field.name: field for field in dataclasses.fields(config)}
        given = dict(given)
        for key, value in given.items():
            if key not in fields:
                raise GdrdError(
                    f"the {self.kind} {name!r} has no setting {key!r}; {did_you_mean(key, fields)}it has "
                    f"{', '.join(fields) or 'none'}",
                    "entry-setting",
                )
            default = fields[key].default
            if type(default) is tuple:
                given[key] = value = _as_tuples(value)
            if type(value) is not type(default) and not (type(default) is float and type(value) is int):
                raise GdrdError(
                    f"the setting {key!r} of the {self.kind} {name!r} is {value!r}; it must be of "
                    f"the type {type(default).__name__}, such as {default!r}",
                    "entry-setting",
                )
        try:
            return config(**given)
        except ValueError as error:
            raise GdrdError(f"the {self.kind} {name!r}: {error}", "entry-setting") from error

    def _load(self) -> None:
        importlib.import_module(self._builtin)
        for name in _entry_points(tuple(sys.path)):
            _import(name, f"entry point of the group {ENTRY_POINTS}")


def _as_tuples(value: object) -> Any:
    """Lists, which JSON has for tuples, become tuples at every depth, so that a `Config` can be hashed."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _place(entry: Any) -> tuple[str, str]:
    """What an entry keeps when its module is imported anew."""
    return entry.__module__, entry.__qualname__


def load_plugins(modules: Sequence[str]) -> None:
    """Imports modules that register entries.

    Args:
      modules: names of importable modules, see `config.plugins`.

    Raises:
      GdrdError: one cannot be imported.
    """
    if modules and os.getcwd() not in sys.path:  # as `python -m` has it, and an installed command does not
        sys.path.append(os.getcwd())
    for name in modules:
        _import(name.removesuffix(".py"), "plugin")


def explanations(config: type) -> dict[str, str]:
    """What the docstring of a `Config` says of each setting under "Attributes:"."""
    lines = (inspect.getdoc(config) or "").partition("Attributes:\n")[2]
    parts = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", lines, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in parts}


def _import(name: str, wanted_by: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a user's module raises
        absent = isinstance(error, ModuleNotFoundError) and name.startswith(str(error.name))
        advice = "install it, or put its folder into PYTHONPATH" if absent else "correct the module"
        raise GdrdError(
            f"the {wanted_by} {name!r} cannot be imported: {type(error).__name__}: {first_line(error)}; {advice}",
            "plugin-import",
        ) from error


@functools.cache
def _entry_points(_path: tuple[str, ...]) -> tuple[str, ...]:
    """Modules of installed packages that register entries; all packages are searched, so once for a `sys.path`."""
    return tuple(point.module for point in metadata.entry_points(group=ENTRY_POINTS))


losses = Registry("loss", "gdrd_jax.losses", "gdrd_jax.losses.interface.Loss")
samplers = Registry("sampler", "gdrd_jax.data.samplers", "gdrd_jax.data.samplers.Sampler")
selections = Registry("selection", "gdrd_jax.data.selections", "gdrd_jax.data.selections.Selection")
students = Registry("student", "gdrd_jax.models.students", "gdrd_jax.models.student.Student")
generative_teachers = Registry(
    "generative teacher", "gdrd_jax.teachers.builtin", "gdrd_jax.teachers.interface.GenerativeTeacher"
)
discriminative_teachers = Registry(
    "discriminative teacher", "gdrd_jax.teachers.builtin", "gdrd_jax.teachers.interface.DiscriminativeTeacher"
)
protocols = Registry("protocol", "gdrd_jax.evaluation.protocols", "gdrd_jax.evaluation.interface.ReportedProtocol")
tasks = Registry("task", "gdrd_jax.data.task", "gdrd_jax.data.task.Task")
