"""Trains a small SR diffusion teacher on the user's own faces."""

import dataclasses
import math
import os
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gdrd_jax.data.degrade import Views, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import batch_rows
from gdrd_jax.errors import GdrdError, require
from gdrd_jax.interrupt import Interrupted, Signals
from gdrd_jax.teachers.sr_diffusion import RESIDUAL_SCALE, check_tap, to_tensor

TIMESTEPS = 1000
WARMUP_STEPS = 50
SECONDS_BETWEEN_SAVES = 30.0


@dataclasses.dataclass(frozen=True)
class SrSettings:
    """Size of the network and of its training.

    Attributes:
      size: side of the super-resolved face in pixels, a multiple of 2^(levels - 1).
      channels: one number a level of the U-Net, each a multiple of 8.
      layers: residual blocks a level.
      steps, batch, learning_rate: AdamW with cosine decay.
      ema: decay of the averaged weights, which are the ones kept.
    """

    size: int
    channels: tuple[int, ...]
    layers: int
    steps: int
    batch: int
    learning_rate: float
    ema: float

    def __post_init__(self):
        if not self.channels or self.size % 2 ** (len(self.channels) - 1) or any(c % 8 for c in self.channels):
            raise GdrdError(
                f"config.sr: size {self.size} must be divisible by {2 ** max(0, len(self.channels) - 1)} "
                f"and every one of the channels {self.channels}, at least one, by 8"
            )

    def check_tap(self, tap: str) -> None:
        """Raises GdrdError unless the network will have the tap."""
        check_tap(tap, len(self.channels))


def train(faces: Faces, views: Views, settings: SrSettings, directory: Path, *, seed: int) -> None:
    """Trains the network and saves it in `directory` in diffusers' layout.

    Goes on from `directory/training.pt` when that is there.

    Args:
      faces: to learn from, mirrored at random.
      views: makes the low-resolution face.
      settings: see `SrSettings`.
      directory: an existing folder.
      seed: of weights, batches, timesteps and noise.

    Raises:
      Interrupted: SIGINT or SIGTERM arrived; the state was saved first.
    """
    torch, diffusers = require("torch", "teachers"), require("diffusers", "teachers")
    training_utils = require("diffusers.training_utils", "teachers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    levels = len(settings.channels)
    unet = diffusers.UNet2DModel(
        sample_size=settings.size, in_channels=6, out_channels=3, layers_per_block=settings.layers,
        block_out_channels=settings.channels, norm_num_groups=8, add_attention=False,
        down_block_types=["DownBlock2D"] * levels, up_block_types=["UpBlock2D"] * levels,
    ).to(device, memory_format=torch.channels_last)  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        TIMESTEPS, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )
    ema = training_utils.EMAModel(unet.parameters(), decay=settings.ema)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=settings.learning_rate)
    state = directory / "training.pt"
    done = _restore(state, unet, ema, optimiser, device)

    saved = time.monotonic()
    progress = tqdm(total=settings.steps, initial=done, desc="training SR teacher", unit="step")
    with Signals() as signals, progress:
        while done < settings.steps:
            rows, mirrored = batch_rows(seed, range(done, done + 1), settings.batch, len(faces), 2)
            condition, target = _batch(faces, views, rows[0], mirrored[0], settings.size, device)
            # One generator a step makes the run independent of where it was interrupted.
            generator = torch.Generator().manual_seed(seed * 1_000_003 + done)
            noise = torch.randn(target.shape, generator=generator).to(device)
            times = torch.randint(TIMESTEPS, (len(target),), generator=generator).to(device)
            noisy = scheduler.add_noise(target, noise, times)
            predicted = unet(torch.cat([noisy, condition], dim=1), times).sample
            loss = torch.nn.functional.mse_loss(predicted, scheduler.get_velocity(target, noise, times))
            optimiser.param_groups[0]["lr"] = _learning_rate(done, settings)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimiser.step()
            ema.step(unet.parameters())
            done += 1
            progress.update()
            if not math.isfinite(loss.item()):
                raise GdrdError(f"the SR teacher's loss is {loss.item()} at step {done}; lower config.sr.learning_rate")
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if signals.received or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                _save(state, done, unet, ema, optimiser)
                saved = time.monotonic()
            if signals.received:
                raise Interrupted(f"SR teacher at step {done} of {settings.steps}", signals.received)
    ema.copy_to(unet.parameters())
    scheduler.save_pretrained(directory)
    unet.save_pretrained(directory)
    state.unlink(missing_ok=True)


def _batch(faces: Faces, views: Views, rows: np.ndarray, mirrored: np.ndarray, size: int, device: str):
    """Enlarged low-resolution faces and scaled residuals, torch `[B, 3, size, size]` each."""
    high = [views.high(faces[row], row, mirror) for row, mirror in zip(rows, mirrored)]
    low = [views.low(face, row, mirror) for face, row, mirror in zip(high, rows, mirrored)]
    condition = to_tensor(np.stack([resize(face, size, "bicubic") for face in low])).to(device)
    target = to_tensor(np.stack([resize(face, size, "area") for face in high])).to(device)
    return condition, (target - condition) * RESIDUAL_SCALE


def _learning_rate(step: int, settings: SrSettings) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def _save(path: Path, done: int, unet, ema, optimiser) -> None:
    import torch

    temporary = path.with_suffix(".tmp")
    state = {"done": done, "unet": unet.state_dict(), "ema": ema.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save(state, temporary)
    os.replace(temporary, path)


def _restore(path: Path, unet, ema, optimiser, device: str) -> int:
    import torch

    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=device)
    unet.load_state_dict(state["unet"])
    ema.load_state_dict(state["ema"])
    optimiser.load_state_dict(state["optimiser"])
    return state["done"]
