"""`python -m gdrd_jax.main`, the same as `gdrd train`; see `gdrd_jax.cli.train`."""

import sys

from gdrd_jax.cli.train import run

if __name__ == "__main__":
    sys.exit(run(sys.argv))
