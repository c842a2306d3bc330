"""Measures this program: speed of training, of an accelerator and of galleries, and what hardware allows at most.

gdrd benchmark NAME --help

train        both stages beside the same in PyTorch, and how they scale with data and devices
accelerator  everything worth knowing about a GPU in a given time; then trains students on it
gallery      building, opening and searching a large gallery (from a clone only)
roofline     how fast a training step can be at most, layer by layer, on paper
"""

import argparse
import importlib
import runpy
import sys
from pathlib import Path

from gdrd_jax.cli.common import guarded
from gdrd_jax.utils.errors import GdrdError

NAMES = ("train", "accelerator", "gallery", "roofline")
GALLERY = Path(__file__).parents[2] / "tools" / "benchmark_gallery.py"


def main(argv: list[str]) -> int:
    """Runs the benchmark that `argv` begins with; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES, metavar="NAME")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="of that benchmark, --help among them")
    given = parser.parse_args(argv)
    sys.argv[0] = f"gdrd benchmark {given.name}"  # which argparse shows

    def work() -> None:
        if given.name == "gallery":
            _run_script(GALLERY, given.options)
        else:
            module = importlib.import_module(f"gdrd_jax.benchmarks.{given.name}")
            module.work(module.arguments(given.options))

    return guarded(work, resumes=False)


def _run_script(path: Path, argv: list[str]) -> None:
    if not path.exists():
        raise GdrdError(f"there is no {path}: this benchmark needs a clone of the project", "benchmark-needs-clone")
    sys.argv[1:] = argv
    runpy.run_path(str(path), run_name="__main__")
