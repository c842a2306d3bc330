"""The command `gdrd`, also `python -m gdrd_jax.cli`."""

import difflib
import importlib
import sys

from gdrd_jax.version import __version__

# Name: module of `gdrd_jax.cli`, and one line for `gdrd --help`.
COMMANDS = {
    "train": ("train", "train a student as a config says; what is done is skipped"),
    "precompute": ("precompute_teacher", "run the teachers over the faces of a training, on any number of machines"),
    "prepare": ("prepare_faces", "check, align and store faces"),
    "evaluate": ("evaluate", "verification and identification on LFW, .bin, TinyFace, UCCS and AR"),
    "export": ("export", "write a student as ONNX, StableHLO or safetensors, with thresholds and a model card"),
    "embed": ("recognize", "embed a folder of faces into an .npz file"),
    "verify": ("recognize", "compare two faces"),
    "enroll": ("recognize", "make or extend a gallery of known people"),
    "search": ("recognize", "search faces in a gallery"),
    "demo": ("demo", "compare and search faces in a browser"),
    "grid": ("run_grid", "train combinations of settings with several seeds and compare them in one table"),
    "pack": ("pack_training_set", "pack a training set into small files for a machine with a GPU"),
    "pack-mixup": ("pack_mixup", "embed mixup images of a packed training set with the teacher"),
    "train-sr-teacher": ("train_sr_teacher", "train an SR diffusion model as generative teacher"),
    "benchmark": ("benchmark", "measure training, an accelerator and galleries"),
    "study-taps": ("study_taps", "compare what the layers of a generative teacher know of identity"),
}
MORE = "gdrd COMMAND --help says more."
RECOGNIZE = "recognize"  # one module for several commands


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the command and its arguments; those of this process by default.

    Returns:
      The exit status, see `cli.common.guarded`.
    """
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command == "--version":
        print(f"gdrd_jax {__version__}")
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; gdrd --help lists all"
        print(f"error: there is no command {command!r}{hint}", file=sys.stderr)
        return 2
    name = COMMANDS[command][0]
    sys.argv[0] = "gdrd" if name == RECOGNIZE else f"gdrd {command}"  # which argparse shows
    module = importlib.import_module(f"gdrd_jax.cli.{name}")
    return module.main(argv if name == RECOGNIZE else rest)


def _help() -> str:
    lines = [f"  {name:18}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(["usage: gdrd COMMAND ...", "", "Face recognition at 8 to 32 pixels.", "", *lines, "", MORE])


if __name__ == "__main__":
    sys.exit(main())
