"""The paper's own training (arXiv 2409.06371): SGD, rate 0.05 in steps of 0.1, batch 96, Eq. 3, a frozen backbone.

  gdrd train --config=paper --workdir=runs/paper --config.data.path=FACES \
      --config.discriminative.path=ARCFACE.onnx --config.generative.kind=pgdiff \
      --config.generative.path=iddpm_ffhq512_ema500000.pth --config.generative.input_size=16 \
      --config.generative.tap=middle --config.generative.settings.timestep=0

FACES are the paper's 494,414 of WebFace. What it leaves open is ours: strides, views, how long it trains, the
teacher's logits. docs/results.md says why the other configs train otherwise.
"""

from gdrd_jax.config import paper


def get_config():
    return paper()
