"""Compare two faces at 8, 16 and 32 pixels on a page in the browser.

The page is at http://127.0.0.1:7860, for this computer alone. Nothing is sent elsewhere, and uploaded pictures are
deleted when the command ends (Ctrl-C). A picture is an aligned, square face of any size; with --align it is a
photograph of one person.

PEOPLE is a folder PEOPLE/PERSON/IMAGE, or a gallery of gdrd enroll (its folder or its postgresql:// URL). The page
shows its faces that are most similar to the first picture, to the student of 16 pixels if there is one, and otherwise
to that of the most pixels.

Examples:
  gdrd demo
  gdrd demo --model gdrd-8 --model gdrd-16 --teacher w600k_r50.onnx --gallery PEOPLE
"""

import argparse

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.galleries.address import parse_address
from gdrd_jax.inference.pretrained import DEFAULT


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    model = f"student, see gdrd verify; repeat for other resolutions (default: {DEFAULT})"
    add("--model", action="append", metavar="M", help=model)
    add("--teacher", metavar="T", help="recognizer to compare with: FILE.onnx[:PREPROCESSING[:SIZE]]")
    add("--gallery", type=parse_address, metavar="PEOPLE", help="known people")
    add("--align", action="store_true", help="find the face in each photograph and align it")
    add("--far", type=float, default=1e-3, help="false accept rate of the decisions (default: 0.001)")
    add("--port", type=int, default=7860, help="port of the page (default: 7860)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""

    def work() -> None:
        given = arguments(argv)
        from gdrd_jax.export.demo import Demo
        from gdrd_jax.export.demo_page import check_server, serve

        check_server(given.port)
        demo = Demo.load(given.model or [DEFAULT], given.teacher, given.gallery, align=given.align, far=given.far)
        page = serve(demo, given.port)
        print(f"open http://127.0.0.1:{given.port} in a browser; Ctrl-C stops the server", flush=True)
        try:
            page.block_thread()
        finally:  # also after SIGTERM; otherwise the uploaded pictures stay
            page.close(verbose=False)

    return guarded(work, resumes=False)
