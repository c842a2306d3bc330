"""User-facing errors, reported without a traceback."""

import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from importlib import util

from gdrd_jax.utils.signals import deferred

# What pip calls the packages without which no command works, by the name that is imported. Not grain and faiss: only
# training from disk and galleries need them.
CORE = {
    "absl": "absl-py", "cv2": "opencv-python-headless", "filelock": "filelock", "flax": "flax", "jax": "jax",
    "matplotlib": "matplotlib", "ml_collections": "ml-collections", "numpy": "numpy", "optax": "optax",
    "orbax.checkpoint": "orbax-checkpoint", "PIL": "pillow", "psutil": "psutil", "safetensors": "safetensors",
    "scipy": "scipy", "simplejpeg": "simplejpeg", "sklearn": "scikit-learn", "tensorboardX": "tensorboardx",
    "tensorstore": "tensorstore", "tqdm": "tqdm",
}  # fmt: skip
PIP = {**CORE, "faiss": "faiss-cpu"}


class GdrdError(Exception):
    """A mistake in the input or settings, not in the program.

    Commands print `error: MESSAGE [CODE]` on stderr instead of a traceback, and exit with status 2.

    Attributes:
      code: stable kebab-case name of the kind of mistake, such as "gallery-space". Match the code, not the message,
        whose wording may change.
    """

    def __init__(self, message: str, code: str):
        """Makes the error.

        Args:
          message: one or two sentences: what is wrong, where, and what to do.
          code: see the class.
        """
        super().__init__(message, code)  # both, so that the error can be pickled
        self.code = code

    def __str__(self) -> str:
        return self.args[0]


def first_line(error: Exception) -> str:
    """What a library's exception says, as part of a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'X'? `, as part of a sentence; empty where no known name is near, whatever the case of letters."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f"did you mean {by_lower[near[0]]!r}? " if near else ""


def nothing_at(path: str | os.PathLike, what: str) -> str:
    """The message for a path at which there is nothing; `what` is its beginning."""
    where = "" if os.path.isabs(path) else f" in {os.getcwd()}"
    return f"{what} {str(path)!r}{where}; correct the path"


def no_file(path: str | os.PathLike) -> GdrdError:
    """The error for a path at which there is no file."""
    return GdrdError(nothing_at(path, "there is no file"), "file-missing")


def missing(package: str, extra: str | None) -> GdrdError:
    """The error for a package that is not installed but comes with `extra`, or with the plain installation if None."""
    if extra is None:
        return GdrdError(
            f"the package {package!r} is not installed; python -m pip install {PIP.get(package, package)}",
            "package-missing",
        )
    return GdrdError(
        f"the package {package!r} is not installed; it comes with the extra {extra!r}: "
        f'python -m pip install "gdrd_jax[{extra}]"',
        "package-missing",
    )


def check_installed() -> None:
    """Ends the process with one sentence where packages of the plain installation are missing; imports none of them."""
    absent = [name for package, name in CORE.items() if not _is_installed(package)]
    if absent:
        remedy = f"python -m pip install {' '.join(absent)}"
        print(f"error: not installed: {', '.join(absent)}; {remedy} [package-missing]", file=sys.stderr)
        raise SystemExit(2)


def _is_installed(package: str) -> bool:
    try:
        return util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def require(package: str, extra: str | None = None):
    """Imports `package`, or says which extra of this project brings it.

    Args:
      package: importable name, dotted names allowed.
      extra: the extra of `pyproject.toml` that installs it; None for a package of `CORE`.

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
