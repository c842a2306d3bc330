"""Trains a small SR diffusion teacher on the user's own faces."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gdrd_jax.data.degradation import Views, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.teachers import sr_loop
from gdrd_jax.teachers.sr_diffusion import RESIDUAL_SCALE, check_tap, draw, to_tensor
from gdrd_jax.utils.errors import GdrdError, require

WEIGHTS = "diffusion_pytorch_model.safetensors"
TIMESTEPS = 1000


@dataclasses.dataclass(frozen=True)
class SrSettings(sr_loop.SrSettings):
    """As `sr_loop.SrSettings`; `size` is a multiple of 2^(levels - 1), and each of `channels` one of 8."""

    def __post_init__(self):
        super().__post_init__()
        if self.size % 2 ** (len(self.channels) - 1) or any(c % 8 for c in self.channels):
            raise GdrdError(
                f"the SR teacher's size {self.size} must be divisible by {2 ** (len(self.channels) - 1)} "
                f"and each of its channels {self.channels} by 8",
                "sr-size",
            )

    def check_tap(self, tap: str) -> None:
        """Raises GdrdError unless the network will have the tap."""
        check_tap(tap, len(self.channels))


def train(
    faces: Faces, views: Views, settings: SrSettings, directory: str | os.PathLike, *, seed: int,
    watch: sr_loop.Callback | None = None, watch_every: int = 0,
) -> None:  # fmt: skip
    """Trains the network and saves it in `directory` in diffusers' layout, see `sr_loop.run`.

    Args:
      faces, views: see `sr_loop.examples`.
      settings: see `SrSettings`.
      directory: an existing folder.
      seed: of weights, batches, degradation, timesteps and noise.
      watch, watch_every: see `sr_loop.run`.

    Raises:
      GdrdError: `directory` holds a training with other settings or faces, or the loss is not finite.
      Interrupted: SIGINT or SIGTERM arrived; the state was saved first.
    """
    torch, directory = require("torch", "teachers"), Path(directory)
    sr_loop.claim(directory, faces, views, settings, seed)
    torch.manual_seed(seed)
    unet, scheduler = network(settings)

    def loss(step: int, condition, target):
        # One generator a step makes the run independent of where it was interrupted.
        generator, device = torch.Generator().manual_seed(seed * 1_000_003 + step), target.device
        noise = torch.randn(target.shape, generator=generator).to(device)
        times = torch.randint(TIMESTEPS, (len(target),), generator=generator).to(device)
        noisy = scheduler.add_noise(target, noise, times)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            predicted = unet(torch.cat([noisy, condition], dim=1), times).sample
        wanted = scheduler.get_velocity(target, noise, times)
        return torch.nn.functional.mse_loss(predicted.float(), wanted)

    def save(folder: Path) -> None:
        scheduler.save_pretrained(folder)
        unet.save_pretrained(folder)

    training = sr_loop.Training(
        unet, settings, lambda first: _batches(faces, views, settings, seed, first), loss,
        functools.partial(draw, unet, scheduler), save, WEIGHTS,
    )  # fmt: skip
    sr_loop.run(training, directory, watch, watch_every)


def network(settings: SrSettings):
    """An untrained network and the noise schedule it is to be trained with, as diffusers' objects."""
    diffusers = require("diffusers", "teachers")
    levels = len(settings.channels)
    unet = diffusers.UNet2DModel(
        sample_size=settings.size, in_channels=6, out_channels=3, layers_per_block=settings.layers,
        block_out_channels=settings.channels, norm_num_groups=8, add_attention=False,
        down_block_types=["DownBlock2D"] * levels, up_block_types=["UpBlock2D"] * levels,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        TIMESTEPS, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )
    return unet, scheduler


def _batches(faces: Faces, views: Views, settings: SrSettings, seed: int, first: int) -> Iterator[tuple]:
    """Enlarged low-resolution faces and scaled residuals, torch `[B, 3, size, size]` each, from step `first` on."""
    import torch

    def prepared(low: np.ndarray, high: np.ndarray) -> sr_loop.Pair:
        return resize(low, settings.size, "bicubic"), resize(high, settings.size, "area")

    for pair in sr_loop.examples(faces, views, settings, seed, first, prepared):
        condition, target = (to_tensor(images).contiguous(memory_format=torch.channels_last) for images in pair)
        yield condition, (target - condition) * RESIDUAL_SCALE
