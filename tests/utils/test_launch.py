import pytest
from conftest import raises

from gdrd_jax.utils.launch import from_environment


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}, (2, 4, 0)),
        # What salloc leaves in an interactive shell.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, 0)),
        # torchrun started by srun.
        ({"RANK": "5", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, (5, 8, 0)),
        ({"RANK": "5"}, (0, 1, 0)),
    ],
)
def test_what_launchers_say(environment, rank):
    assert from_environment(environment)[:3] == rank


def test_where_processes_meet_and_which_gpus_are_theirs():
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
    assert from_environment(torchrun)[3:] == ("first:29501", ())  # 29500 is torchrun's own
    assert from_environment({**torchrun, "LOCAL_WORLD_SIZE": "4"}).devices == (1,)
    assert from_environment({**torchrun, "LOCAL_WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "1"}).devices == ()
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
    assert from_environment({**slurm, "SLURM_STEP_TASKS_PER_NODE": "1(x4)"})[3:] == ("", ())
    several = {**slurm, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    assert from_environment(several).devices == (1,)
    assert from_environment({**several, "SLURM_GPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}).devices == ()


@pytest.mark.parametrize(
    ("rank", "world", "code"),
    [
        ("2", "2", "launcher-rank"), ("-1", "2", "launcher-rank"), ("a", "2", "launcher-not-numbers"),
        ("0", "", "launcher-not-numbers"),
    ],
)  # fmt: skip
def test_contradictions_are_told(rank, world, code):
    with raises(code, f"RANK={rank!r}", f"WORLD_SIZE={world!r}"):
        from_environment({"RANK": rank, "WORLD_SIZE": world})
