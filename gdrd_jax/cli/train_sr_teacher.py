"""Train an SR diffusion model, a generative teacher, on aligned faces; identities are not needed.

FACES is of any format that gdrd prepare reads. The last --test-people people are not trained on. Every --samples-every
steps OUT/samples/step_N.png shows some of their faces (each line: input, bicubic, samples, original), and quality.json
gets the PSNR and, with --recognizer, the cosine of the embeddings of the restored and the original face, with bicubic
for comparison. --blur, --motion, --noise and --jpeg train the model to restore degraded faces; each use of a face is
degraded differently, up to these strengths. OUT becomes a folder of a diffusers UNet2DModel. Training uses a GPU if
there is one, and can be stopped at any time; the same command continues.

Examples:
  gdrd train-sr-teacher FACES OUT --resolution 16 --size 64 --recognizer ARCFACE.onnx
  gdrd train --config=stage_gen --config.generative.path=OUT ...
"""

import argparse
import dataclasses
import logging

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.models.arguments import RESOLUTIONS
from gdrd_jax.utils.files import user_path

LOG = logging.getLogger("gdrd_jax.train_sr_teacher")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line; its defaults are those of `config.sr`."""
    from gdrd_jax.config import default

    sr = default().sr
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("faces", type=user_path, metavar="FACES", help="aligned faces")
    add("out", type=user_path, metavar="OUT", help="folder to write")
    add("--resolution", type=int, default=16, choices=RESOLUTIONS, help="pixels of the input (default: 16)")
    add("--kernel", default="area", choices=KERNELS, help="downsampling: area (OpenCV, default) or bicubic (Pillow)")
    add("--blur", type=float, default=0.0, help="maximum Gaussian blur of the input, in pixels of 112 (default: 0)")
    add("--motion", type=float, default=0.0, help="maximum motion blur, in pixels of 112 (default: 0)")
    add("--noise", type=float, default=0.0, help="maximum noise, of 255 (default: 0)")
    add("--jpeg", type=int, default=0, help="lowest JPEG quality; 0 compresses nothing (default: 0)")
    add("--size", type=int, default=sr.size, help=f"pixels of the output (default: {sr.size})")
    channels = f"channels of each level of the U-Net (default: {' '.join(map(str, sr.channels))})"
    add("--channels", type=int, nargs="+", default=list(sr.channels), metavar="C", help=channels)
    add("--layers", type=int, default=sr.layers, help=f"residual blocks per level (default: {sr.layers})")
    add("--steps", type=int, default=sr.steps, help=f"training steps (default: {sr.steps})")
    add("--batch", type=int, default=sr.batch, help=f"faces per step (default: {sr.batch})")
    rate = f"learning rate (default: {sr.learning_rate})"
    add("--learning-rate", type=float, default=sr.learning_rate, metavar="RATE", help=rate)
    add("--ema", type=float, default=sr.ema, help=f"decay of the averaged weights (default: {sr.ema})")
    add("--test-people", type=int, default=10, metavar="N", help="hold the last N people out (default: 10)")
    recognizer = "ONNX recognizer or iresnet weights, to measure kept identity"
    add("--recognizer", "--recogniser", metavar="PATH[:PREPROCESSING[:SIZE]]", help=recognizer)
    add("--samples-every", type=int, default=1000, metavar="STEPS", help="steps between samples (default: 1000)")
    add("--skip-bad", action="store_true", help="leave damaged faces out")
    add("--seed", type=int, default=7, help="of weights, batches and samples (default: 7)")
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
        _, path, preprocessing, size = parse_model(given.recognizer, "--recognizer")
        recognizer = load_discriminative(path, preprocessing=preprocessing, input_size=size)
    faces = checked(open_faces(given.faces, skip_bad=given.skip_bad), skip_bad=given.skip_bad)
    if not 0 < given.test_people < len(faces.identities):
        people = len(faces.identities)
        raise GdrdError(
            f"--test-people {given.test_people}: {given.faces} has {people} people; at least one must be held "
            "out, and one left to train on",
            "flag-value",
        )
    ours, others = faces.split(given.test_people)
    with locked(given.out):
        watch = SampleCallback(others, views, given.size, recognizer, given.out / "samples", seed=given.seed)
        sr_training.train(
            ours, views, settings, given.out, seed=given.seed, watch=watch, watch_every=given.samples_every
        )
    LOG.info("%s: a UNet2DModel of %d pixels; pictures in %s", given.out, given.size, given.out / "samples")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))
