"""The pretrained students on one GPU, from a packed training set.

  gdrd pack runs/gdrd-16 a.packed b.packed   # once, where the faces and the teacher are
  gdrd train --config=accelerator:gdrd-16 --workdir=runs/fast \\
      --config.data.packed=a.packed,b.packed

As configs/pretrained.py, in batches of 1,024 and bfloat16; `gdrd-16-wide` and `gdrd-8-wide` have the paper's width.
On one H200, 2026-11-27: 266,000 images a second (gdrd-16), 136,000 (gdrd-16-wide), 454,000 (gdrd-8), after about a
minute of compiling: 10,000 steps are 38, 75 and 23 seconds. The students in the package were trained so, see
docs/training.md.
"""

from gdrd_jax.config import robust

# Resolution, width, and learning rate of batches of 1,024.
STUDENTS = {
    "gdrd-16": (16, 0.5, 0.012), "gdrd-16-wide": (16, 1.0, 0.008), "gdrd-16-small": (16, 0.25, 0.016),
    "gdrd-8": (8, 0.5, 0.012), "gdrd-8-wide": (8, 1.0, 0.008),
}  # fmt: skip


def get_config(name: str = "gdrd-16"):
    config = robust(name, STUDENTS)
    config.student.dtype = "bfloat16"
    config.dis.update(batch=1024, steps=10_000, evaluate_every=0)
    return config
