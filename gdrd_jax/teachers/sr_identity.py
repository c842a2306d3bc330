"""IASR: a super-resolution network that keeps identity, trained with gradients through T_d.

Our reading of "Identity-Aware Face Super-Resolution for Low-Resolution Face Recognition" (IEEE Signal Processing
Letters 2020), of which only the abstract could be read: identity is the angle and the magnitude of T_d's embedding, and
both are to be kept. Network, weights of the terms and schedule are this project's.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.data.degradation import Views, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.teachers import sr_loop, torch_network
from gdrd_jax.teachers.interface import DiscriminativeTeacher
from gdrd_jax.teachers.sr_diffusion import to_tensor, to_uint8
from gdrd_jax.utils.errors import GdrdError, first_line, require
from gdrd_jax.utils.files import digest, sha256

KIND = "iasr"
WEIGHTS = "iasr.safetensors"


@dataclasses.dataclass(frozen=True)
class IdentitySettings(sr_loop.SrSettings):
    """As `sr_loop.SrSettings`, with one number of channels.

    Attributes:
      angle, magnitude: weights of the terms of the loss, see `terms`.
    """

    angle: float = 0.1
    magnitude: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if len(self.channels) != 1:
            raise GdrdError(
                f"an SR network that is trained with a recognizer has one number of channels, not {self.channels}",
                "sr-settings",
            )


@dataclasses.dataclass(frozen=True)
class Identity:
    """T_d as the loss uses it.

    Attributes:
      embed: see `DiscriminativeTeacher.differentiable`.
      side: of the images that `embed` takes, in pixels.
      about: T_d's name and fingerprint.
    """

    embed: Callable[[Any], Any]
    side: int
    about: dict[str, str]

    @classmethod
    def of(cls, name: str, teacher: DiscriminativeTeacher) -> "Identity":
        """Of a recognizer.

        Raises:
          GdrdError: it has no gradients.
        """
        about = {"name": name, "fingerprint": teacher.fingerprint}
        return cls(teacher.differentiable(), teacher.input_size, about)

    def __call__(self, images):
        """Raw embeddings of images, tensor `[N, 3, size, size]` in [-1, 1] -> `[N, D]`."""
        return self.embed((_resized(images, self.side) + 1) * 127.5)


def train(
    faces: Faces, views: Views, settings: IdentitySettings, directory: str | os.PathLike, identity: Identity, *,
    seed: int, watch: sr_loop.Callback | None = None, watch_every: int = 0,
) -> None:  # fmt: skip
    """Trains the network and saves it in `directory`, see `sr_loop.run`.

    Args:
      faces, views: see `sr_loop.examples`.
      settings: see `IdentitySettings`.
      directory: an existing folder.
      identity: T_d.
      seed: of weights, batches and degradation.
      watch, watch_every: see `sr_loop.run`.

    Raises:
      GdrdError: `directory` holds a training with other settings, faces or T_d; faces of this resolution cannot be
        super-resolved to this size; or the loss is not finite.
      Interrupted: SIGINT or SIGTERM arrived; the state was saved first.
    """
    torch, directory = require("torch", "teachers"), Path(directory)
    torch.manual_seed(seed)
    sr = network(views.resolution, settings)
    sr_loop.claim(directory, faces, views, settings, seed, kind=KIND, teacher=identity.about)

    def loss(_step: int, low, high):
        drawn = sr(low)
        with torch.no_grad():
            wanted = identity(high)
        pixels, angle, magnitude = terms(drawn, high, identity(drawn), wanted)
        return pixels + settings.angle * angle + settings.magnitude * magnitude

    def save(folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in sr.state_dict().items()}, folder / WEIGHTS)

    training = sr_loop.Training(
        sr, settings, lambda first: _batches(faces, views, settings, seed, first), loss,
        lambda lr, _seed: _drawn(sr, lr), save, WEIGHTS,
    )  # fmt: skip
    sr_loop.run(training, directory, watch, watch_every)


def terms(drawn, faces, embedded, wanted) -> tuple:
    """The terms of IASR's loss, scalar tensors: `|SR - x|`, `1 - cos(phi(SR), phi(x))` and the relative difference of
    the lengths `||phi(SR)| - |phi(x)|| / |phi(x)|`, each averaged.

    Args:
      drawn, faces: SR and x, tensors `[N, 3, S, S]` in [-1, 1].
      embedded, wanted: phi(SR) and phi(x), T_d's embeddings `[N, D]` before they are normalized.
    """
    functional = require("torch.nn.functional", "teachers")
    length, own = embedded.norm(dim=1), wanted.norm(dim=1)
    return (
        (drawn - faces).abs().mean(),
        (1 - functional.cosine_similarity(embedded, wanted, dim=1)).mean(),
        ((length - own).abs() / own).mean(),
    )


def network(resolution: int, settings: sr_loop.SrSettings):
    """An untrained network: tensor `[N, 3, resolution, resolution]` in [-1, 1] -> `[N, 3, size, size]`.

    Raises:
      GdrdError: see `doublings`.
    """
    nn = require("torch.nn", "teachers")
    (width,), count = settings.channels, doublings(resolution, settings.size)

    class Block(nn.Module):
        """Two 3x3 convolutions without BatchNorm, so that a face does not depend on those around it."""

        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

        def forward(self, x):
            return x + self.conv2(self.conv1(x).relu())

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, width, 3, 1, 1)
            self.blocks = nn.Sequential(*(Block() for _ in range(settings.layers)))
            enlarge = [(nn.Conv2d(width, 4 * width, 3, 1, 1), nn.PixelShuffle(2), nn.ReLU()) for _ in range(count)]
            self.enlarge = nn.Sequential(*(layer for layers in enlarge for layer in layers))
            self.last = nn.Conv2d(width, 3, 3, 1, 1)

        def forward(self, x):
            return _resized(self.last(self.enlarge(self.blocks(self.first(x)))), settings.size)

    return Network()


def doublings(resolution: int, size: int) -> int:
    """How often the network doubles faces of `resolution` pixels; what is larger than `size` then is reduced to it.

    Raises:
      GdrdError: the faces are not smaller than `size`.
    """
    if resolution >= size:
        raise GdrdError(
            f"faces of {resolution} pixels cannot be super-resolved to {size}; choose a lower resolution or a larger "
            "size",
            "sr-resolution",
        )
    return math.ceil(math.log2(size / resolution))


def _resized(images, side: int):
    """Tensor `[N, 3, H, W]` -> `[N, 3, side, side]`, bicubic and antialiased."""
    if images.shape[2:] == (side, side):
        return images
    functional = require("torch.nn.functional", "teachers")
    return functional.interpolate(images, (side, side), mode="bicubic", antialias=True)


def _drawn(sr, lr: np.ndarray) -> np.ndarray:
    """uint8 RGB `[N, R, R, 3]` -> uint8 RGB `[N, size, size, 3]`."""
    torch, device = require("torch", "teachers"), next(sr.parameters()).device

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return to_uint8(sr(to_tensor(images).to(device)))

    return torch_network.in_batches(run, lr, torch_network.BATCH)


def _batches(faces: Faces, views: Views, settings: IdentitySettings, seed: int, first: int) -> Iterator[tuple]:
    """Low-resolution faces and their originals, tensors `[B, 3, R, R]` and `[B, 3, size, size]`, from a step on."""

    def prepared(low: np.ndarray, high: np.ndarray) -> sr_loop.Pair:
        return low, resize(high, settings.size, "area")

    for low, high in sr_loop.examples(faces, views, settings, seed, first, prepared):
        yield to_tensor(low), to_tensor(high)


def is_folder(path: Path) -> bool:
    """Whether `train` was called for a folder."""
    try:
        return json.loads((path / sr_loop.RECORD).read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


class IdentitySr:
    """A network of `train`, for recognition; a `SuperResolver`.

    Attributes:
      method: see `SuperResolver`.
      size: side of the images that it draws, in pixels.
      low_size: side of those that it takes.
      fingerprint: of the network.

    Raises:
      GdrdError: its training is not finished, or its file is damaged.
    """

    method = KIND

    def __init__(self, path: Path):
        weights = path / WEIGHTS
        if not weights.exists() or (path / sr_loop.STATE).exists():  # a process that is killed leaves a part
            raise GdrdError(
                f"the training in {path} is not finished; continue it with the same command",
                "sr-unfinished",
            )
        from safetensors.torch import load_file

        try:
            record = json.loads((path / sr_loop.RECORD).read_text(encoding="utf-8"))
            settings = IdentitySettings(**{**record["settings"], "channels": tuple(record["settings"]["channels"])})
            self.low_size, self.size = record["resolution"], settings.size
            self._network = network(self.low_size, settings)
            self._network.load_state_dict(load_file(weights))
        except Exception as error:  # safetensors and torch each raise their own
            raise GdrdError(
                f"{path} cannot be loaded as an SR network: {first_line(error)}; train it again in another folder",
                "sr-unloadable",
            ) from error
        self._network.to(torch_network.device()).eval()
        self.fingerprint = digest({"kind": KIND, "sha256": sha256(weights)})

    def super_resolve(self, lr: np.ndarray, seed: int) -> np.ndarray:
        """uint8 RGB `[N, low_size, low_size, 3]` -> uint8 RGB `[N, size, size, 3]`; `seed` changes nothing.

        Raises:
          GdrdError: the images are of another size.
        """
        if lr.shape[1:3] != (self.low_size, self.low_size):
            height, width = lr.shape[1:3]
            raise GdrdError(
                f"the SR network takes {self.low_size}x{self.low_size} pixels, and these images are {width}x{height}; "
                "train another one for them",
                "sr-resolution",
            )
        return _drawn(self._network, lr)
