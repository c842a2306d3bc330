"""`gdrd embed, verify, enroll, search, gallery and remove` from a clone that is not installed."""

import sys

from gdrd_jax.cli.recognize import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
