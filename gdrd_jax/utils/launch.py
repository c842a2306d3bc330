"""Which of several processes this one is, as torchrun and SLURM say it."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from gdrd_jax.utils.errors import GdrdError

# Names of the variables: number of this process, how many there are, its number on this machine.
LAUNCHERS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


class ProcessInfo(NamedTuple):
    """One of several processes that share work.

    Attributes:
      rank: number of the process, from 0.
      world_size: number of processes.
      local_rank: number of the process on its machine, from 0.
      coordinator: HOST:PORT where the first can be met by the others; "" where JAX finds it out itself.
      devices: numbers of the GPUs of this machine that are its own; all it sees if there are none.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    coordinator: str = ""
    devices: tuple[int, ...] = ()


SINGLE_PROCESS = ProcessInfo()


def from_environment(environment: Mapping[str, str] = os.environ) -> ProcessInfo:
    """This process' rank; the only one of one where no launcher has set any.

    torchrun's variables go before SLURM's. SLURM sets its own in an interactive shell, too, where
    SLURM_NTASKS counts what was allocated: only a process that srun started has SLURM_STEP_ID.

    Raises:
      GdrdError: the variables contradict each other.
    """
    for number, world, local in LAUNCHERS:
        if number not in environment or world not in environment:
            continue
        if number.startswith("SLURM") and "SLURM_STEP_ID" not in environment:
            continue
        text = f"{number}={environment[number]!r}, {world}={environment[world]!r}"
        try:
            process = ProcessInfo(int(environment[number]), int(environment[world]), int(environment.get(local, 0)))
            if number == "RANK" and {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
                # torchrun itself listens at its port; the next one is ours.
                process = process._replace(
                    coordinator=f"{environment['MASTER_ADDR']}:{int(environment['MASTER_PORT']) + 1}"
                )
            given = "SLURM_GPUS_PER_TASK" in environment or "," not in environment.get("CUDA_VISIBLE_DEVICES", ",")
            if _beside_others(environment) and not given:
                process = process._replace(devices=(process.local_rank,))
        except ValueError:
            raise GdrdError(f"the environment has {text}; both must be whole numbers", "launcher-not-numbers") from None
        if not 0 <= process.rank < process.world_size:
            raise GdrdError(
                f"the environment has {text}; {number} counts from 0 and must be below {world}", "launcher-rank"
            )
        return process
    return SINGLE_PROCESS


def _beside_others(environment: Mapping[str, str]) -> bool:
    """Whether a machine has several processes."""
    if "LOCAL_WORLD_SIZE" in environment:  # torchrun's
        return int(environment["LOCAL_WORLD_SIZE"]) > 1
    # SLURM's, such as "1(x2)" or "4,3": one machine after the other.
    return any(int(n) > 1 for n in re.findall(r"(\d+)(?:\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")))
