"""How good an SR network is while it is trained: pictures, PSNR and the identity that a recognizer finds in them."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gdrd_jax.data.degradation import Views, resize_all
from gdrd_jax.data.faces import Faces
from gdrd_jax.inference.embedders import Embedder
from gdrd_jax.utils.arrays import unit
from gdrd_jax.utils.files import write_json
from gdrd_jax.utils.pictures import grid, png

LOG = logging.getLogger(__name__)
SHOWN, SAMPLES = 12, 2  # faces in the picture, and samples drawn of each
FACES = 96  # that are measured


class SampleCallback:
    """Looks at a network from time to time; for `sr_loop.run`.

    Args:
      faces: aligned, of people it is not trained on; at most 96 of them, evenly chosen, are measured.
      views: makes the low-resolution face, degraded as views >= 2 are if `views` degrades at all.
      size: side of the super-resolved face.
      recognizer: T_d, or None to measure no identity.
      folder: for `step_N.png`, with a line each of low-resolution faces, bicubic ones, samples and
        originals, and `quality.json`, step -> figures.
      seed: of the samples.
    """

    def __init__(self, faces: Faces, views: Views, size: int, recognizer: Any, folder: str | os.PathLike, *, seed: int):
        folder = Path(folder)
        rows = np.unique(np.linspace(0, len(faces) - 1, FACES).astype(int)).tolist()
        high = [faces[row] for row in rows]
        view = 2 if views.degradation().degraded else 0
        self._low = np.stack([views.degrade(face, row, view) for row, face in zip(rows, high)])
        self._originals, self._bicubic = resize_all(high, size), resize_all(self._low, size, "bicubic")
        self._folder, self._embedder, self._seed = folder, None, seed
        if recognizer is not None:
            forward = lambda faces: unit(recognizer.embed(faces))  # noqa: E731
            self._embedder = Embedder("recognizer", recognizer.input_size, forward, kernel="bicubic")
            self._identity = self._embedder.embed(np.stack(high))
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, step: int, super_resolve: Callable[[np.ndarray, int], np.ndarray]) -> None:
        """Draws and measures; see `sr_loop.Callback`."""
        drawn = super_resolve(self._low, self._seed)
        figures = {"sr": self._figures(drawn), "bicubic": self._figures(self._bicubic)}
        shown = np.unique(np.linspace(0, len(drawn) - 1, SHOWN).astype(int))
        more = [super_resolve(self._low[shown], self._seed + number) for number in range(1, SAMPLES)]
        lines = [self._low[shown], self._bicubic[shown], drawn[shown], *more, self._originals[shown]]
        (self._folder / f"step_{step:06d}.png").write_bytes(png(grid([list(line) for line in lines])))
        path = self._folder / "quality.json"
        steps = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_json(path, {**steps, str(step): {**figures, "faces": len(drawn)}})
        LOG.info(
            "step %d: %s", step,
            "; ".join(f"{name} {_words(figures[name])}" for name in ("sr", "bicubic")),
        )  # fmt: skip

    def _figures(self, drawn: np.ndarray) -> dict:
        """Means over faces, with standard errors: PSNR in dB and the cosine of embeddings to the original's."""
        error = ((drawn.astype(np.float64) - self._originals) ** 2).mean(axis=(1, 2, 3))
        found = {"psnr": 10 * np.log10(255**2 / np.maximum(error, 1e-9))}
        if self._embedder is not None:
            found["cosine"] = (self._embedder.embed(drawn) * self._identity).sum(axis=1)
        return {
            name: {"mean": float(values.mean()), "se": float(values.std() / len(values) ** 0.5)}
            for name, values in found.items()
        }


def _words(figures: dict) -> str:
    units = {"psnr": ("PSNR {:.2f} ± {:.2f} dB"), "cosine": "identity cosine {:.3f} ± {:.3f}"}
    return ", ".join(units[name].format(value["mean"], value["se"]) for name, value in figures.items())
