"""A student's arguments, as configs and manifests have them; checked without JAX where the student is the paper's.

Arguments are a mapping: `name` of the student, those of `SHARED` that it has, its own `settings`, and the fields of
`models.student.Shape`. Those without `name` are of version 0.4, of the student "gdrd". Manifests also have `module`,
where that registers the student, if it is not of this package.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from gdrd_jax.data.task import of_config as task_of_config
from gdrd_jax.registry import students
from gdrd_jax.utils.errors import GdrdError, did_you_mean

DEFAULT = "gdrd"
TEACHER_FEATURES = "teacher_features"  # the student that is a head on T_g's features
RESOLUTIONS = (8, 16, 24, 32, 48, 64, 112)  # of this package's students, in pixels
CHANNEL_COUNTS = (1, 2, 3, 4)
RGB = 3
# Settings that several students have, and their defaults; each has its place in the section `student` of a config.
SHARED = {"width": 1.0, "hidden": (), "head_stages": 0, "dtype": "float32"}


def of_config(config: ConfigDict) -> dict:
    """The arguments that a config asks for, but `embedding_dim`.

    Raises:
      GdrdError: there is no such student, it lacks a setting, or it does not take the resolution.
    """
    name, own = config.student.name, config.student.settings.to_dict()
    shared = {key: config.student[key] for key in SHARED}
    if name == TEACHER_FEATURES:
        if own:
            raise GdrdError(
                f"config.student.settings is {own}, and {name!r} has none; set it to {{}}", "student-setting"
            )
        name = DEFAULT
    if name != DEFAULT or own:
        if name not in students.names():
            known = students.names()
            raise GdrdError(
                f"config.student.name: there is no student {name!r}; {did_you_mean(name, [*known, TEACHER_FEATURES])}"
                f"it can be {', '.join(known)} (gdrd list students), or {TEACHER_FEATURES}, a head on T_g's features",
                "student-name",
            )
        shared = _those_it_has(name, shared, own)
    task = task_of_config(config)
    arguments = {
        "name": name, **shared, "settings": own, "resolution": config.views.resolution, "channels": task.channels,
        **({} if task.mirror else {"mirror": False}),
    }  # fmt: skip
    check(arguments)
    return arguments


def _those_it_has(name: str, shared: dict, own: dict) -> dict:
    has = fields(name)
    for key, value in shared.items():
        if key not in has and value != SHARED[key]:
            raise GdrdError(
                f"config.student.{key} is {value!r}, and the student {name!r} has no such setting; set it to "
                f"{SHARED[key]!r}",
                "student-setting",
            )
        if key in own:
            raise GdrdError(f"config.student.settings has {key!r}; set config.student.{key} instead", "student-setting")
    return {key: value for key, value in shared.items() if key in has}


def fields(name: str) -> dict[str, dataclasses.Field]:
    """The settings that a student has, shared ones too, by name."""
    return {field.name: field for field in dataclasses.fields(students[name].Config)}


def check(arguments: Mapping) -> None:
    """Refuses arguments of which no student can be made.

    Raises:
      GdrdError: there is no such student, a setting is wrong, or it does not take the resolution or the channels.
    """
    name, resolution, channels = arguments.get("name", DEFAULT), arguments["resolution"], arguments.get("channels", RGB)
    takes, counts = RESOLUTIONS, CHANNEL_COUNTS
    if name != DEFAULT or arguments.get("settings"):  # the students themselves import JAX, which takes seconds
        takes, counts = students[name].resolutions, students[name].channel_counts
        students.settings(name, settings(arguments))
    else:
        try:
            check_shared(**{key: arguments.get(key, SHARED[key]) for key in ("width", "hidden", "dtype")})
        except ValueError as error:
            raise GdrdError(f"the student {name!r}: {error}", "entry-setting") from error
    if resolution not in takes:
        near = sorted(sorted(takes, key=lambda side: abs(side - resolution))[:2])
        raise GdrdError(
            f"config.views.resolution is {resolution}, and the student {name!r} takes {_listed(takes)} pixels; the "
            f"nearest possible is {' or '.join(map(str, near))}",
            "student-resolution",
        )
    if channels not in counts:
        raise GdrdError(
            f"the images have {channels} channels, and the student {name!r} takes {_listed(counts)}", "student-channels"
        )


def check_shared(width: float, hidden: Sequence[int], dtype: str) -> None:
    """Raises ValueError for settings that are out of range, of students that have these."""
    if not width > 0:
        raise ValueError(f"width is {width}; it must be above 0")
    if not all(isinstance(size, int) and size > 0 for size in hidden):
        raise ValueError(f"hidden is {hidden}; each must be a whole number above 0")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; it can be float32 or bfloat16")


def settings(arguments: Mapping) -> dict:
    """All settings that arguments give, shared ones too, as `registry.students.settings` takes them."""
    shape = ("name", "module", "settings", "resolution", "channels", "embedding_dim", "mirror")
    return {**{key: value for key, value in arguments.items() if key not in shape}, **arguments.get("settings", {})}


def for_inference(arguments: Mapping) -> dict:
    """The same student in float32: bfloat16 is slow on CPUs, and exported files compute in float32."""
    return {**arguments, "dtype": "float32"} if "dtype" in arguments else dict(arguments)


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
