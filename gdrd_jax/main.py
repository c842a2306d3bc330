"""Trains a student: `python -m gdrd_jax.main --config=configs/X.py [--workdir=DIR] [--dry-run] [--config.a.b=value]`.

`--dry-run` prints which steps would run, which are skipped, and why, and writes nothing.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from gdrd_jax.utils.errors import GdrdError, check_installed

check_installed()

from absl import flags  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402

from gdrd_jax import config as settings  # noqa: E402
from gdrd_jax.cli.common import guarded  # noqa: E402
from gdrd_jax.pipeline import runner  # noqa: E402
from gdrd_jax.utils.files import user_path  # noqa: E402
from gdrd_jax.utils.launch import ProcessInfo, from_environment  # noqa: E402

PACKAGED = Path(__file__).parent / "configs"
CONFIGS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[1] / "configs"  # installed, or in a clone
_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written; runs/NAME by default.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where several processes train together.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many they are.", lower_bound=1)
flags.DEFINE_boolean("dry-run", False, "Print which steps would run, and why, and end.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is.", lower_bound=0)


def _config_file(text: str) -> str:
    """The file, and its mode, that `--config` means: a path, or the name of a config that comes with this package."""
    name, colon, mode = text.partition(":")
    if name.startswith("~"):
        name = str(user_path(name))
    elif re.fullmatch(r"\w+", name) and not Path(name).is_file() and name in config_names():
        name = str(CONFIGS / f"{name}.py")
    return f"{name}{colon}{mode}"


def config_names() -> list[str]:
    """Names of the configs that come with this package."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def parse_flags(argv: list[str]) -> ConfigDict:
    """The config a command line asks for; a mistake in the flags is a `GdrdError` of one sentence."""
    given = [a.removeprefix("--config.").split("=")[0] for a in argv if a.startswith("--config.")]
    known = settings.default()
    argv = [f"--config={_config_file(a.removeprefix('--config='))}" if a.startswith("--config=") else a for a in argv]
    try:
        rest = flags.FLAGS(argv)
        # A config file that could not be loaded says so only when it is touched.
        config = _CONFIG.value and _CONFIG.value.copy_and_resolve_references()
    except flags.Error as error:
        message, _, trace = str(error).partition("Traceback (most recent call last):")
        if trace:  # of a config file that raises
            path, line = re.findall(r'File "(.+)", line (\d+)', trace)[-1]
            raised = trace.strip().splitlines()
            said = next(i for i, text in enumerate(raised) if i and not text.startswith(" "))
            message = f"{path}, line {line}, raises {' '.join(raised[said:])}"
        raise GdrdError(" ".join(message.split())) from error
    except OSError as error:
        for text in (a.removeprefix("--config=") for a in argv if a.startswith("--config=")):
            if re.fullmatch(r"\w+", text.partition(":")[0]):
                names = ", ".join(config_names())
                raise GdrdError(f"there is no config {text!r}; give a file, or one of {names}") from error
            if ":" in text and (Path(text).is_file() or Path(text.rpartition(":")[0]).is_file()):
                raise GdrdError(
                    f"the config {text!r} could not be loaded: the first ':' separates the file from its mode, so a "
                    "path cannot have one; rename it, or go to the file's folder first"
                ) from error
        raise GdrdError(f"the config could not be loaded: {str(error).splitlines()[-1].strip()}") from error
    except Exception as error:  # whatever a user's config file may raise
        unknown = [name for name in given if name not in settings.keys(known)]
        if unknown:
            raise GdrdError(settings.unknown_key(unknown[0], known)) from error
        place = f"{error.filename}, line {error.lineno}," if isinstance(error, SyntaxError) else "the config"
        # ml_collections wraps its own message, of several lines, in another exception's repr.
        lines = str(error.args[0] if error.args else error).replace("\\n", "\n").strip("'").splitlines() or [""]
        what = lines[0].split(" Other fields present")[0]
        hint = lines[-1] if lines[-1].startswith("Did you mean") else ""
        raise GdrdError(f"{place} raises {type(error).__name__}: {what} {hint}".strip()) from error
    if config is None:
        raise GdrdError("no config; give one with --config=quickstart, another name, or a file")
    if len(rest) > 1:
        raise GdrdError(f"{rest[1]!r} is not a flag; settings are given as --config.NAME=VALUE")
    settings.expand_paths(config)
    return config


def this_process() -> ProcessInfo:
    """Which process the flags, or else the launcher, say this is."""
    if _PROCESSES.value == 1 and not _COORDINATOR.value and not _PROCESS.value:
        return from_environment()
    known = re.fullmatch(r".+:\d+", _COORDINATOR.value) and _PROCESS.value is not None
    if not known or _PROCESS.value >= _PROCESSES.value or _PROCESSES.value == 1:
        raise GdrdError(
            "several processes need --coordinator=HOST:PORT, a free port of the first machine, --processes=N, how many "
            "they are, and --process=0 to N-1, another for each"
        )
    return ProcessInfo(_PROCESS.value, _PROCESSES.value, coordinator=_COORDINATOR.value)


def run_steps(config: ConfigDict, workdir: Path, process: ProcessInfo, wanted: tuple[str, ...] = ()) -> None:
    """Runs steps, see `runner.run`; with `--dry-run` prints what would be done with each."""
    if flags.FLAGS["dry-run"].value:
        for step in runner.plan(config, workdir, wanted):
            print(f"{step.name}: {step.action}, {step.reason}")
    else:
        runner.run(config, workdir, wanted, process)


def cli(
    argv: list[str], work: Callable[[ConfigDict, Path, ProcessInfo], None] = run_steps, about: str | None = __doc__
) -> int:
    """Does what a command line asks for.

    Args:
      argv: as `sys.argv`.
      work: `(config, workdir, process)`.
      about: what `--help` begins with.

    Returns:
      The exit status, see `cli.common.guarded`.
    """

    def parse_and_work() -> None:
        if {"-h", "--help"} & set(argv):
            known = settings.default()
            lines = [f"--config.{key}={settings.value_of(known, key)!r}" for key in settings.keys(known)]
            intro = "The files of configs/ start from these; gdrd_jax/config.py says what they mean:"
            print(about, intro, *lines, sep="\n")
            return
        config = parse_flags(argv)
        work(config, user_path(_WORKDIR.value or f"runs/{config.name}"), this_process())

    return guarded(parse_and_work)


def run(argv: list[str]) -> int:
    """Trains as a command line asks for; returns the exit status, or ends the process where it failed."""
    try:
        status = cli(argv)
    except Exception:  # a bug
        traceback.print_exc()
        status = 1
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    if status in (1, 2):  # at a normal end JAX would wait for the other processes, which wait for this one
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv))
