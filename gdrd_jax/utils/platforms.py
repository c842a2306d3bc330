"""The devices that `JAX_PLATFORMS` asks for."""

import importlib
import os
import sys

from gdrd_jax.utils.errors import GdrdError, first_line


def platform_problem(error: Exception | None = None) -> str | None:
    """One sentence where JAX cannot use the devices that JAX_PLATFORMS names; None where it can, or was not used.

    Args:
      error: what ended the work, if something did. Once asked, JAX may go on with the devices that it has.
    """
    if "jax" not in sys.modules:
        return None
    if not str(error).startswith("Unable to initialize backend"):
        try:
            sys.modules["jax"].devices()
            return None
        except (RuntimeError, AssertionError) as raised:
            error = raised
    # A jaxlib without CUDA ends in an AssertionError without a text where it is asked for CUDA alone.
    cause = first_line(error).split(" (set JAX_PLATFORMS")[0] if str(error) else "this JAX was installed without it"
    asked = os.environ.get("JAX_PLATFORMS", "")
    return (
        f"JAX cannot use the platform {asked!r} that JAX_PLATFORMS asks for: {cause}; unset JAX_PLATFORMS to use what "
        'this machine has, or install what is missing (python -m pip install "gdrd_jax[cuda]", a driver)'
    )


def check_platform() -> None:
    """Makes JAX use its devices, where JAX_PLATFORMS says which, so that a mistake there is found before long work.

    Raises:
      GdrdError: JAX cannot use them.
    """
    if os.environ.get("JAX_PLATFORMS", "") not in ("", "cpu"):
        importlib.import_module("jax")
        if problem := platform_problem():
            raise GdrdError(problem, "jax-platform")
