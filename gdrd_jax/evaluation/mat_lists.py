"""Lists of images in .mat files of MATLAB, as TinyFace and QMUL-SurvFace have them."""

import io
from pathlib import PurePosixPath

import numpy as np
import scipy.io

from gdrd_jax.data.faces import Faces
from gdrd_jax.utils.errors import GdrdError


def find(files: Faces, name: str) -> int | None:
    """Row of the file of this name, in any folder; None if there is none."""
    return next((row for row, path in enumerate(files.names) if PurePosixPath(path).name == name), None)


def read_identities(files: Faces, row: int, prefix: str) -> dict[str, int]:
    """Names of images to identities: the cells `PREFIX_set` and the numbers `PREFIX_ids` of a file.

    Raises:
      GdrdError: "mat-list", if the file is something else, names an image twice, or has a negative number.
    """
    lists = _load(files, row)
    try:
        names = [_text(cell) for cell in lists[f"{prefix}_set"].ravel()]
        people = lists[f"{prefix}_ids"].ravel().astype(int)
        if len(names) != len(people) or len(set(names)) < len(names) or (people < 0).any():
            raise ValueError(f"{len(set(names))} different names, {len(people)} identities, the least {people.min()}")
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise GdrdError(
            f"{files.where(row)} is not a list {prefix}_set and {prefix}_ids: {error}", "mat-list"
        ) from error
    return dict(zip(names, people.tolist()))


def read_pairs(files: Faces, row: int, variable: str) -> list[tuple[str, str]]:
    """Names of the two images of each pair: the cells `[P, 2]` of a variable.

    Raises:
      GdrdError: "mat-list", if the file is something else.
    """
    lists = _load(files, row)
    try:
        cells = lists[variable]
        if cells.ndim != 2 or cells.shape[1] != 2 or not len(cells):
            raise ValueError(f"it is {list(cells.shape)}, not [P, 2]")
        return [(_text(first), _text(second)) for first, second in cells]
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise GdrdError(f"{files.where(row)} has no pairs {variable}: {error}", "mat-list") from error


def _load(files: Faces, row: int) -> dict:
    try:
        return scipy.io.loadmat(io.BytesIO(files.read(row)))
    except Exception as error:  # scipy raises whatever its parser met
        raise GdrdError(f"{files.where(row)} is not a .mat file that SciPy reads: {error}", "mat-list") from error


def _text(cell: object) -> str:
    found = np.asarray(cell).ravel()[0]
    if not isinstance(found, str):
        raise ValueError(f"{found!r} is not the name of an image")
    return str(found)
