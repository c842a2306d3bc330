"""The pretrained students on one GPU, from a packed training set.

  gdrd pack runs/gdrd-16 a.packed b.packed   # once, where the faces and the teacher are
  gdrd train --config=accelerator:gdrd-16 --workdir=runs/fast \\
      --config.data.packed=a.packed,b.packed

  gdrd pack-mixup a.packed b.packed --recognizer w600k_mbf.onnx --precision bfloat16 --out mixup.packed
  gdrd train --config=accelerator:gdrd-16 --workdir=runs/mixup \\
      --config.data.packed=a.packed,b.packed,mixup.packed --config.dis.mixup=0.6

As configs/pretrained.py, in batches of 1,024 and bfloat16; `gdrd-16-wide` and `gdrd-8-wide` have the paper's width.
On one H200, 2026-11-27: 266,000 images a second (gdrd-16), 136,000 (gdrd-16-wide), 454,000 (gdrd-8), after about a
minute of compiling: 10,000 steps are 38, 75 and 23 seconds. With mixup targets 20,000 steps give gdrd-16 93.5 % on
LFW's dev pairs reduced to 16x16, 86.7 % degraded; without, 93.0 and 86.2. See docs/performance.md.
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
