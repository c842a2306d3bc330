"""Evaluate recognizers under a protocol, and write metrics.json, roc.csv, roc.png, scores.npz and report.html.

`gdrd list protocols` says what --data holds for each protocol, and --help after --protocol NAME explains the options
of that one. Faces are aligned, 112x112. A model is the name of a pretrained student, a workdir of gdrd train, an
exported student, an ONNX recognizer or an iresnet's weights (PyTorch or safetensors), as [NAME=]PATH[:PREPROCESSING];
PREPROCESSING is auto (the default), unit (x / 255), arcface ((x - 127.5) / 127.5), imagenet, in_graph (the graph does
it), or MEAN/STD. Colors are RGB.

At native size faces are not reduced, but degraded by --blur, --motion, --noise and --jpeg too. A student reduces
whatever it is given to its own size. --resolution 16:native compares probes at 16 pixels with a gallery of good faces,
which the model itself embeds, or for a student its teacher: give that as another --model. Two or more --resolution
also draw sweep.png.
It can be stopped at any time; the same command continues.

Examples:
  gdrd evaluate --protocol lfw --data LFW --pairs pairs.txt --model ARCFACE.onnx --model runs/mine \\
      --resolution native 32 16 8 --out results/lfw
"""

import argparse
import dataclasses
import inspect
from typing import TYPE_CHECKING

from gdrd_jax.cli.common import ArgumentParser, add_degradation, guarded
from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.inference.pretrained import DEFAULT
from gdrd_jax.registry import explanations, protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path

if TYPE_CHECKING:
    from gdrd_jax.evaluation.settings import Settings


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", action="append", metavar="M", help=f"a recognizer, {DEFAULT} by default; repeat for several")
    add("--output", default="", metavar="NAME", help="output of the ONNX models that is the embedding, of several")
    add("--protocol", required=True, metavar="NAME", help="what is evaluated, see gdrd list protocols")
    add("--data", required=True, type=user_path, help="the protocol's images")
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
    add_degradation(parser)
    add(
        "--stretch", action="store_true", help="take faces that are not 112x112 and stretch them (tinyface always does)"
    )
    add(
        "--no-mirror", dest="mirror", action="store_false",
        help="embed without the mirror image, as of digits and text; a student stores this",
    )  # fmt: skip
    add(
        "--super-resolve", dest="super_resolver", default="", metavar="DIR",
        help="an SR network of gdrd train-sr-teacher: ONNX models have further rows, of the faces that it draws",
    )  # fmt: skip
    add("--skip-bad", action="store_true", help="leave bad faces and their pairs out, counted and listed")
    add("--seed", type=int, default=0, help="of noise, motion and bootstrap (default: 0)")
    add(
        "--out",
        required=True,
        type=user_path,
        help="folder of the results: new, empty, or of an earlier evaluation, which is replaced",
    )
    first = ArgumentParser(prog=parser.prog, add_help=False)
    first.add_argument("--protocol")
    chosen = first.parse_known_args(argv)[0]
    names = _add_settings(parser, chosen.protocol) if chosen.protocol else []
    given = parser.parse_args(argv)
    given.protocol_settings = {name: getattr(given, name) for name in names}
    return given


def _add_settings(parser: ArgumentParser, protocol: str) -> list[str]:
    """Adds the options of a protocol, the fields of its `Config`; returns their names.

    Raises:
      GdrdError: there is no such protocol.
    """
    entry = protocols[protocol]
    about = (inspect.getdoc(entry) or "").partition("\n\n")[0]
    group = parser.add_argument_group(f"protocol {protocol}", about)
    explained = explanations(entry.Config)
    for field in dataclasses.fields(entry.Config):
        option, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        how = (
            {"action": argparse.BooleanOptionalAction}
            if kind is bool
            else {"type": kind, "metavar": field.name.upper()}
        )
        try:
            group.add_argument(option, default=field.default, help=explained.get(field.name), **how)
        except argparse.ArgumentError:
            raise GdrdError(
                f"the protocol {protocol!r} has a setting {field.name!r}, which is an option of gdrd evaluate itself; "
                "rename the setting",
                "protocol-setting-name",
            ) from None
    return [field.name for field in dataclasses.fields(entry.Config)]


def settings_of(given: argparse.Namespace, models: tuple[str, ...]) -> "Settings":
    """What the arguments ask for, of these models."""
    from gdrd_jax.evaluation.settings import Settings

    values = vars(given) | {"models": models, "resolutions": tuple(dict.fromkeys(given.resolution))}
    return Settings(**{field.name: values[field.name] for field in dataclasses.fields(Settings)})


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""

    def work() -> None:
        given = arguments(argv)
        from gdrd_jax.evaluation.run import evaluate_and_report

        evaluate_and_report(settings_of(given, tuple(given.model or [DEFAULT])), given.out)

    return guarded(work)
