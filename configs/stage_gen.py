"""Stage gen: the backbone learns the generative features.

  python -m pip install -e ".[teachers]"
  gdrd train --config=stage_gen --workdir=runs/mine --config.data.path=FACES

FACES is a folder of aligned 112x112 faces, FACES/PERSON/IMAGE (add --config.data.align=true for
photographs, with the extra `quickstart`). The generative teacher is an SR diffusion network trained on
FACES first, or one given by --config.generative.path: a folder of a diffusers UNet2DModel, or with
--config.generative.kind=pgdiff the paper's, PGDiff's iddpm_ffhq512_ema500000.pth.
Run configs/stage_dis.py on the same workdir afterwards; it finds this stage done.
"""

from gdrd_jax.config import default


def get_config():
    config = default()
    config.until = "gen"
    return config
