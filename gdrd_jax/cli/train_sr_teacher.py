"""Trains an SR diffusion model, a generative teacher, on aligned faces without needing their identities.

  gdrd train-sr-teacher FACES OUT --resolution 16 --size 64 --recognizer ARCFACE.onnx

FACES is anything gdrd_jax reads: a folder with a folder a person, a .tar, a .rec, a list, a store. The last
--test-people of them are not trained on; every --samples-every steps OUT/samples/step_N.png shows some of them (a
line each: input, bicubic, samples, original) and quality.json gets PSNR and, with --recognizer, the cosine between
the embeddings of the drawn and the true face, beside bicubic's. --blur, --motion, --noise and --jpeg train it to
restore degraded faces, each degraded differently, up to so much, at each use. OUT is then a folder of diffusers'
UNet2DModel:

  gdrd train --config=stage_gen --config.generative.path=OUT ...

It runs on a GPU if there is one, and can be stopped at any time; the same command continues.
"""

import argparse
import dataclasses
import logging

from gdrd_jax.cli.common import guarded
from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.utils.files import user_path

LOG = logging.getLogger("gdrd_jax.train_sr_teacher")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line; defaults are those of `config.sr`."""
    from gdrd_jax.config import default

    sr = default().sr
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("faces", type=user_path, metavar="FACES")
    add("out", type=user_path, metavar="OUT")
    add("--resolution", type=int, default=16, choices=(8, 16, 32), help="pixels of its input (16)")
    add("--kernel", default="area", choices=KERNELS, help="how faces are reduced: area (OpenCV, default), bicubic")
    add("--blur", type=float, default=0.0, help="the most that its input is blurred, in pixels of 112 (0)")
    add("--motion", type=float, default=0.0, help="the most motion blur, in pixels of 112 (0)")
    add("--noise", type=float, default=0.0, help="the most noise, of 255 (0)")
    add("--jpeg", type=int, default=0, help="the lowest JPEG quality; 0 is none (0)")
    add("--size", type=int, default=sr.size, help=f"pixels of its output ({sr.size})")
    add("--channels", type=int, nargs="+", default=list(sr.channels), help=f"one a level of the U-Net {sr.channels}")
    add("--layers", type=int, default=sr.layers, help=f"residual blocks a level ({sr.layers})")
    add("--steps", type=int, default=sr.steps, help=f"({sr.steps})")
    add("--batch", type=int, default=sr.batch, help=f"({sr.batch})")
    add("--learning-rate", type=float, default=sr.learning_rate, help=f"({sr.learning_rate})")
    add("--ema", type=float, default=sr.ema, help=f"decay of the averaged weights ({sr.ema})")
    add("--test-people", type=int, default=10, help="the last so many people are only looked at (10)")
    add(
        "--recognizer",
        "--recogniser",
        metavar="PATH[:PREPROCESSING]",
        help="an ONNX recognizer or an iresnet's weights",
    )
    add("--samples-every", type=int, default=1000, metavar="STEPS", help="(1000)")
    add("--skip-bad", action="store_true", help="leave damaged faces out")
    add("--seed", type=int, default=7, help="(7)")
    return parser.parse_args(argv)


def work(given: argparse.Namespace) -> None:
    """Checks everything, then trains."""
    from gdrd_jax.data.degradation import STRENGTHS, Views
    from gdrd_jax.data.prepare import checked
    from gdrd_jax.data.readers import open_faces
    from gdrd_jax.evaluation.sr_quality import SampleCallback
    from gdrd_jax.inference.embedders import parse_model
    from gdrd_jax.teachers import load_discriminative, sr_training
    from gdrd_jax.utils.errors import GdrdError, require
    from gdrd_jax.utils.files import locked
    from gdrd_jax.utils.outputs import claim_folder

    settings = sr_training.SrSettings(
        given.size, tuple(given.channels), given.layers, given.steps, given.batch, given.learning_rate, given.ema
    )
    claim_folder(given.out, "an SR teacher", "OUT")
    for package in ("torch", "diffusers", "safetensors"):
        require(package, "teachers")
    degraded = {name: getattr(given, name) for name in STRENGTHS}
    views = dataclasses.replace(Views.plain(given.resolution, given.kernel), **degraded)
    recognizer = None
    if given.recognizer:
        _, path, preprocessing = parse_model(given.recognizer, "--recognizer")
        recognizer = load_discriminative(path, preprocessing=preprocessing)
    faces = checked(open_faces(given.faces, skip_bad=given.skip_bad), skip_bad=given.skip_bad)
    if not 0 < given.test_people < len(faces.identities):
        raise GdrdError(f"--test-people {given.test_people}: {given.faces} has {len(faces.identities)} people")
    ours, others = faces.split(given.test_people)
    with locked(given.out):
        watch = SampleCallback(others, views, given.size, recognizer, given.out / "samples", seed=given.seed)
        sr_training.train(
            ours, views, settings, given.out, seed=given.seed, watch=watch, watch_every=given.samples_every
        )
    LOG.info("%s: a UNet2DModel of %d pixels; pictures in %s", given.out, given.size, given.out / "samples")


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))
