"""Trains a small SR diffusion teacher on the user's own faces."""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gdrd_jax.data.degradation import STRENGTHS, Views, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import batch_rows, in_parallel
from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.sr_diffusion import RESIDUAL_SCALE, check_tap, draw, to_tensor
from gdrd_jax.utils.errors import GdrdError, first_line, require
from gdrd_jax.utils.files import not_written, write_json
from gdrd_jax.utils.signals import Interrupted, Signals

LOG = logging.getLogger(__name__)
WEIGHTS = "diffusion_pytorch_model.safetensors"
TIMESTEPS = 1000
WARMUP_STEPS = 50
SECONDS_BETWEEN_SAVES = 30.0
# Called with the step's number and a function `(uint8 low-resolution faces, seed) -> uint8 faces`.
Callback = Callable[[int, Callable[[np.ndarray, int], np.ndarray]], None]


@dataclasses.dataclass(frozen=True)
class SrSettings:
    """Size of the network and of its training.

    Attributes:
      size: side of the super-resolved face in pixels, a multiple of 2^(levels - 1).
      channels: one number a level of the U-Net, each a multiple of 8.
      layers: residual blocks a level.
      steps, batch, learning_rate: AdamW with cosine decay; 0 steps leave the network untrained, a control.
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
        least = {"size": 1, "layers": 1, "steps": 0, "batch": 1}
        enough = (
            all(getattr(self, name) >= value for name, value in least.items()) and min(self.channels, default=0) > 0
        )
        if not (enough and 0 < self.learning_rate < math.inf and 0 <= self.ema < 1):
            raise GdrdError(
                f"the SR teacher cannot have {self}: size, layers and batch must be at least 1, channels at least one "
                "number of at least 1, the learning rate must be above 0, and ema at least 0 and below 1",
                "sr-settings",
            )
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
    watch: Callback | None = None, watch_every: int = 0,
) -> None:  # fmt: skip
    """Trains the network and saves it in `directory` in diffusers' layout.

    Goes on from `directory/training.pt` when that is there; does nothing when it is done.

    Args:
      faces: to learn from, mirrored at random if `views.mirror`.
      views: makes the low-resolution face, degraded anew at each use if `views` degrades at all.
      settings: see `SrSettings`.
      directory: an existing folder.
      seed: of weights, batches, degradation, timesteps and noise.
      watch: called with the averaged weights in place, every `watch_every` steps and after the last.
      watch_every: 0 is after the last step alone.

    Raises:
      GdrdError: `directory` holds a training with other settings or faces, or the loss is not finite.
      Interrupted: SIGINT or SIGTERM arrived; the state was saved first.
    """
    torch, training_utils = require("torch", "teachers"), require("diffusers.training_utils", "teachers")
    directory = Path(directory)
    _claim(directory, faces, views, settings, seed)
    device = torch_network.device()
    torch.manual_seed(seed)
    unet, scheduler = network(settings)
    unet.to(device, memory_format=torch.channels_last)
    ema = training_utils.EMAModel(unet.parameters(), decay=settings.ema)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.learning_rate)
    state = directory / "training.pt"
    if (directory / WEIGHTS).exists() and not state.exists():
        LOG.info("%s: done before", directory)
        return
    done = _restore(state, unet, ema, optimizer, device)

    def evaluate_samples() -> None:
        with _averaged(unet, ema):
            watch(done, functools.partial(draw, unet, scheduler))

    saved = time.monotonic()
    progress = tqdm(total=settings.steps, initial=done, desc="training SR teacher", unit="step")
    with Signals() as signals, progress:
        for condition, target in _batches(faces, views, settings, seed, done):
            # One generator a step makes the run independent of where it was interrupted.
            generator = torch.Generator().manual_seed(seed * 1_000_003 + done)
            noise = torch.randn(target.shape, generator=generator).to(device)
            times = torch.randint(TIMESTEPS, (len(target),), generator=generator).to(device)
            condition, target = condition.to(device), target.to(device)
            noisy = scheduler.add_noise(target, noise, times)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                predicted = unet(torch.cat([noisy, condition], dim=1), times).sample
            wanted = scheduler.get_velocity(target, noise, times)
            loss = torch.nn.functional.mse_loss(predicted.float(), wanted)
            optimizer.param_groups[0]["lr"] = _learning_rate(done, settings)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            ema.step(unet.parameters())
            done += 1
            progress.update()
            if not math.isfinite(loss.item()):
                raise GdrdError(
                    f"the SR teacher's loss is {loss.item()} at step {done}; lower its learning rate", "loss-not-finite"
                )
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if signals.received or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                _save(state, done, unet, ema, optimizer)
                saved = time.monotonic()
            if signals.received:
                raise Interrupted(f"SR teacher at step {done} of {settings.steps}", signals.received)
            if watch and watch_every and done % watch_every == 0 and done < settings.steps:
                _save(state, done, unet, ema, optimizer)
                evaluate_samples()
    _save(state, done, unet, ema, optimizer)  # while it is there, what follows is not done
    if watch:
        evaluate_samples()
    ema.copy_to(unet.parameters())
    with _as_user_error(directory):
        scheduler.save_pretrained(directory)
        unet.save_pretrained(directory)
    state.unlink()


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


def _claim(directory: Path, faces: Faces, views: Views, settings: SrSettings, seed: int) -> None:
    """Notes what is trained in `directory`, or refuses another's."""
    ours = {
        "faces": faces.fingerprint or faces.signature(), "resolution": views.resolution, "kernel": views.kernel,
        "settings": dataclasses.asdict(settings), "seed": seed,
    }  # fmt: skip
    if views.degradation().degraded:
        ours["degradation"] = {name: getattr(views, name) for name in STRENGTHS}
    ours, path = json.loads(json.dumps(ours)), directory / "training.json"
    if path.exists() and (theirs := json.loads(path.read_text(encoding="utf-8"))) != ours:
        changed = ", ".join(key for key in ours | theirs if theirs.get(key) != ours.get(key))
        raise GdrdError(
            f"{directory} holds an SR teacher made from other {changed}; remove it or choose another folder",
            "sr-other-training",
        )
    write_json(path, ours)


def _batches(faces: Faces, views: Views, settings: SrSettings, seed: int, first: int) -> Iterator[tuple]:
    """Enlarged low-resolution faces and scaled residuals, torch `[B, 3, size, size]` each, from step `first` on."""
    import torch

    views, degraded = dataclasses.replace(views, seed=seed), views.degradation().degraded

    @functools.lru_cache(maxsize=8)
    def chosen(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows, mirrored = batch_rows(seed, range(step, step + 1), settings.batch, len(faces), views.exact)
        return rows[0], mirrored[0]

    def example(position: int) -> tuple[np.ndarray, np.ndarray]:
        step, number = divmod(position, settings.batch)
        rows, mirrored = chosen(step)
        row, mirror = int(rows[number]), int(mirrored[number])
        high = views.augment(faces[row], row, mirror)
        # A view number of its own for each step degrades a face differently at each use.
        low = views.degrade(high, row, 2 * (1 + step) if degraded else 0)
        return resize(low, settings.size, "bicubic"), resize(high, settings.size, "area")

    stream = in_parallel(example, range(first * settings.batch, settings.steps * settings.batch))
    while examples := list(itertools.islice(stream, settings.batch)):
        condition, target = (to_tensor(np.stack(images)) for images in zip(*examples))
        condition, target = (x.contiguous(memory_format=torch.channels_last) for x in (condition, target))
        yield condition, (target - condition) * RESIDUAL_SCALE


def _learning_rate(step: int, settings: SrSettings) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


@contextlib.contextmanager
def _averaged(unet, ema) -> Iterator[None]:
    """The network with its averaged weights."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    unet.eval()
    try:
        yield
    finally:
        unet.train()
        ema.restore(unet.parameters())


@contextlib.contextmanager
def _as_user_error(directory: Path) -> Iterator[None]:
    """Turns what torch, safetensors and diffusers raise where they cannot write into one of our errors."""
    try:
        yield
    except Exception as error:
        raise not_written(directory, error) from error


def _save(path: Path, done: int, unet, ema, optimizer) -> None:
    import torch

    temporary = path.with_suffix(".tmp")
    state = {"done": done, "unet": unet.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    with _as_user_error(path.parent):
        torch.save(state, temporary)
        os.replace(temporary, path)


def _restore(path: Path, unet, ema, optimizer, device) -> int:
    import torch

    if not path.exists():
        return 0
    try:
        # On the CPU first: Adam's counters belong there, and its moments follow their parameters.
        state = torch.load(path, weights_only=True, map_location="cpu")
        unet.load_state_dict(state["unet"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state.get("optimizer") or state["optimiser"])  # the name in versions up to 0.4
    except Exception as error:  # torch, pickle, zipfile and struct each raise their own
        raise GdrdError(
            f"{path} is damaged ({first_line(error)}); remove it to start again", "checkpoint-damaged"
        ) from error
    ema.to(device)
    return state["done"]
