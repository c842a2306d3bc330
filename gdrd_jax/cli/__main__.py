"""The command `gdrd`, also `python -m gdrd_jax.cli`."""

import importlib
import sys

from gdrd_jax.cli.common import guarded, print_error
from gdrd_jax.registry import load_plugins
from gdrd_jax.utils.errors import GdrdError, did_you_mean
from gdrd_jax.version import __version__

# For each group of `gdrd --help` its commands: name, module of `gdrd_jax.cli`, and one line.
GROUPS = {
    "Train": {
        "prepare": ("prepare_faces", "check, align and store faces"),
        "train": ("train", "train a student as a config describes; an interrupted run continues"),
        "precompute": ("precompute_teacher", "run the teachers of a training ahead of it, on any number of machines"),
        "clean": ("clean", "list and remove output of steps that no workdir uses any more"),
        "grid": ("run_grid", "train combinations of settings with several seeds and compare them"),
    },
    "Evaluate": {
        "evaluate": ("evaluate", "evaluate recognizers on public benchmarks, such as LFW and IJB-C, or your own faces"),
        "check-thresholds": ("check_thresholds", "check whether a student's thresholds hold for other people"),
    },
    "Use": {
        "verify": ("recognize", "compare two faces"),
        "enroll": ("recognize", "create or extend a gallery of known people"),
        "search": ("recognize", "search a gallery for faces, tracks or the people in a video"),
        "gallery": ("recognize", "list the people of a gallery"),
        "remove": ("recognize", "remove people from a gallery"),
        "embed": ("recognize", "write the embeddings of a folder of faces to an .npz file"),
        "demo": ("demo", "compare and search faces in a browser"),
        "serve": ("serve", "serve a student and a gallery over HTTP"),
    },
    "Export": {
        "export": ("export", "write a student as ONNX, StableHLO or safetensors, with thresholds and a model card"),
    },
    "Tools": {
        "benchmark": ("benchmark", "measure training, an accelerator, galleries and a server"),
        "pack": ("pack_training_set", "pack a training set into small files for a machine with a GPU"),
        "pack-mixup": ("pack_mixup", "embed mixup images of a packed training set with the teacher"),
        "train-sr-teacher": ("train_sr_teacher", "train an SR diffusion model as generative teacher"),
        "list": ("list_entries", "list losses, students, teachers, protocols, ..., and their settings"),
        "study-taps": ("study_taps", "compare the layers of generative teachers as sources of identity features"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
FOOTER = """gdrd COMMAND --help explains a command; gdrd --version prints the version.
gdrd --plugin MODULE COMMAND imports a module first that registers losses, students, protocols, ...

examples:
  gdrd verify A.jpg B.jpg           # with the pretrained student gdrd-16
  gdrd train --config=quickstart    # a small training, in minutes"""
RECOGNIZE = "recognize"  # one module for several commands


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the command and its arguments; those of this process by default.

    Returns:
      The exit status, see `cli.common.guarded`.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        while argv[:1] == ["--plugin"]:
            load_plugins(argv[1:2])
            argv = argv[2:]
    except GdrdError as error:
        return print_error(str(error), error.code)
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help"):
        return guarded(lambda: print(_help()))
    if command == "--version":
        return guarded(lambda: print(f"gdrd_jax {__version__}"))
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        return print_error(f"there is no command {command!r}; {hint}gdrd --help lists all commands", "command-unknown")
    name = COMMANDS[command][0]
    sys.argv[0] = "gdrd" if name == RECOGNIZE else f"gdrd {command}"  # argparse shows it in its usage line
    module = importlib.import_module(f"gdrd_jax.cli.{name}")
    return module.main(argv if name == RECOGNIZE else rest)


def _help() -> str:
    lines = ["usage: gdrd COMMAND ...", "", "Face recognition at 8 to 32 pixels."]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:18}{about}" for name, (_, about) in group.items())]
    return "\n".join([*lines, "", FOOTER])


if __name__ == "__main__":
    sys.exit(main())
