"""`gdrd train`: see `gdrd_jax.main`."""

from gdrd_jax.main import run


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status, or ends the process where it failed."""
    return run(["gdrd train", *argv])
