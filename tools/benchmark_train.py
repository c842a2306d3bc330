"""`gdrd benchmark train` from a clone that is not installed."""

import sys

from gdrd_jax.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
