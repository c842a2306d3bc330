"""Runs the teachers once over all faces, into the caches of a workdir, and trains nothing else.

  python tools/precompute_teacher.py --config=configs/stage_dis.py --workdir=runs/mine \
      --config.data.path=FACES --config.discriminative.path=ARCFACE.onnx

Takes the flags of `python -m gdrd_jax.main`, which afterwards finds this work done. It can be
stopped at any time; the same command continues.
"""

import sys

from gdrd_jax.main import cli

if __name__ == "__main__":
    sys.exit(cli(sys.argv, wanted=("generative", "discriminative"), about=__doc__))
