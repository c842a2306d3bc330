"""Train a super-resolution (SR) network on aligned faces: a diffusion model, which is a generative teacher, or IASR.

Identities are not needed. FACES is of any format that gdrd prepare reads. The last --test-people people are not trained
on. Every --samples-every steps OUT/samples/step_N.png shows some of their faces (each line: input, bicubic, samples,
original), and quality.json gets the PSNR and, with --recognizer, the cosine of the embeddings of the restored and the
original face, with bicubic for comparison. --blur, --motion, --noise and --jpeg train the model to restore degraded
faces; each use of a face is degraded differently, up to these strengths. OUT becomes a folder of a diffusers
UNet2DModel. Training uses a GPU if there is one, and can be stopped at any time; the same command continues.

--identity T_D trains another network instead, which keeps what T_D, the recognizer that it is meant for, finds in a
face (our reading of IASR, IEEE Signal Processing Letters 2020). It is no teacher. gdrd evaluate and gdrd grid take
either as --super-resolve OUT.

Examples:
  gdrd train-sr-teacher FACES OUT --resolution 16 --size 64 --recognizer ARCFACE.onnx
  gdrd train --config=stage_gen --config.generative.path=OUT ...
  gdrd train-sr-teacher FACES OUT --identity ARCFACE.onnx --steps 1500
"""

import argparse
import dataclasses
import logging
from typing import TYPE_CHECKING

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.data.degradation import KERNELS
from gdrd_jax.models.arguments import RESOLUTIONS
from gdrd_jax.utils.files import user_path

if TYPE_CHECKING:
    from gdrd_jax.teachers import DiscriminativeTeacher

LOG = logging.getLogger("gdrd_jax.train_sr_teacher")
WIDTH = 64
IASR = {"size": 112, "channels": (WIDTH,), "layers": 8}


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
    model = "PATH[:PREPROCESSING[:SIZE]]"
    add("--identity", metavar=model, help="train IASR through this ONNX recognizer or iresnet weights")
    add("--size", type=int, help=f"pixels of the output (default: {sr.size}; of IASR {IASR['size']})")
    channels = f"channels of each level of the U-Net (default: {' '.join(map(str, sr.channels))}; of IASR {WIDTH})"
    add("--channels", type=int, nargs="+", metavar="C", help=channels)
    layers = f"residual blocks per level (default: {sr.layers}; of IASR {IASR['layers']})"
    add("--layers", type=int, help=layers)
    add("--steps", type=int, default=sr.steps, help=f"training steps (default: {sr.steps})")
    add("--batch", type=int, default=sr.batch, help=f"faces per step (default: {sr.batch})")
    rate = f"learning rate (default: {sr.learning_rate})"
    add("--learning-rate", type=float, default=sr.learning_rate, metavar="RATE", help=rate)
    add("--ema", type=float, default=sr.ema, help=f"decay of the averaged weights (default: {sr.ema})")
    add("--test-people", type=int, default=10, metavar="N", help="hold the last N people out (default: 10)")
    recognizer = "ONNX recognizer or iresnet weights, to measure kept identity"
    add("--recognizer", "--recogniser", metavar=model, help=recognizer)
    add("--samples-every", type=int, default=1000, metavar="STEPS", help="steps between samples (default: 1000)")
    add("--skip-bad", action="store_true", help="leave damaged faces out")
    add("--seed", type=int, default=7, help="of weights, batches and samples (default: 7)")
    given = parser.parse_args(argv)
    for name, value in (IASR if given.identity else {name: sr[name] for name in IASR}).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def work(given: argparse.Namespace) -> None:
    """Checks everything, then trains."""
    from gdrd_jax.data.degradation import STRENGTHS, Views
    from gdrd_jax.data.prepare import checked
    from gdrd_jax.data.readers import open_faces
    from gdrd_jax.evaluation.sr_quality import SampleCallback
    from gdrd_jax.teachers import sr_identity, sr_training
    from gdrd_jax.utils.errors import GdrdError, require
    from gdrd_jax.utils.files import locked
    from gdrd_jax.utils.outputs import claim_folder

    kind = sr_identity.IdentitySettings if given.identity else sr_training.SrSettings
    settings = kind(
        given.size, tuple(given.channels), given.layers, given.steps, given.batch, given.learning_rate, given.ema
    )
    if given.identity:
        sr_identity.doublings(given.resolution, given.size)
    claim_folder(given.out, "an SR teacher", "OUT")
    for package in ("torch", "diffusers", "safetensors"):
        require(package, "teachers")
    degraded = {name: getattr(given, name) for name in STRENGTHS}
    views = dataclasses.replace(Views.plain(given.resolution, given.kernel), **degraded)
    recognizer = _opened(given.recognizer, "--recognizer")[1] if given.recognizer else None
    identity = sr_identity.Identity.of(*_opened(given.identity, "--identity")) if given.identity else None
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
        watched = {"seed": given.seed, "watch": watch, "watch_every": given.samples_every}
        if identity:
            sr_identity.train(ours, views, settings, given.out, identity, **watched)
        else:
            sr_training.train(ours, views, settings, given.out, **watched)
    what = "a network that keeps identity" if identity else "a UNet2DModel"
    LOG.info("%s: %s, of %d pixels; pictures in %s", given.out, what, given.size, given.out / "samples")


def _opened(text: str, option: str) -> tuple[str, "DiscriminativeTeacher"]:
    """Name and network of a recognizer."""
    from gdrd_jax.inference.embedders import parse_model
    from gdrd_jax.teachers import load_discriminative

    name, path, preprocessing, size = parse_model(text, option)
    return name, load_discriminative(path, preprocessing=preprocessing, input_size=size)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    return guarded(lambda: work(arguments(argv)))
