"""Measure the speed of training, of an accelerator, of galleries and of a server, and what hardware allows at most.

  train        both stages beside the same in PyTorch, and how they scale with data and devices
  accelerator  everything worth knowing about a GPU in a given time; then trains students on it
  gallery      building, opening and searching a large gallery
  server       requests a second of gdrd serve, and how long they take
  roofline     how fast a training step can be at most, layer by layer, on paper

`gdrd benchmark NAME --help` explains one of them.

Examples:
  gdrd benchmark gallery --faces 100000
  gdrd benchmark roofline --width 0.5 --batch 96
"""

import argparse
import importlib
import sys

from gdrd_jax.cli.common import ArgumentParser, guarded

NAMES = ("train", "accelerator", "gallery", "server", "roofline")


def main(argv: list[str]) -> int:
    """Runs the benchmark that `argv` begins with; returns the exit status."""

    def work() -> None:
        parser = ArgumentParser(__doc__)
        parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
        parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of that benchmark")
        given = parser.parse_args(argv)
        sys.argv = [f"gdrd benchmark {given.name}", *given.options]  # which argparse, and a benchmark's results, show
        module = importlib.import_module(f"gdrd_jax.benchmarks.{given.name}")
        module.work(module.arguments(given.options))

    return guarded(work, resumes=False)
