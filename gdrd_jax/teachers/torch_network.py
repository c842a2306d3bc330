"""What the teachers that run in torch share: the device, the precision, and one batch after the other."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gdrd_jax.teachers.interface import PRECISIONS, GenerativeTeacher
from gdrd_jax.utils import launch
from gdrd_jax.utils.errors import GdrdError, require

LOG = logging.getLogger(__name__)
BATCH = 32  # faces that a generative teacher takes at once
LEAST_COSINE = 0.999  # to float32, below which bfloat16 is refused


def may_have_gpu() -> bool:
    """Whether the machine shows a GPU's device file; without one torch, which takes seconds, need not be asked."""
    return any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def device():
    """This process' GPU if there is one, else the CPU."""
    torch = require("torch", "teachers")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launch.from_environment().local_rank % torch.cuda.device_count())


@contextlib.contextmanager
def precision(name: str, where):
    """Inference in "float32", without cuDNN's TF32, or in torch's mixed "bfloat16", on the device `where`."""
    torch = require("torch", "teachers")
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), exact, torch.autocast(where.type, torch.bfloat16, enabled=name == "bfloat16"):
        yield


def in_batches(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int) -> np.ndarray:
    """`function` of at most `batch` images at a time, fewer where a GPU's memory is too small, put together again."""
    found, start = [], 0
    while start < len(images):
        try:
            found.append(function(images[start : start + batch]))
            start += batch
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if "out of memory" not in str(error) or batch == 1:
                raise
            batch //= 2
            LOG.warning("the GPU's memory is too small; batches of %d from here on", batch)
    return np.concatenate(found)


def check_precision(name: str, run: Callable[[str], np.ndarray], where: str) -> None:
    """Refuses bfloat16 where it changes a network's output.

    Args:
      name: of the precision asked for.
      run: precision -> the network's output for some faces, `[N, ...]`.
      where: named in errors.

    Raises:
      GdrdError: no such precision, or the smallest cosine to float32 is not above 0.999.
    """
    if name not in PRECISIONS:
        raise GdrdError(f"unknown precision {name!r}; choose {' or '.join(PRECISIONS)}", "precision-unknown")
    if name == "float32":
        return
    exact, fast = (values.reshape(len(values), -1).astype(np.float64) for values in map(run, ("float32", name)))
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(fast, axis=1)
    cosine = ((exact * fast).sum(axis=1) / np.maximum(lengths, 1e-30)).min()
    if not cosine > LEAST_COSINE:
        raise GdrdError(
            f"the output of {where} in {name} has a cosine of {cosine:.4f} to that in float32; choose float32",
            "precision-changes-output",
        )


class FeatureExtractor(GenerativeTeacher):
    """A generative teacher that runs in torch; its `settings` have "tap" and "precision".

    It has `_encode(lr, precision, taps)`, tap -> output.
    """

    def _ready(self, where: str) -> None:
        """The last thing a network does at its start."""
        self._tap, self._precision = self.settings["tap"], self.settings["precision"]
        check_precision(
            self._precision, lambda kind: self._encode(trial(16), kind, (self._tap,))[self._tap],
            f"{where} at tap {self._tap}",
        )  # fmt: skip

    def features(self, images: np.ndarray) -> np.ndarray:
        return in_batches(lambda some: self._encode(some, self._precision, (self._tap,))[self._tap], images, BATCH)

    def features_at(self, images: np.ndarray, taps: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Of at most some 32 images."""
        return self._encode(images, self._precision, taps)


def trial(side: int, count: int = 4) -> np.ndarray:
    """Images to try a network on, half of them smooth as faces are and half noise: uint8 `[count, side, side, 3]`."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    waves = random.uniform(1, 4, size=(count // 2, 1, 1, 3)) * (x + 2 * y)[..., None]
    smooth = 127.5 + 100 * np.sin(2 * np.pi * waves + random.uniform(0, 6, size=(count // 2, 1, 1, 3)))
    noise = random.integers(256, size=(count - count // 2, side, side, 3))
    return np.concatenate([smooth, noise]).astype(np.uint8)
