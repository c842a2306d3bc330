"""What is kept of a training run (Orbax) and of a trained module."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from gdrd_jax.utils.errors import GdrdError, first_line
from gdrd_jax.utils.files import ORBAX_FORBIDDEN, replacing, storable, writing

SECONDS_BETWEEN_SAVES = 60.0


class Checkpoints:
    """Checkpoints of `(state, record)` by step, the newest two, written in the background.

    Only the process that makes it has to take part, however many there are.

    Args:
      directory: made if it is missing.
    """

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=False, cleanup_tmp_directories=True, multiprocessing_options=_alone()
        )
        self._directory = storable(directory, ORBAX_FORBIDDEN)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._saved = time.monotonic()

    def restore(self, state: Any, record: dict) -> tuple[Any, int, dict]:
        """`(state, steps done, record)` of the newest checkpoint, or `(state, 0, record)` if there is none.

        Args:
          state: a pytree of numpy arrays of the wanted shapes.
          record: what else was saved, of JSON's types.

        Raises:
          GdrdError: the checkpoint is of something else, or damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            return state, 0, record
        args = ocp.args.Composite(state=ocp.args.StandardRestore(state), record=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError, OSError) as error:
            raise GdrdError(
                f"the checkpoint {self._directory / str(step)} cannot be read: {first_line(error)}; remove it to "
                f"continue from the checkpoint before it, or remove {self._directory} to start again",
                "checkpoint-damaged",
            ) from error
        return restored["state"], step, restored["record"]

    def due(self) -> bool:
        """True when the last save is long enough ago."""
        return time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES

    def save(self, step: int, state: Any, record: dict) -> None:
        """Begins to save, once an earlier save is over.

        Raises:
          GdrdError: it, or the one before, cannot be written.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        with writing(self._directory):
            self._manager.wait_until_finished()
            self._manager.save(step, args=args)
        self._saved = time.monotonic()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()


def _alone() -> ocp.options.MultiprocessingOptions:
    """What is saved is the same in every process; the one that saves it does not wait for others."""
    this = jax.process_index()
    # The barriers' names have to differ from those of the other processes.
    return ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"p{this}"
    )


def save_weights(module: nnx.Module, directory: Path, description: dict) -> None:
    """Writes the module's weights and `description.json`, whole or not at all, in the place of older ones.

    Raises:
      GdrdError: `directory` holds something else, or cannot be written.
    """
    directory = storable(directory, ORBAX_FORBIDDEN)
    if directory.exists() and any(directory.iterdir()) and not (directory / "description.json").exists():
        raise GdrdError(
            f"{directory} holds other things than a trained module; choose another folder", "output-not-ours"
        )
    weights = jax.device_get(nnx.to_pure_dict(nnx.state(module)))
    with replacing(directory) as new, writing(directory):
        with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
            checkpointer.save(new / "weights", weights)
        (new / "description.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def load_weights(module: nnx.Module, directory: Path) -> None:
    """Puts the weights that `save_weights` wrote into `module`.

    Raises:
      GdrdError: they are damaged, or of another module.
    """
    directory = storable(directory, ORBAX_FORBIDDEN)
    state = nnx.state(module)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.to_pure_dict(state))
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
        try:
            weights = checkpointer.restore(directory / "weights", abstract)
        except (ValueError, KeyError, OSError) as error:
            raise GdrdError(
                f"the weights in {directory} cannot be read: they are damaged, or from a version that built students "
                "differently; train the student again",
                "weights-unreadable",
            ) from error
    nnx.replace_by_pure_dict(state, weights)
    nnx.update(module, state)
