"""`gdrd train-sr-teacher` from a clone that is not installed."""

import sys

from gdrd_jax.cli.train_sr_teacher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
