"""Embed mixup images of a packed training set with the teacher T_d, as further training data.

FACES.packed are all files that one gdrd pack wrote. Run this on the machine with the GPU: the output has 512 bytes for
each mixup image, for example 2 GB for 32 of each of 123,000 faces. Train with the output as one more packed file, and
with --config.dis.mixup, the share of mixup images in a batch.

Examples:
  gdrd pack-mixup a.packed b.packed --recognizer w600k_mbf.onnx --out mixup.packed
  gdrd train --config=accelerator:gdrd-16 --workdir=runs/fast \\
      --config.data.packed=a.packed,b.packed,mixup.packed --config.dis.mixup=0.6
"""

import argparse
import functools
import logging

import numpy as np

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.files import user_path

LOG = logging.getLogger("gdrd_jax.pack_mixup")
# 48-pixel faces of WebP at quality 60, enlarged, have a mean cosine of 0.74 to 0.80 with full-size ones.
LEAST_COSINE, COMPARED = 0.3, 256


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("faces", type=user_path, nargs="+", metavar="FACES.packed", help="output of gdrd pack")
    add("--recognizer", type=user_path, required=True, metavar="ONNX", help="T_d, which made the packed embeddings")
    add("--preprocessing", default="auto", help="of T_d, as config.discriminative.preprocessing (default: auto)")
    add("--input-size", type=int, default=0, help="of T_d in pixels, where its graph leaves it open")
    add("--output", default="", metavar="NAME", help="ONNX output that is the embedding, if there are several")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of T_d on a GPU (default: float32)")
    add("--out", type=user_path, required=True, metavar="FILE", help="file of mixup targets to write")
    add("--each", type=int, default=32, help="mixup images per face (default: 32)")
    add("--minutes", type=float, default=float("inf"), help="stop after about this time, with fewer images per face")
    add("--seed", type=int, default=7, help="of the choice of images (default: 7)")
    return parser.parse_args(argv)


def work(given: argparse.Namespace) -> None:
    """Writes the file and logs its size."""
    from gdrd_jax.data import packed, packed_mixup
    from gdrd_jax.teachers.arcface import ArcFace
    from gdrd_jax.teachers.mixup_targets import embed_mixup
    from gdrd_jax.utils.errors import GdrdError
    from gdrd_jax.utils.outputs import claim_file

    if given.each < 1 or given.seed < 0 or not given.minutes > 0:
        raise GdrdError(
            f"--each {given.each} --seed {given.seed} --minutes {given.minutes:g}: --each must be at least 1, "
            "--seed at least 0, and --minutes above 0",
            "flag-value",
        )
    if not given.recognizer.is_file():
        raise GdrdError(f"--recognizer: there is no file {str(given.recognizer)!r}", "file-missing")
    claim_file(given.out, packed_mixup.is_mixup, "--out")
    faces = packed.load(given.faces)
    teacher = ArcFace(
        given.recognizer,
        preprocessing=given.preprocessing,
        precision=given.precision,
        output=given.output,
        input_size=given.input_size,
    )
    embed = functools.partial(embed_mixup, teacher)
    cosine = _cosine(embed, faces)
    if not cosine > LEAST_COSINE:
        raise GdrdError(
            f"--recognizer {given.recognizer}: its embeddings have a mean cosine of {cosine:.2f} with those in "
            f"{given.faces[0]}, which {faces.about['name']} made; give that network, or its --preprocessing, or pack "
            "larger faces (gdrd pack --size --quality)",
            "teacher-mismatch",
        )
    LOG.info("%s: cosine %.3f with the packed embeddings", given.recognizer.name, cosine)
    seconds = 60 * given.minutes
    each = packed_mixup.make(faces, embed, given.out, views=given.each, seed=given.seed, seconds=seconds)
    LOG.info("%d mixup images of each of %d faces, %.0f MB", each, len(faces.labels), given.out.stat().st_size / 1e6)


def _cosine(embed, faces) -> float:
    """Mean cosine of embeddings of some small faces with the packed ones, which are of full-size faces."""
    small, targets = faces.small.values[:COMPARED, 0], faces.targets.values[:COMPARED, 0].astype("float32")
    nothing = np.zeros(len(small), bool)
    found = embed(small, small, nothing, np.ones(len(small)))
    if found.shape != targets.shape:
        return 0.0
    return float((unit(found) * unit(targets)).sum(axis=1).mean())


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))
