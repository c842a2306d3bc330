"""The pretrained students: robust to blur, motion, noise, compression, low light and misaligned crops.

  gdrd train --config=pretrained:gdrd-16 --workdir=runs/gdrd-16 \
      --config.data.path=train.rec,people.rec --config.data.unlabeled=unlabeled.rec \
      --config.discriminative.path=w600k_mbf.onnx --config.dev.path=lfw_dev.tar --config.dev.pairs=pairs_dev.txt
  gdrd export runs/gdrd-16 exported --half --lfw lfw_dev.tar --pairs pairs_dev.txt

| name | pixels | width | steps | core hours of a 2.5 GHz Xeon (targets of T_d: 1 more, once for all) |
|---|---|---|---|---|
| gdrd-16 | 16 | 0.5 | 30,000 | 8 |
| gdrd-16-small | 16 | 0.25 | 30,000 | 4 |
| gdrd-8 | 8 | 0.5 | 30,000 | 4 |

Backbone and head are trained together, without stage gen. docs/results.md has what comes out, and why so. The last
1,000 people are left out of training; thresholds are learned on them.
"""

from gdrd_jax.config import robust

# Resolution, width, and learning rate: narrower layers take longer steps.
STUDENTS = {"gdrd-16": (16, 0.5, 0.0056), "gdrd-16-small": (16, 0.25, 0.008), "gdrd-8": (8, 0.5, 0.0056)}


def get_config(name: str = "gdrd-16"):
    config = robust(name, STUDENTS)
    config.data.update(test_people=0, calibration_people=1000)
    config.dev.update(blur=2.0, motion=8.0, noise=8.0, jpeg=50)
    config.dis.update(steps=30_000, evaluate_every=2000)
    return config
