"""Pack a training set into small files, about 800 bytes a face, for training on another machine.

WORKDIR is one in which gdrd train, or gdrd precompute --teacher=discriminative, has finished the steps `faces` and
`discriminative`. Faces become WebP images of 48x48 pixels; T_d's embeddings keep about 5 bits a number, at a cosine of
0.999 with the originals. Calibration people (config.data.calibration_people) are left out. The other machine needs no
teacher, and only the packages of the plain installation.

Examples:
  gdrd pack runs/gdrd-16 faces.packed
  gdrd train --config=accelerator:gdrd-16 --workdir=runs/fast --config.data.packed=faces.packed
"""

import argparse
import logging

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.utils.files import user_path

LOG = logging.getLogger("gdrd_jax.pack_training_set")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("workdir", type=user_path, metavar="WORKDIR", help="workdir of gdrd train or gdrd precompute")
    add("files", type=user_path, nargs="+", metavar="FILE", help="file to write; several share the faces evenly")
    add("--size", type=int, default=48, help="side of the faces in pixels (default: 48, 3 times a student's 16)")
    add("--quality", type=int, default=60, help="of WebP, 1 to 100 (default: 60)")
    add("--step", type=float, default=0.13, help="rounding step (default: 0.13; 0.4 keeps a cosine of 0.993)")
    return parser.parse_args(argv)


def work(given: argparse.Namespace) -> None:
    """Writes the files and logs their size."""
    from gdrd_jax.data import packed
    from gdrd_jax.pipeline.targets import training_faces
    from gdrd_jax.utils.errors import GdrdError
    from gdrd_jax.utils.outputs import claim_file

    if not (8 <= given.size <= 112 and 1 <= given.quality <= 100):
        raise GdrdError(
            f"--size {given.size} --quality {given.quality}: a size must be 8 to 112, a quality 1 to 100",
            "flag-value",
        )
    if not 0.04 <= given.step <= 1:  # at 0.04, 127 steps hold 5 standard deviations
        raise GdrdError(f"--step {given.step}: it must be 0.04 to 1", "flag-value")
    for path in given.files:
        claim_file(path, packed.is_packed, "FILE")
    parts, teacher, faces = training_faces(given.workdir)
    packed.pack(
        parts, given.files, teacher=teacher, faces=faces, size=given.size, quality=given.quality, step=given.step
    )
    count, size = sum(len(rows) for _, rows, _, _ in parts), sum(path.stat().st_size for path in given.files)
    LOG.info("%d faces in %.1f MB, %.0f bytes each", count, size / 1e6, size / count)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))
