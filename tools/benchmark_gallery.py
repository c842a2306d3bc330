"""`gdrd benchmark gallery` from a clone that is not installed."""

import sys

from gdrd_jax.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main(["gallery", *sys.argv[1:]]))
