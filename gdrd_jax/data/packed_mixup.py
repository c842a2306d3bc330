"""Mixup targets: T_d's embeddings of many mixup images of each face of a packed training set.

A student of 100,000 faces learns them by heart within some hundred epochs. T_d's embedding of a mixup image is as far
from those of the two faces as that of another person (`data.mixup`), so such images are new people. The images are
made of the packed faces inside the training step; only the embeddings are stored, D bytes each. The file is in the
safetensors format, N faces in the order of the packed set, V mixup images of each:

  targets   int8 `[N, V, D]`: embeddings in any unit
  partner   int32 `[N, V]`: the face that the face is mixed with
  share     float32 `[N, V]`: of the face's own pixels
  mirrored  uint8 `[N, V]`: 1 where the partner is mirrored
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from tqdm import tqdm

from gdrd_jax.data.mixup import LEAST_SHARE
from gdrd_jax.data.packed import PackedSet, Stored, has_format, quantized
from gdrd_jax.utils.errors import GdrdError, first_line
from gdrd_jax.utils.files import replacing_file

FORMAT = "gdrd_jax mixup targets 1"
MADE_FROM = {"faces": "set of faces", "fingerprint": "teacher"}  # metadata as of the packed set, and their meaning
ARRAYS = ("targets", "partner", "share", "mirrored")
BATCH, THREADS = 2048, 3  # images at once; while some are embedded others are gathered and quantized
# small faces uint8 [n, S, S, 3], those they are mixed with, which of these are mirrored bool [n], own share [n]
Embed = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def plan(seed: int, view: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """With which face, mirrored or not, and how each of `count` faces is mixed: a pure function of its arguments.

    Returns:
      `partner` int32, never the face itself; `share` float32 in 0.3..0.7; `mirrored` uint8; each `[count]`.
    """
    random = np.random.default_rng([seed, view])
    partner = (np.arange(count) + random.integers(1, count, size=count)) % count
    share = random.uniform(LEAST_SHARE, 1 - LEAST_SHARE, size=count)
    return partner.astype(np.int32), share.astype(np.float32), random.integers(2, size=count, dtype=np.uint8)


def make(faces: PackedSet, embed: Embed, path: Path, *, views: int, seed: int, seconds: float = np.inf) -> int:
    """Embeds `views` mixup images of every face and writes them.

    Args:
      faces: the packed training set.
      embed: gives embeddings of the T_d that the set was packed with, float32 `[n, D]`.
      path: of the file.
      views: V.
      seed: draws the mixup images.
      seconds: no view is begun that would probably end later than this.

    Returns:
      V, less than `views` where the time was up; at least 1.
    """
    small, count, start = faces.small.values[:, 0], len(faces.labels), time.monotonic()
    if count < 2:
        raise GdrdError(f"the packed training set has {count} faces; mixup needs at least 2", "mixup-too-few-faces")
    planned = [plan(seed, view, count) for view in range(views)]
    targets, done = np.empty((count, views, faces.targets.values.shape[-1]), np.int8), 0
    starts = range(0, count, BATCH)
    progress = tqdm(total=views * count, desc="mixup targets", unit="image", unit_scale=True)
    with progress, ThreadPoolExecutor(THREADS) as pool:
        for view, (partner, share, mirrored) in enumerate(planned):
            if view and (time.monotonic() - start) * (view + 1) / view > seconds:
                break

            def codes(first: int, partner=partner, share=share, mirrored=mirrored) -> np.ndarray:
                rows = slice(first, first + BATCH)
                return quantized(embed(small[rows], small[partner[rows]], mirrored[rows] == 1, share[rows]))

            for first, found in zip(starts, pool.map(codes, starts)):
                targets[first : first + len(found), view] = found
                progress.update(len(found))
            done = view + 1
    partner, share, mirrored = (np.stack(arrays, axis=1) for arrays in zip(*planned[:done]))
    arrays = {"targets": targets[:, :done], "partner": partner, "share": share, "mirrored": mirrored}
    made_from = {name: faces.about[name] for name in MADE_FROM}
    about = {"format": FORMAT, "seed": str(seed), **made_from}
    with replacing_file(path) as file:
        file.write(safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, about))
    return done


def is_mixup(path: Path) -> bool:
    """Whether a file is one that `make` writes."""
    return has_format(path, FORMAT)


def divided(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files of a packed training set, and those of mixup targets."""
    mixup = [path for path in paths if is_mixup(path)]
    return [path for path in paths if path not in mixup], mixup


def load(path: Path, faces: PackedSet) -> dict[str, Stored]:
    """Reads what `make` wrote: `mixup_targets`, `mixup_partner`, `mixup_share` and `mixup_mirrored`.

    Raises:
      GdrdError: the file is damaged, or of another training set or teacher than `faces`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = file.metadata()
            arrays = {name: file.get_tensor(name) for name in ARRAYS}
        made_from = {name: about[name] for name in MADE_FROM}
        if len({a.shape[:2] for a in arrays.values()}) > 1:
            raise ValueError("its arrays are of different lengths")
        if not 0 <= arrays["partner"].min() <= arrays["partner"].max() < len(arrays["partner"]):
            raise ValueError("it names faces that do not exist")
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(
            f"{path} is damaged ({first_line(error)}); write it again with gdrd pack-mixup", "mixup-damaged"
        ) from error
    for name, meaning in MADE_FROM.items():
        if made_from[name] != faces.about[name]:
            raise GdrdError(
                f"the mixup targets in {path} come from another {meaning} than the packed training set; write them "
                "again with gdrd pack-mixup",
                "mixup-mismatch",
            )
    own, others = (len(faces.labels), faces.targets.values.shape[-1]), arrays["targets"].shape[::2]
    if own != others:
        raise GdrdError(
            f"{path} has mixup targets of {others[0]} faces with {others[1]} dimensions, but the packed training set "
            f"has {own[0]} with {own[1]}; write them again with gdrd pack-mixup",
            "mixup-shape",
        )
    return {f"mixup_{name}": Stored(a) for name, a in arrays.items()}
