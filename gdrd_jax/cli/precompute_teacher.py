"""Run the teachers of a training over its faces, into the stores of a workdir, without training a student.

Takes the flags of gdrd train, which then finds this work done, and

  --teacher=generative     run one teacher only; or discriminative
  --verify                 then read all stores, and compute some rows again to compare them

Several processes (RANK and WORLD_SIZE, or SLURM's variables) fill the same stores; if one is killed, the others do its
share. The faces need no identities here: with fewer than 22 people add --config.data.test_people=0. The command can be
stopped at any time; the same command continues.

Examples:
  gdrd precompute --config=stage_dis --workdir=runs/mine \\
      --config.data.path=FACES --config.discriminative.path=ARCFACE.onnx
  torchrun --nproc-per-node=4 -m gdrd_jax.cli precompute ...   # or srun gdrd precompute ...; one GPU per process
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from gdrd_jax.cli.train import cli, run_steps
from gdrd_jax.pipeline import stages
from gdrd_jax.registry import load_plugins
from gdrd_jax.utils.launch import ProcessInfo

TEACHERS = ("discriminative", "generative")
_TEACHER = flags.DEFINE_enum("teacher", "both", (*TEACHERS, "both"), "teacher to run")
_VERIFY = flags.DEFINE_bool("verify", False, "compute some rows again and compare them")


def work(config: ConfigDict, workdir: Path, process: ProcessInfo) -> None:
    """Fills the stores and, with --verify, verifies them."""
    wanted = TEACHERS if _TEACHER.value == "both" else (_TEACHER.value,)
    load_plugins(config.plugins)  # which may have the losses
    if "discriminative" in wanted and stages.any_loss_needs(config, "hr_features"):
        wanted = ("hr_features", *wanted)
    run_steps(config, workdir, process, wanted)
    if _VERIFY.value and not flags.FLAGS["dry-run"].value and process.rank == 0:
        from gdrd_jax.data.extract import verify
        from gdrd_jax.pipeline.run import Run
        from gdrd_jax.pipeline.steps import discriminative, generative, hr_features

        steps = {"discriminative": discriminative, "generative": generative, "hr_features": hr_features}
        for name in wanted:
            for job in steps[name].extractions(Run(config, workdir)).values():
                verify(job)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    return cli(["gdrd precompute", *argv], work, __doc__)
