"""Weights of a student in a safetensors file."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gdrd_jax.models.student import Student
from gdrd_jax.utils.errors import GdrdError, first_line, no_file, require
from gdrd_jax.utils.files import writing

SHOWN = 3  # names in a message


def round_weights(student: Student) -> None:
    """Rounds kernels to float16, in place; vectors, of which there are few, stay as they are."""
    state = nnx.state(student)
    nnx.update(student, jax.tree.map(lambda x: x if x.ndim < 2 else x.astype("float16").astype("float32"), state))


def save_safetensors(student: Student, path: Path, metadata: dict[str, str], *, half: bool = False) -> None:
    """Writes all weights, running statistics too, named like "backbone.blocks.0.conv1.kernel".

    As float32, or with `half` those of two axes and more as float16.

    Raises:
      GdrdError: safetensors is not installed, or the file cannot be written.
    """
    numpy = require("safetensors.numpy", "export")
    arrays = {name: np.asarray(leaf[...], np.float32) for name, (_, leaf) in sorted(_leaves(student).items())}
    if half:
        arrays = {name: array.astype(np.float16) if array.ndim > 1 else array for name, array in arrays.items()}
    with writing(path):
        path.write_bytes(numpy.save(arrays, metadata))


def load_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """`(float32 arrays by name, metadata)` of a safetensors file.

    Raises:
      GdrdError: safetensors is not installed; no such file, or it is damaged.
    """
    safetensors = require("safetensors", "export")
    if not path.is_file():
        raise no_file(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in sorted(file.keys())}
            return arrays, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise GdrdError(
            f"{path} is not a safetensors file of a student, or is damaged ({first_line(error)}); copy it again",
            "weights-unreadable",
        ) from error


def restore(student: Student, arrays: dict[str, np.ndarray]) -> None:
    """Puts the arrays of `load_safetensors` into `student`, which may be one of `abstract_student`.

    Raises:
      GdrdError: they are those of another student; it names the first that do not fit.
    """
    leaves = _leaves(student)
    odd = [f"{name} is missing" for name in leaves if name not in arrays]
    odd += [f"{name} is not expected" for name in arrays if name not in leaves]
    odd += [
        f"{name} is {list(arrays[name].shape)} where {list(leaf.shape)} fits"
        for name, (_, leaf) in leaves.items() if name in arrays and arrays[name].shape != leaf.shape
    ]  # fmt: skip
    if odd:
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        raise GdrdError(f"the weights do not fit this student: {'; '.join(odd[:SHOWN])}{more}", "weights-mismatch")
    new = [(path, leaf.replace(jnp.asarray(arrays[name]))) for name, (path, leaf) in leaves.items()]
    nnx.update(student, nnx.from_flat_state(new))


def adopt(student: Student, initial: Student) -> None:
    """Gives a student the weights of another.

    Where `embedding_dim` differs, weights whose shapes depend on it, as those of the last layer, stay as they are.

    Raises:
      GdrdError: the other is another network, or of another width.
    """
    known = {name: leaf for name, (_, leaf) in _leaves(initial).items()}
    found = _leaves(student)
    odd = [name for name in found if name not in known] + [name for name in known if name not in found]
    ours, theirs = student.shape.embedding_dim, initial.shape.embedding_dim
    odd += [
        name for name, (_, leaf) in found.items()
        if name in known and (
            len(leaf.shape) != len(known[name].shape)
            or any(a != b and a * theirs != b * ours for a, b in zip(leaf.shape, known[name].shape))
        )
    ]  # fmt: skip
    if odd:
        raise GdrdError(f"the weights are of another network than this student's, see {odd[0]}", "weights-mismatch")
    same = [(path, known[name]) for name, (path, leaf) in found.items() if known[name].shape == leaf.shape]
    nnx.update(student, nnx.from_flat_state(same))


def _leaves(student: Student) -> dict[str, tuple[tuple, nnx.Variable]]:
    """Path and variable of every weight, by name."""
    return {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(student))}
