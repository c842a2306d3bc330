"""From which similarity on two faces pass for one person's, by the share of strangers that then do, too (FAR)."""

import dataclasses
import math

import numpy as np

from gdrd_jax.utils.errors import GdrdError

FACES_PER_PERSON = 10  # that are compared; more of them say little about other people
FACES = 6000  # of all; 18 million pairs
LEAST_PEOPLE = 3
PER_DECADE = 20  # FARs at which a threshold is kept
LARGEST_FAR = 0.5


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds learned on faces of people whom the student was not taught to tell apart.

    Attributes:
      fars: false accept rates, falling.
      values: of the similarity, one each: at it or above, at most that share of the impostor pairs lies.
      tars: the share of genuine pairs that does.
      people, faces: how many were compared.
      between: how many pairs of two different people; images of the same two are no further evidence.
      genuine: how many pairs of faces of one person.
      name: of the faces.
    """

    fars: tuple[float, ...]
    values: tuple[float, ...]
    tars: tuple[float, ...]
    people: int
    faces: int
    between: int
    genuine: int
    name: str

    @classmethod
    def learn(
        cls, embeddings: np.ndarray, labels: np.ndarray, name: str, gallery: np.ndarray | None = None
    ) -> "Thresholds":
        """Compares all faces with each other.

        Args:
          embeddings: float `[N, D]`, unit length.
          labels: who it is, int `[N]`.
          name: of the faces.
          gallery: the same faces as they are in a gallery, `[N, D]`, with which all others are compared as probes.

        Raises:
          GdrdError: fewer than three people, or nobody with two faces.
        """
        rows = compared(labels)
        embeddings, labels = embeddings[rows], labels[rows]
        if gallery is None:
            first, second = np.triu_indices(len(labels), 1)
            scores = (embeddings @ embeddings.T)[first, second]
        else:
            first, second = np.nonzero(~np.eye(len(labels), dtype=bool))
            scores = (embeddings @ gallery[rows].T)[first, second]
        same = labels[first] == labels[second]
        people = len(np.unique(labels))
        if people < LEAST_PEOPLE or not same.any():
            raise GdrdError(
                f"{name} has {people} people and {same.sum()} pairs of faces of one; thresholds need at least "
                f"{LEAST_PEOPLE} people, one of them with two faces"
            )
        between = people * (people - 1) // 2
        impostors, genuine = np.sort(scores[~same])[::-1], np.sort(scores[same])
        decades = np.log10(between * LARGEST_FAR)
        fars = LARGEST_FAR * 10.0 ** -np.linspace(0, decades, int(decades * PER_DECADE) + 1)
        # Above the first impostor that would be one too many.
        values = np.nextafter(impostors[np.floor(fars * len(impostors) * (1 + 1e-9)).astype(int)], np.float32(2))
        tars = 1 - np.searchsorted(genuine, values) / len(genuine)
        kept = (tuple(map(float, x)) for x in (fars, values, tars))
        return cls(*kept, people, len(labels), between, len(genuine), name)

    def at(self, far: float) -> float:
        """The threshold for a false accept rate.

        Of the kept rates the next finer one serves, so it is rather too strict.

        Raises:
          GdrdError: the faces it was learned on cannot tell so small a rate from 0, or it is no rate.
        """
        return self.values[self._index(far)]

    def supports(self, far: float) -> bool:
        """Whether the faces it was learned on can tell so small a rate."""
        return far >= self.fars[-1] * (1 - 1e-9)

    def finest(self) -> float:
        """The smallest rate that it can tell, rounded up to two digits."""
        unit = 10.0 ** (math.floor(math.log10(self.fars[-1])) - 1)
        return math.ceil(self.fars[-1] / unit * (1 - 1e-9)) * unit

    def tar(self, far: float) -> float:
        """The true accept rate there, of the same faces; raises as `at`."""
        return self.tars[self._index(far)]

    def _index(self, far: float) -> int:
        if not 0 < far <= LARGEST_FAR:
            raise GdrdError(f"a false accept rate of {far:g} was asked for; it is above 0 and at most {LARGEST_FAR:g}")
        if not self.supports(far):
            raise GdrdError(
                f"a false accept rate of {far:g} is finer than the calibration supports: {self.between} pairs "
                f"of different people ({self.name}) are enough for {self.finest():.2g}; "
                "export the student again with more people (--calibration)"
            )
        return next(i for i, kept in enumerate(self.fars) if kept <= far * (1 + 1e-9))


def compared(labels: np.ndarray) -> np.ndarray:
    """Rows of the faces that `Thresholds.learn` compares, rising: not too many of anybody, nor of all."""
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    number = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    order, number = order[number < FACES_PER_PERSON], number[number < FACES_PER_PERSON]
    two_of_each_first = np.argsort(number // 2, kind="stable")
    return np.sort(order[two_of_each_first][:FACES])
