"""Evaluate recognizers under a protocol, and write metrics.json, roc.csv, roc.png, scores.npz and report.html.

LFW is a folder, a .tar or a store of gdrd prepare with aligned 112x112 faces. A model is the name of a pretrained
student, a workdir of gdrd train, an exported student, an ONNX recognizer or an iresnet's weights (PyTorch or
safetensors), as [NAME=]PATH[:PREPROCESSING[:SIZE]]; PREPROCESSING is auto (the default), unit (x / 255), arcface
((x - 127.5) / 127.5), imagenet, in_graph (the graph does it), or MEAN/STD; SIZE is the side of its input in pixels,
where the file leaves it free. Colors are RGB. Layouts of --data:

  lfw       NAME/NAME_0001.jpg at any depth, with --pairs (LFW's pairs.txt, any folds x pairs)
  bin       an InsightFace .bin (lfw, cfp_fp, agedb_30)
  tinyface  Testing_Set/{Probe,Gallery_Match,Gallery_Distractor}, with or without the two .mat lists
  uccs      train/PERSON/IMAGE and test/PERSON/IMAGE
  ar        m-001-01 ... w-050-26, any image format

At native size faces are not reduced, but degraded by --blur, --motion, --noise and --jpeg too. A student reduces
whatever it is given to its own size. --resolution 16:native compares probes at 16 pixels with a gallery of good faces,
which the model itself embeds, or for a student its teacher: give that as another --model. Two or more --resolution
also draw sweep.png; tinyface draws cmc.png, uccs tsne.png, ar groups.png.
It can be stopped at any time; the same command continues.

Examples:
  gdrd evaluate --protocol lfw --data LFW --pairs pairs.txt --model ARCFACE.onnx --model runs/mine \\
      --resolution native 32 16 8 --out results/lfw
"""

import argparse
import dataclasses

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.inference.pretrained import DEFAULT
from gdrd_jax.utils.files import user_path


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", action="append", metavar="M", help=f"a recognizer, {DEFAULT} by default; repeat for several")
    add("--output", default="", metavar="NAME", help="output of the ONNX models that is the embedding, of several")
    add("--protocol", required=True, choices=("lfw", "bin", "uccs", "tinyface", "ar"))
    add("--data", required=True, type=user_path, help="the protocol's images")
    add("--pairs", type=user_path, help="LFW's pairs.txt")
    add(
        "--resolution",
        nargs="+",
        default=["16"],
        metavar="R",
        help="native, 112, 64, 48, 32, 24, 16 (default), 8, or PROBE:GALLERY such as 16:native",
    )
    add(
        "--kernel",
        default="area",
        choices=KERNELS,
        help="how faces are reduced: area (OpenCV, default), bicubic (Pillow)",
    )
    add("--blur", type=float, default=0.0, help="Gaussian blur before reducing: sigma in pixels of 112")
    add("--motion", type=float, default=0.0, help="motion blur before reducing: length in pixels of 112")
    add("--noise", type=float, default=0.0, help="Gaussian noise after reducing: sigma of 255")
    add("--jpeg", type=int, default=0, help="JPEG quality after reducing, 1-100")
    add(
        "--stretch", action="store_true", help="take faces that are not 112x112 and stretch them (tinyface always does)"
    )
    add("--skip-bad", action="store_true", help="leave bad faces and their pairs out, counted and listed")
    add("--seed", type=int, default=0, help="of noise, motion and bootstrap")
    add(
        "--out",
        required=True,
        type=user_path,
        help="folder of the results: new, empty, or of an earlier evaluation, which is replaced",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""

    def work() -> None:
        given = arguments(argv)
        from gdrd_jax.evaluation.run import Settings, evaluate_and_report

        values = vars(given) | {
            "models": tuple(given.model or [DEFAULT]), "resolutions": tuple(dict.fromkeys(given.resolution))
        }  # fmt: skip
        settings = Settings(**{field.name: values[field.name] for field in dataclasses.fields(Settings)})
        evaluate_and_report(settings, given.out)

    return guarded(work)
