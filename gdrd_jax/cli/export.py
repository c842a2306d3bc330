"""Exports a trained student: ONNX, StableHLO, safetensors, thresholds and a model card, in one folder.

  gdrd export runs/mine exported --calibration FACES --lfw LFW --pairs pairs.txt

Every file is run on real faces and compared with the student, and judged on LFW's pairs, before anything is written;
the table stands in exported/README.md, the model card. FACES are aligned faces of people whose identity the student
did not learn, of any format; their number decides how small a false accept rate the thresholds can promise. Without
--calibration the run's own calibration people serve.

  onnx       student.onnx: uint8 RGB [N, R, R, 3] -> float32 [N, D]; all of the embedding is inside
  onnx_nchw  student.nchw.onnx: float32 RGB [N, 3, R, R], (x - 127.5) / 127.5, as InsightFace's tools feed it
  int8       student.int8.onnx: as onnx, in 8 bits
  stablehlo  student.stablehlo: `jax.export`

student.safetensors and manifest.json are always there: `Recognizer.load("exported")` reads them.

  gdrd export gdrd-16 exported  # a pretrained student as ONNX; it brings its thresholds
"""

import argparse

from gdrd_jax.cli.common import guarded
from gdrd_jax.utils.files import user_path


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("student", metavar="WORKDIR", help="of gdrd train, a checkpoint's folder, or a pretrained student's name")
    add("folder", type=user_path, metavar="FOLDER", help="made, or replaced if it is an export of the same student")
    add("--format", nargs="+", default=["onnx"], help="onnx (default), onnx_nchw, int8, stablehlo")
    add("--best", action="store_true", help="the student that was best on the dev set, not the last one")
    add("--calibration", type=user_path, metavar="FACES", help="faces to learn thresholds on")
    add("--lfw", type=user_path, help="LFW's aligned faces, or a .bin of InsightFace")
    add("--pairs", type=user_path, help="LFW's pairs.txt")
    add("--half", action="store_true", help="weights in float16")
    add("--teacher", default="", metavar="T", help="the student's teacher, FILE.onnx: thresholds for galleries of it")
    add(
        "--evaluation",
        nargs="+",
        default=[],
        type=user_path,
        metavar="E",
        help="results of gdrd evaluate, for the card",
    )
    add("--license", default="", metavar="TEXT", help="terms of use, for the card and the files")
    more = "another recognizer for the table: FILE.onnx[:PREP]"
    add("--baseline", "--beside", action="append", default=[], metavar="M", help=more)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""

    def work() -> None:
        given = arguments(argv)
        from gdrd_jax.export.exporter import FORMATS, Settings, export
        from gdrd_jax.utils.errors import GdrdError

        if unknown := [name for name in given.format if name not in FORMATS]:
            raise GdrdError(f"--format {unknown[0]} is not known; it can be {', '.join(FORMATS)}")
        which = "best" if given.best else "student"
        export(
            Settings(
                given.student, which, tuple(given.format), given.calibration, given.lfw, given.pairs,
                tuple(given.baseline), given.half, given.teacher, tuple(given.evaluation),
                given.license,
            ),
            given.folder,
        )  # fmt: skip

    return guarded(work, resumes=False)
