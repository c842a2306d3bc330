"""Mixup images: weighted means of the pixels of two faces.

A student that learns from a teacher's embeddings needs many different faces, not their identities. In a mixup image
of two aligned faces a recognizer sees a person who is neither of the two, so mixup images multiply the faces at will.
Unlike in mixup (Zhang et al., arXiv 1710.09412) the target is not mixed: the teacher embeds the image. The literature
on attacks calls such images morphs.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from gdrd_jax.data.faces import Faces

LEAST_SHARE = 0.3  # of the pixels, of either face


@dataclasses.dataclass(frozen=True)
class MixupFaces:
    """Mixup images of two faces each, made on access; each a pure function of the faces, `seed` and its number.

    Attributes:
      sources: aligned faces, all of one size.
      count: how many mixup images there are.
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
        """uint8 `[H, W, C]`."""
        random = np.random.default_rng([self.seed, self.first + index])
        numbers = random.choice(self._ends[-1], 2, replace=False)
        share, mirrored = random.uniform(LEAST_SHARE, 1 - LEAST_SHARE), random.integers(2, size=2)
        mirrored = mirrored if self._mirror else np.zeros(2, int)
        first, second = (self._face(n)[:, :: 1 - 2 * m].astype(np.float32) for n, m in zip(numbers, mirrored))
        return np.rint(share * first + (1 - share) * second).astype(np.uint8)

    def of_view(self, view: int) -> "MixupFaces":
        """The mixup images of one view: others in each view, because no labels have to stay the same."""
        return dataclasses.replace(self, first=view * self.count)

    @property
    def _mirror(self) -> bool:
        return self.sources[0].task.mirror

    def _face(self, number: int) -> np.ndarray:
        source = int(np.searchsorted(self._ends, number, "right"))
        return self.sources[source][int(number - self._ends[source] + len(self.sources[source]))]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the faces' contents and of how they are mixed."""
        made_from = [*(source.fingerprint for source in self.sources), self.count, self.seed, self.first, LEAST_SHARE]
        made_from += [] if self._mirror else ["not mirrored"]
        return hashlib.sha256(repr(made_from).encode()).hexdigest()
