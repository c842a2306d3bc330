"""Export a student: ONNX, StableHLO, safetensors, thresholds and a model card, in one folder.

Before anything is written, every file is run on real faces and compared with the student, and with --lfw verified on
LFW's pairs; the results are in the model card, FOLDER/README.md. FACES are aligned faces of people whose identity the
student was not trained on, in any format; their number limits how small a false accept rate the thresholds support.
Without --calibration, a workdir's calibration people are used, and an exported or pretrained student keeps its
thresholds.

Formats:
  onnx       student.onnx: uint8 RGB [N, R, R, 3] -> float32 [N, D]; includes preprocessing and unit length
  onnx_nchw  student.nchw.onnx: float32 RGB [N, 3, R, R], (x - 127.5) / 127.5, as InsightFace's tools feed it
  onnx_112   student.112.onnx: float32 RGB [N, 3, 112, 112], (x - 127.5) / 127.5, reduced inside: takes the place of
             InsightFace's recognizers in InsightFace and OpenCV
  onnx_112_bgr  student.112.bgr.onnx: the same for BGR faces, as Frigate feeds them
  int8       student.int8.onnx: as onnx, in 8 bits
  stablehlo  student.stablehlo: `jax.export`
  onnx_quality  student.quality.onnx: as onnx, with a second output "quality", float32 [N]; see docs/quality.md

student.safetensors and manifest.json are always written: `Recognizer.load(FOLDER)` reads them.

Examples:
  gdrd export gdrd-16 exported
  gdrd export runs/mine exported --format onnx int8 --calibration FACES --lfw LFW --pairs pairs.txt
"""

import argparse

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.utils.files import user_path


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("student", metavar="STUDENT", help="workdir of gdrd train, exported folder, or name of a pretrained student")
    add("folder", type=user_path, metavar="FOLDER", help="new folder, or an export of the same student, to be replaced")
    add("--format", nargs="+", default=["onnx"], metavar="F", help="formats, see above (default: onnx)")
    add("--best", action="store_true", help="take a workdir's best student on the dev set, not the last one")
    add("--calibration", type=user_path, metavar="FACES", help="faces to learn thresholds on")
    add("--lfw", type=user_path, help="aligned faces of LFW, or an InsightFace .bin")
    add("--pairs", type=user_path, help="pairs.txt of LFW")
    add("--half", action="store_true", help="round the weights to float16")
    add("--no-mirror", action="store_true", help="embed faces without their mirror images, which takes less time")
    teacher = "teacher of the student, FILE.onnx: learn thresholds for galleries that it embeds"
    add("--teacher", default="", metavar="T", help=teacher)
    evaluations = "output folders of gdrd evaluate, for the model card"
    add("--evaluation", nargs="+", default=[], type=user_path, metavar="E", help=evaluations)
    add("--license", default="", metavar="TEXT", help="terms of use, for the model card and the files")
    baseline = "recognizer to compare with, FILE.onnx[:PREPROCESSING[:SIZE]]; repeat for several"
    add("--baseline", "--beside", action="append", default=[], metavar="M", help=baseline)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""

    def work() -> None:
        given = arguments(argv)
        from gdrd_jax.export.exporter import Settings, export
        from gdrd_jax.export.formats import FORMATS
        from gdrd_jax.utils.errors import GdrdError

        if unknown := [name for name in given.format if name not in FORMATS]:
            raise GdrdError(f"--format {unknown[0]} is unknown; choose from {', '.join(FORMATS)}", "flag-value")
        which = "best" if given.best else "student"
        export(
            Settings(
                given.student, which, tuple(given.format), given.calibration, given.lfw, given.pairs,
                tuple(given.baseline), given.half, not given.no_mirror, given.teacher,
                tuple(given.evaluation), given.license,
            ),
            given.folder,
        )  # fmt: skip

    return guarded(work, resumes=False)
