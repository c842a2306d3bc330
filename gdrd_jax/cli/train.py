"""Train a student as a config describes, and report how well it recognizes held-out people.

  --config=NAME[:MODE]       a config of this package (ablation, accelerator, objects, paper, pretrained, quickstart,
                             stage_dis, stage_gen, zoo), or the path of a config file
  --workdir=DIR              where everything is written (default: runs/ and the config's name)
  --config.SECTION.KEY=VALUE
                             change a setting, see below
  --dry-run                  print which steps would run, which are skipped, and why; write nothing
  --coordinator=HOST:PORT --processes=N --process=I
                             train with several processes: the address of process 0, their number, and which this is;
                             not needed under torchrun or srun

Steps that are done are skipped. The command can be stopped at any time; the same command continues.

Examples:
  gdrd train --config=quickstart
  gdrd train --config=stage_dis --workdir=runs/mine --config.data.path=FACES \\
      --config.discriminative.path=ARCFACE.onnx
"""

import ast
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from gdrd_jax.utils.errors import GdrdError, check_installed, did_you_mean

check_installed()

from absl import flags  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402

from gdrd_jax import config as settings  # noqa: E402
from gdrd_jax.cli.common import EXAMPLES, guarded  # noqa: E402
from gdrd_jax.pipeline import planning, runner  # noqa: E402
from gdrd_jax.utils.files import user_path  # noqa: E402
from gdrd_jax.utils.launch import ProcessInfo, from_environment  # noqa: E402

PACKAGED = Path(__file__).parents[1] / "configs"
# ml_collections takes only settings that a config has already. Losses, and settings of what is chosen by name, may be
# added.
OPEN_SECTION = r"(\w+\.)*(losses\.\w+|sampler|selection|settings)|stages\.\w+\.student"
OPEN = re.compile(rf"--config\.(?P<name>({OPEN_SECTION})\.\w+)=(?P<value>.*)")
CONFIGS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"  # installed, or in a clone
_CONFIG = config_flags.DEFINE_config_file("config", None, "packaged config, or a config file", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written (default: runs/NAME)")
flags.DEFINE_boolean("dry-run", False, "print which steps would run, and why, and stop")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, if several processes train")
_PROCESSES = flags.DEFINE_integer("processes", 1, "number of processes", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "number of this process, from 0", lower_bound=0)


def _shown(value: object) -> str:
    return repr(value.to_dict() if isinstance(value, ConfigDict) else value)


def _literal(text: str) -> object:
    """A number, boolean or tuple, or else the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def config_file(text: str) -> str:
    """The file and its mode that `--config` names: by a path, or as a config that comes with this package."""
    name, colon, mode = text.partition(":")
    if name.startswith("~"):
        name = str(user_path(name))
    elif re.fullmatch(r"\w+", name) and not Path(name).is_file() and name in config_names():
        name = str(CONFIGS / f"{name}.py")
    return f"{name}{colon}{mode}"


def _last_in(files: list[str], frames: list[tuple[str, str]]) -> tuple[str, str] | None:
    """The last `(path, line)` of a traceback that is in one of these config files, given with their modes."""
    paths = {os.path.realpath(file.partition(":")[0]) for file in files}
    return next((frame for frame in reversed(frames) if os.path.realpath(frame[0]) in paths), None)


def config_names() -> list[str]:
    """Names of the configs that come with this package."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def parse_flags(argv: list[str]) -> ConfigDict:
    """The config that a command line asks for.

    Raises:
      GdrdError: the flags, or the config file, are wrong.
    """
    added = {match["name"]: match["value"] for match in map(OPEN.fullmatch, argv) if match}
    argv = [a for a in argv if not OPEN.fullmatch(a)]
    sys.argv[:] = [a for a in sys.argv if not OPEN.fullmatch(a)]  # where ml_collections looks for overrides
    for match in filter(None, (re.fullmatch(r"--config\.((?:\w+\.)*(?:sampler|selection))=(\w*)", a) for a in argv)):
        raise GdrdError(
            f"config.{match[1]} has a name and settings; set --config.{match[1]}.name={match[2]}", "setting-section"
        )
    given = [a.removeprefix("--config.").split("=")[0] for a in argv if a.startswith("--config.")]
    known = settings.default()
    argv = [f"--config={config_file(a.removeprefix('--config='))}" if a.startswith("--config=") else a for a in argv]
    files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    try:
        rest = flags.FLAGS(argv)
        # A config file that could not be loaded raises only when its value is read.
        config = _CONFIG.value and _CONFIG.value.copy_and_resolve_references()
    except flags.Error as error:
        message, _, trace = str(error).partition("Traceback (most recent call last):")
        if trace:  # of a config file that raises
            frames = re.findall(r'File "(.+)", line (\d+)', trace)
            path, line = _last_in(files, frames) or frames[-1]
            raised = trace.strip().splitlines()
            said = next(i for i, text in enumerate(raised) if i and not text.startswith(" "))
            message = f"{path}, line {line}, raises {' '.join(' '.join(raised[said:]).split())}"
            raise GdrdError(message, "config-raises") from error
        wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
        if wrong and wrong[1] in settings.keys(known):
            such = settings.value_of(known, wrong[1])
            raise GdrdError(
                f"--config.{wrong[1]} is {wrong[2]!r}; it must be of the type {type(such).__name__}, such as {such!r}",
                "flag-invalid",
            ) from error
        raise GdrdError(" ".join(message.split()), "flag-invalid") from error
    except OSError as error:
        for text in files:
            if ":" in text and (Path(text).is_file() or Path(text.rpartition(":")[0]).is_file()):
                raise GdrdError(
                    f"the config {text!r} could not be loaded: the first ':' separates the file from its mode, so the "
                    "path must not contain one; rename it, or change to the file's folder first",
                    "config-path-colon",
                ) from error
            if re.fullmatch(r"\w+", text.partition(":")[0]):
                hint = did_you_mean(text.partition(":")[0], config_names())
                message = f"there is no config {text!r}; {hint}give a file, or one of {', '.join(config_names())}"
                raise GdrdError(message, "config-unknown") from error
        last = str(error).splitlines()[-1].strip()
        raise GdrdError(f"the config could not be loaded: {last}", "config-unreadable") from error
    except GdrdError as error:  # of a mode or a setting that is not there, or of another type
        frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
        place = _last_in(files, frames)
        if not place or Path(place[0]).resolve().parent == CONFIGS.resolve():  # whose lines are not the user's
            raise
        raise GdrdError(f"{', line '.join(place)}: {error}", error.code) from error
    except Exception as error:  # a user's config file may raise anything
        unknown = [name for name in given if name not in settings.keys(known)]
        if unknown:
            raise GdrdError(settings.unknown_key(unknown[0], known), "setting-unknown") from error
        place = f"the config {files[-1]!r}" if files else "the config"
        place = f"{error.filename}, line {error.lineno}," if isinstance(error, SyntaxError) else place
        # ml_collections wraps its own message, of several lines, in another exception's repr.
        lines = str(error.args[0] if error.args else error).replace("\\n", "\n").strip("'").splitlines() or [""]
        what = lines[0].split(" Other fields present")[0]
        hint = lines[-1] if lines[-1].startswith("Did you mean") else ""
        raise GdrdError(f"{place} raises {type(error).__name__}: {what} {hint}".strip(), "config-raises") from error
    if config is None:
        raise GdrdError("--config is missing; give --config=quickstart, another name, or a file", "config-missing")
    if len(rest) > 1:
        raise GdrdError(
            f"{rest[1]!r} is not a flag; give settings as --config.NAME=VALUE, and put quotes around braces",
            "argument-unexpected",
        )
    for name, value in added.items():
        settings.set_open(config, name, _literal(value))
    for name in added:
        loss = name.rpartition(".")[0]
        weighted = f"{loss}.weight" in added or settings.value_of(config, loss).get("weight", 1.0)
        if ".losses." in name and not weighted:
            raise GdrdError(
                f"a setting of the loss {loss.rpartition('.')[2]!r} is given, but the loss has no weight; add "
                f"--config.{loss}.weight=1.0",
                "loss-without-weight",
            )
    settings.expand_paths(config)
    return config


def this_process() -> ProcessInfo:
    """Which process the flags, or else the launcher, say this is."""
    if _PROCESSES.value == 1 and not _COORDINATOR.value and not _PROCESS.value:
        return from_environment()
    known = re.fullmatch(r".+:\d+", _COORDINATOR.value) and _PROCESS.value is not None
    if not known or _PROCESS.value >= _PROCESSES.value or _PROCESSES.value == 1:
        raise GdrdError(
            "several processes need --coordinator=HOST:PORT, a free port of the first machine, --processes=N, their "
            "number, and --process=0 to N-1, a different one for each",
            "processes-flags",
        )
    return ProcessInfo(_PROCESS.value, _PROCESSES.value, coordinator=_COORDINATOR.value)


def run_steps(config: ConfigDict, workdir: Path, process: ProcessInfo, wanted: tuple[str, ...] = ()) -> None:
    """Runs steps, see `runner.run`; with `--dry-run` prints what would be done with each."""
    if flags.FLAGS["dry-run"].value:
        for step in planning.plan(config, workdir, wanted):
            print(f"{step.name}: {step.action}, {step.reason}")
    else:
        runner.run(config, workdir, wanted, process)


def cli(
    argv: list[str], work: Callable[[ConfigDict, Path, ProcessInfo], None] = run_steps, about: str = __doc__
) -> int:
    """Runs a command that takes a config.

    Args:
      argv: as `sys.argv`.
      work: `(config, workdir, process)`.
      about: what `--help` says; the part from a line "Examples:" on comes after the settings.

    Returns:
      The exit status, see `cli.common.guarded`.
    """

    def parse_and_work() -> None:
        if {"-h", "--help"} & set(argv):
            known = settings.default()
            lines = [f"  --config.{key}={_shown(settings.value_of(known, key))}" for key in settings.keys(known)]
            above, _, examples = about.partition(EXAMPLES)
            usage = f"usage: {argv[0]} --config=NAME [--workdir=DIR] [--config.SECTION.KEY=VALUE ...]\n"
            intro = "settings and their defaults, which a config may change; docs/configuration.md explains them:"
            print(usage, above, intro, *lines, "", f"examples:\n{examples.rstrip()}", sep="\n")
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
    if status in (1, 2):  # at a normal exit JAX would wait for the other processes, which wait for this one
        os._exit(status)
    return status


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status, or ends the process where it failed."""
    return run(["gdrd train", *argv])
