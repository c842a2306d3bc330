"""The one exception that means: the user can mend this."""

import importlib

from gdrd_jax.interrupt import deferred


class GdrdError(Exception):
    """A mistake in the input or settings, not in the program.

    The message is one or two sentences: what is wrong, where, and what to do.
    Command lines print it on stderr and exit with 2 instead of a traceback.
    """


def first_line(error: Exception) -> str:
    """What a library's exception says, as part of a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0]


def missing(package: str, extra: str) -> GdrdError:
    """The error for a package that is not installed but comes with `extra`."""
    return GdrdError(
        f"the package {package!r} is not installed; it comes with the extra {extra!r}: "
        f'python -m pip install -e ".[{extra}]"'
    )


def require(package: str, extra: str):
    """Imports `package`, or says which extra of this project brings it.

    Args:
      package: importable name, dotted names allowed.
      extra: the extra of `pyproject.toml` that installs it.

    Returns:
      The imported module.

    Raises:
      GdrdError: the package is not installed.
    """
    try:
        with deferred(f"loading {package}"):
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise missing(error.name or package, extra) from error
