"""The devices that share a batch: the mesh, means over it, and how several processes find each other.

Inside `jax.shard_map` over `mesh()` each device has its part of the batch; the functions below then speak of the
whole batch. Elsewhere they are the identity, so that losses and layers are written once.
"""

import logging
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdrd_jax.utils.errors import GdrdError, first_line
from gdrd_jax.utils.launch import ProcessInfo

AXIS = "data"
SECONDS_TO_MEET = 300
SECONDS_TO_MISS = 20  # a process that failed or was killed; then the others end, too
LOG = logging.getLogger(__name__)


def start(process: ProcessInfo) -> None:
    """Makes the devices of all processes one mesh; before anything else asks JAX for a device.

    What XLA compiles for GPUs, in half a minute, is kept in ~/.cache/gdrd_jax for the next run, unless
    JAX_COMPILATION_CACHE_DIR says where.

    What several processes compile is not kept: only the first would write it, perhaps where the others cannot see it.

    Where one process fails or is killed later, the others are ended, with JAX's own message, within 20 s.

    Raises:
      GdrdError: the processes do not find each other.
    """
    if process.world_size > 1 and not jax.distributed.is_initialized():
        _join(process)
    # CPUs compile in seconds, and what was compiled for one may not run on another.
    if process.world_size == 1 and jax.default_backend() == "gpu" and not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "gdrd_jax"))


def _join(process: ProcessInfo) -> None:
    LOG.info(
        "process %d of %d waits up to %d s for the others at %s",
        process.rank, process.world_size, SECONDS_TO_MEET, process.coordinator or "SLURM's first",
    )  # fmt: skip
    where = {}
    if process.coordinator:  # JAX knows SLURM's own
        where = {
            "coordinator_address": process.coordinator,
            "num_processes": process.world_size,
            "process_id": process.rank,
        }
    jax.config.update("jax_enable_preemption_service", False)  # its handler would take SIGTERM from ours
    # Python's handlers would have to wait for the end of this.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        jax.distributed.initialize(
            **where,
            # Told None, JAX gives a task of SLURM one GPU, even where it is the only task of a machine.
            local_device_ids=list(process.devices),
            initialization_timeout=SECONDS_TO_MEET,
            heartbeat_timeout_seconds=SECONDS_TO_MISS,
        )
    except (RuntimeError, ValueError) as error:
        raise GdrdError(
            f"process {process.rank} of {process.world_size} did not meet the others at "
            f"{process.coordinator or 'SLURM'}: {first_line(error)}; check that all processes were started and "
            "can reach this address",
            "processes-not-met",
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mesh() -> Mesh:
    """All devices of all processes, along the batch."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def _mapped() -> bool:
    return AXIS in jax.sharding.get_abstract_mesh().manual_axes


def mean(x):
    """Mean over the devices of arrays of the same shape."""
    return jax.lax.pmean(x, AXIS) if _mapped() else x


def total(x):
    """Sum over the devices."""
    return jax.lax.psum(x, AXIS) if _mapped() else x


def mean_where(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean over the devices of the values that count, of two arrays of the same shape; 0 where none does."""
    return total(jnp.sum(jnp.where(counted, values, 0))) / jnp.maximum(total(counted.sum()), 1)


def maximum(x):
    """Largest over the devices; without gradient."""
    return jax.lax.pmax(x, AXIS) if _mapped() else x


def gathered(x: jax.Array) -> jax.Array:
    """`[b, ...]` of each device -> `[B, ...]` of the whole batch, the same on each."""
    return jax.lax.all_gather(x, AXIS, tiled=True) if _mapped() else x


def replicated(x: jax.Array) -> jax.Array:
    """As `gathered`, for updates of a loss's `State`: JAX itself knows that the result is the same on all devices.

    The gradient of `gathered` needs the opposite.
    """
    if not _mapped():
        return x
    whole = jnp.zeros((len(x) * device_count(), *x.shape[1:]), x.dtype)
    return total(jax.lax.dynamic_update_slice_in_dim(whole, x, device_index() * len(x), axis=0))


def may_differ(x: jax.Array) -> bool:
    """Whether an array can have other values on each device, as far as JAX itself knows."""
    kind = getattr(jax.typeof(x), "manual_axis_type", None)  # of jax 0.10 to 0.12
    return bool(kind and kind.varying)


def device_index():
    """Which device this is: int, 0 outside `shard_map`."""
    return jax.lax.axis_index(AXIS) if _mapped() else 0


def device_count() -> int:
    """How many share the batch."""
    return jax.lax.axis_size(AXIS) if _mapped() else 1


def local_shard(whole: jax.Array, size: int) -> jax.Array:
    """The `size` rows of `[B, ...]` that belong to this device's part of the batch."""
    return jax.lax.dynamic_slice_in_dim(whole, device_index() * size, size)


def max_over_processes(value: int) -> int:
    """The largest of all processes' values, to decide alike; every process has to call it."""
    return value if jax.process_count() == 1 else int(_largest(value))


class DelayedMax:
    """The same, of the values of the call before where there are several processes: nothing waits for the devices."""

    def __init__(self):
        self._before = 0

    def __call__(self, value: int) -> int:
        if jax.process_count() == 1:
            return value
        found, self._before = int(self._before), _largest(value)
        return found


def _largest(value: int) -> jax.Array:
    here = np.full(jax.local_device_count(), value, np.int32)
    return jnp.max(jax.make_array_from_process_local_data(NamedSharding(mesh(), PartitionSpec(AXIS)), here))


def broadcast_from_first(tree):
    """The arrays of process 0, on every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)
