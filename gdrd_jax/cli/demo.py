"""Compares two faces at 8, 16 and 32 pixels on a page in the browser.

  gdrd demo --model gdrd-16 --teacher w600k_r50.onnx --gallery PEOPLE

Open http://127.0.0.1:7860 then. Only this computer can, nothing is sent elsewhere, and pictures are deleted when the
tool ends (Ctrl-C). --model is the name of a pretrained student, what gdrd export wrote, or a workdir of
gdrd train, which has no thresholds and decides nothing. PEOPLE is a folder PEOPLE/PERSON/IMAGE, or a gallery that
gdrd enroll made with the 16-pixel student, or the only one: its faces that are most like the first picture
are shown. Pictures are aligned faces, square, of any size; with --align photographs of one person each.
"""

import argparse

from gdrd_jax.cli.common import guarded
from gdrd_jax.inference.pretrained import DEFAULT
from gdrd_jax.utils.files import user_path


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", metavar="M", help=f"a student, {DEFAULT} by default; repeat for other sizes")
    add("--teacher", metavar="T", help="a recognizer to compare it with: FILE.onnx[:PREPROCESSING]")
    add("--gallery", type=user_path, metavar="PEOPLE", help="known faces")
    add("--align", action="store_true", help="photographs: find the face and align it")
    add("--far", type=float, default=1e-3, help="the share of strangers that may pass, default 0.001")
    add("--port", type=int, default=7860, help="default 7860")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""

    def work() -> None:
        given = arguments(argv)
        from gdrd_jax.export.demo import Demo, check_server, serve

        check_server(given.port)
        demo = Demo.load(given.model or [DEFAULT], given.teacher, given.gallery, align=given.align, far=given.far)
        page = serve(demo, given.port)
        print(f"open http://127.0.0.1:{given.port} in a browser; Ctrl-C stops this", flush=True)
        try:
            page.block_thread()
        finally:  # also after SIGTERM, or the pictures stay
            page.close(verbose=False)

    return guarded(work, resumes=False)
