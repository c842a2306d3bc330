"""Faces of nobody: each is two faces laid over one another.

Who is taught by a teacher's embeddings needs no names, but many different people. A recogniser sees in a blend of two
aligned faces somebody who is neither, and teaches as well what he looks like; blends are to be had in any number.
(Morphs, in the words of those who attack recognisers with them; a mean of pixels is enough here.)
"""

import dataclasses
import functools
import hashlib

import numpy as np

from gdrd_jax.data.faces import Faces

LEAST_SHARE = 0.3  # of the pixels, of either face


@dataclasses.dataclass(frozen=True)
class Blends:
    """Blends of two faces each, made on access; each a pure function of the faces, `seed` and its number.

    Attributes:
      sources: aligned faces, all of one size.
      count: how many blends there are.
      seed: draws the two faces, which are mirrored, and their shares.
      first: how many are passed over before these, of all that the seed draws.
    """

    sources: tuple[Faces, ...]
    count: int
    seed: int
    first: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 RGB `[H, W, 3]`."""
        random = np.random.default_rng([self.seed, self.first + index])
        numbers = random.choice(self._ends[-1], 2, replace=False)
        share, mirrored = random.uniform(LEAST_SHARE, 1 - LEAST_SHARE), random.integers(2, size=2)
        first, second = (self._face(n)[:, :: 1 - 2 * m].astype(np.float32) for n, m in zip(numbers, mirrored))
        return np.rint(share * first + (1 - share) * second).astype(np.uint8)

    def of_view(self, view: int) -> "Blends":
        """Those of one view: as many others. Who needs no names need not stay the same in all views either."""
        return dataclasses.replace(self, first=view * self.count)

    def _face(self, number: int) -> np.ndarray:
        source = int(np.searchsorted(self._ends, number, "right"))
        return self.sources[source][int(number - self._ends[source] + len(self.sources[source]))]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the faces' contents and of how they are blended."""
        made_from = [*(source.fingerprint for source in self.sources), self.count, self.seed, self.first, LEAST_SHARE]
        return hashlib.sha256(repr(made_from).encode()).hexdigest()
