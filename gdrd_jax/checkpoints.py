"""What is kept of a training run (Orbax) and of a trained module."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from gdrd_jax.errors import GdrdError

SECONDS_BETWEEN_SAVES = 60.0


class Checkpoints:
    """Checkpoints of `(state, metrics)` by step, the newest two, written in the background.

    Args:
      directory: made if it is missing.
    """

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        self._saved = time.monotonic()

    def restore(self, state: Any) -> tuple[Any, int, dict[str, float]]:
        """`(state, steps done, metrics)` of the newest checkpoint, or `(state, 0, {})` if there is none.

        Args:
          state: a pytree of arrays with the wanted shapes and shardings.
        """
        step = self._manager.latest_step()
        if step is None:
            return state, 0, {}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), metrics=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], step, restored["metrics"]

    def due(self) -> bool:
        """True when the last save is long enough ago."""
        return time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Begins to save; the arrays are copied before it returns."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), metrics=ocp.args.JsonSave(metrics))
        self._manager.save(step, args=args)
        self._saved = time.monotonic()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def save_weights(module: nnx.Module, directory: Path, description: dict) -> None:
    """Replaces `directory` by the module's weights and `description.json`."""
    shutil.rmtree(directory, ignore_errors=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((directory / "weights").absolute(), nnx.to_pure_dict(nnx.state(module)))
    (directory / "description.json").write_text(json.dumps(description, indent=1))


def load_description(directory: Path) -> dict:
    """What `save_weights` was given to describe the module.

    Raises:
      GdrdError: `directory` holds no saved module.
    """
    try:
        return json.loads((directory / "description.json").read_text())
    except (OSError, ValueError) as error:
        raise GdrdError(f"{directory} holds no trained weights; give the workdir of a finished run") from error


def load_weights(module: nnx.Module, directory: Path) -> None:
    """Puts the weights that `save_weights` wrote into `module`."""
    state = nnx.state(module)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.to_pure_dict(state))
    with ocp.StandardCheckpointer() as checkpointer:
        weights = checkpointer.restore((directory / "weights").absolute(), abstract)
    nnx.replace_by_pure_dict(state, weights)
    nnx.update(module, state)
