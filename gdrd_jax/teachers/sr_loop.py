"""Trains super-resolution (SR) networks: examples, the loop, averaged weights, and stopping and resuming."""

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
from typing import Any

import numpy as np
from tqdm import tqdm

from gdrd_jax.data.degradation import STRENGTHS, Views
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import batch_rows, in_parallel
from gdrd_jax.teachers import torch_network
from gdrd_jax.utils.errors import GdrdError, first_line, require
from gdrd_jax.utils.files import not_written, write_json
from gdrd_jax.utils.signals import Interrupted, Signals

LOG = logging.getLogger(__name__)
RECORD = "training.json"
STATE = "training.pt"  # of a training that is not finished
WARMUP_STEPS = 50
SECONDS_BETWEEN_SAVES = 30.0
# Called with the step's number and a function `(uint8 low-resolution faces, seed) -> uint8 faces`.
Callback = Callable[[int, Callable[[np.ndarray, int], np.ndarray]], None]
Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SrSettings:
    """Size of the network and of its training.

    Attributes:
      size: side of the super-resolved face in pixels.
      channels: one number a level of the network.
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
                f"the SR network cannot have {self}: size, layers and batch must be at least 1, channels at least one "
                "number of at least 1, the learning rate must be above 0, and ema at least 0 and below 1",
                "sr-settings",
            )


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
      network: a torch module.
      settings: see `SrSettings`.
      batches: number of the first step -> tuples of tensors, from that step on.
      loss: of a step's number and a batch on the network's device, a scalar tensor.
      draw: what the network makes of faces, see `Callback`.
      save: writes the network into a folder.
      weights: name of a file that `save` writes; while it is there and no state is, the training is done.
    """

    network: Any
    settings: SrSettings
    batches: Callable[[int], Iterator[tuple]]
    loss: Callable[..., Any]
    draw: Callable[[np.ndarray, int], np.ndarray]
    save: Callable[[Path], None]
    weights: str


def run(training: Training, directory: Path, watch: Callback | None = None, watch_every: int = 0) -> None:
    """Trains a network and saves it in `directory`, which `claim` was called for.

    Goes on from `directory/training.pt` when that is there; does nothing when it is done.

    Args:
      training: see `Training`.
      directory: an existing folder.
      watch: called with the averaged weights in place, every `watch_every` steps and after the last.
      watch_every: 0 is after the last step alone.

    Raises:
      GdrdError: the loss is not finite, or the state is damaged.
      Interrupted: SIGINT or SIGTERM arrived; the state was saved first.
    """
    torch, training_utils = require("torch", "teachers"), require("diffusers.training_utils", "teachers")
    network, settings, device = training.network, training.settings, torch_network.device()
    network.to(device, memory_format=torch.channels_last)
    ema = training_utils.EMAModel(network.parameters(), decay=settings.ema)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    state = directory / STATE
    if (directory / training.weights).exists() and not state.exists():
        LOG.info("%s: done before", directory)
        return
    done = _restore(state, network, ema, optimizer, device)

    def evaluate_samples() -> None:
        with _averaged(network, ema):
            watch(done, training.draw)

    saved = time.monotonic()
    progress = tqdm(total=settings.steps, initial=done, desc="training SR network", unit="step")
    with Signals() as signals, progress:
        for batch in training.batches(done):
            loss = training.loss(done, *(x.to(device) for x in batch))
            optimizer.param_groups[0]["lr"] = _learning_rate(done, settings)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            ema.step(network.parameters())
            done += 1
            progress.update()
            if not math.isfinite(loss.item()):
                raise GdrdError(
                    f"the SR network's loss is {loss.item()} at step {done}; lower its learning rate", "loss-not-finite"
                )
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if signals.received or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                _save(state, done, network, ema, optimizer)
                saved = time.monotonic()
            if signals.received:
                raise Interrupted(f"SR network at step {done} of {settings.steps}", signals.received)
            if watch and watch_every and done % watch_every == 0 and done < settings.steps:
                _save(state, done, network, ema, optimizer)
                evaluate_samples()
    _save(state, done, network, ema, optimizer)  # while it is there, what follows is not done
    if watch:
        evaluate_samples()
    ema.copy_to(network.parameters())
    with _as_user_error(directory):
        training.save(directory)
    state.unlink()


def claim(directory: Path, faces: Faces, views: Views, settings: SrSettings, seed: int, **about: object) -> None:
    """Notes what is trained in `directory`, or refuses another's.

    Args:
      directory: an existing folder.
      faces, views, settings, seed: of the training.
      about: what else the network depends on, as JSON can hold it; a name, under which a file may be opened, does not
        count.

    Raises:
      GdrdError: `directory` holds a training with other settings or faces.
    """
    ours = {
        "faces": faces.fingerprint or faces.signature(), "resolution": views.resolution, "kernel": views.kernel,
        "settings": dataclasses.asdict(settings), "seed": seed, **about,
    }  # fmt: skip
    if views.degradation().degraded:
        ours["degradation"] = {name: getattr(views, name) for name in STRENGTHS}
    ours, path = json.loads(json.dumps(ours)), directory / RECORD
    if not path.exists():
        write_json(path, ours)
    else:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in ours | theirs if _without_name(theirs.get(key)) != _without_name(ours.get(key))]
        if changed:
            raise GdrdError(
                f"{directory} holds an SR network made from other {', '.join(changed)}; remove it or choose another "
                "folder",
                "sr-other-training",
            )


def _without_name(value: object) -> object:
    return {key: one for key, one in value.items() if key != "name"} if isinstance(value, dict) else value


def examples(
    faces: Faces, views: Views, settings: SrSettings, seed: int, first: int, prepared: Callable[..., Pair]
) -> Iterator[Pair]:
    """Faces to learn from, of each step from step `first` on.

    Args:
      faces: to learn from, mirrored at random if `views.mirror`.
      views: makes the low-resolution face, degraded anew at each use if `views` degrades at all.
      settings: of the training.
      seed: of batches and degradation.
      first: number of a step.
      prepared: of a low-resolution face and its original, uint8 `[H, W, 3]`, what is learned from; called by threads.

    Returns:
      What `prepared` returns, stacked: uint8 `[batch, ...]` twice.
    """
    views, degraded = dataclasses.replace(views, seed=seed), views.degradation().degraded

    @functools.lru_cache(maxsize=8)
    def chosen(step: int) -> Pair:
        rows, mirrored = batch_rows(seed, range(step, step + 1), settings.batch, len(faces), views.exact)
        return rows[0], mirrored[0]

    def example(position: int) -> Pair:
        step, number = divmod(position, settings.batch)
        rows, mirrored = chosen(step)
        row, mirror = int(rows[number]), int(mirrored[number])
        high = views.augment(faces[row], row, mirror)
        # A view number of its own for each step degrades a face differently at each use.
        return prepared(views.degrade(high, row, 2 * (1 + step) if degraded else 0), high)

    stream = in_parallel(example, range(first * settings.batch, settings.steps * settings.batch))
    while batch := list(itertools.islice(stream, settings.batch)):
        low, high = (np.stack(images) for images in zip(*batch))
        yield low, high


def _learning_rate(step: int, settings: SrSettings) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


@contextlib.contextmanager
def _averaged(network, ema) -> Iterator[None]:
    """The network with its averaged weights."""
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    network.eval()
    try:
        yield
    finally:
        network.train()
        ema.restore(network.parameters())


@contextlib.contextmanager
def _as_user_error(directory: Path) -> Iterator[None]:
    """Turns what torch, safetensors and diffusers raise where they cannot write into one of our errors."""
    try:
        yield
    except Exception as error:
        raise not_written(directory, error) from error


def _save(path: Path, done: int, network, ema, optimizer) -> None:
    import torch

    temporary = path.with_suffix(".tmp")
    # "unet" whatever the network is, so that trainings of version 0.4 go on.
    state = {"done": done, "unet": network.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    with _as_user_error(path.parent):
        torch.save(state, temporary)
        os.replace(temporary, path)


def _restore(path: Path, network, ema, optimizer, device) -> int:
    import torch

    if not path.exists():
        return 0
    try:
        # On the CPU first: Adam's counters belong there, and its moments follow their parameters.
        state = torch.load(path, weights_only=True, map_location="cpu")
        network.load_state_dict(state["unet"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state.get("optimizer") or state["optimiser"])  # the name in versions up to 0.4
    except Exception as error:  # torch, pickle, zipfile and struct each raise their own
        raise GdrdError(
            f"{path} is damaged ({first_line(error)}); remove it to start again", "checkpoint-damaged"
        ) from error
    ema.to(device)
    return state["done"]
