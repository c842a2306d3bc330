"""Decision thresholds on the similarity of two faces, by the false accept rate (FAR) of a comparison or of a search."""

import dataclasses
import math
from numbers import Integral, Real

import numpy as np

from gdrd_jax.utils.arrays import number_within
from gdrd_jax.utils.errors import GdrdError

FACES_PER_PERSON = 10  # that are compared at most; more say little about other people
FACES = 6000  # that are compared at most, in 18 million pairs
LEAST_PEOPLE = 3
PER_DECADE = 20  # FARs per factor of 10 at which a threshold is kept
LARGEST_FAR = 0.5


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Decision thresholds, learned on faces of people that the student was not trained on.

    Attributes:
      fars: false accept rates, decreasing.
      values: for each rate, the threshold: the similarity that at most this share of the impostor pairs reaches.
      tars: for each rate, the share of genuine pairs that reaches this similarity.
      people, faces: numbers of people and faces that were compared.
      between: number of pairs of different people; more images of the same two people add no evidence.
      genuine: number of pairs of faces of the same person.
      name: name of the data set.
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
        """Learns thresholds by comparing all faces with each other.

        Args:
          embeddings: float `[N, D]`, unit length.
          labels: identities, int `[N]`.
          name: name of the data set.
          gallery: embeddings of the same faces, computed by the recognizer of a gallery, `[N, D]`. Each face of
            `embeddings` is then compared, as a probe, with all other faces in `gallery`.

        Raises:
          GdrdError: there are fewer than three people, or no two faces of one person.
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
                f"{name} has {people} people and {same.sum()} pairs of faces of one person; thresholds need at least "
                f"{LEAST_PEOPLE} people, one of them with two faces",
                "calibration-too-small",
            )
        between = people * (people - 1) // 2
        impostors, genuine = np.sort(scores[~same])[::-1], np.sort(scores[same])
        decades = np.log10(between * LARGEST_FAR)
        fars = LARGEST_FAR * 10.0 ** -np.linspace(0, decades, int(decades * PER_DECADE) + 1)
        values = strictest(impostors, fars)
        tars = 1 - np.searchsorted(genuine, values) / len(genuine)
        kept: list[tuple[float, ...]] = [tuple(map(float, x)) for x in (fars, values, tars)]
        return cls(kept[0], kept[1], kept[2], people, len(labels), between, len(genuine), name)

    def at(self, far: float) -> float:
        """The threshold for a false accept rate.

        This is the threshold of the next finer rate in `fars`, so it is slightly too strict rather than too loose.

        Raises:
          GdrdError: the rate is out of range, or too small for the faces that the thresholds were learned on.
        """
        return self.values[self._index(far)]

    def far_of_search(self, fpir: float, gallery: int | None) -> float:
        """The false accept rate of one comparison at which a search has a false positive identification rate (FPIR).

        FPIR = 1 - (1 - FAR)^n, as if the n comparisons of a probe were independent. They are not quite: some faces are
        similar to many others, so false accepts are concentrated on fewer probes. docs/thresholds.md has measurements.

        Args:
          fpir: share of the probes of strangers for which somebody in the gallery is accepted.
          gallery: n, the number of embeddings that a probe is compared with.

        Raises:
          GdrdError: a value is out of range, or the rate is too fine for the faces the thresholds were learned on.
        """
        if not isinstance(fpir, Real) or not 0 < fpir <= LARGEST_FAR:
            given = f"{fpir:g}" if isinstance(fpir, Real) else repr(fpir)
            raise GdrdError(
                f"the false positive identification rate is {given}; give a number above 0 and at most {LARGEST_FAR:g}",
                "fpir-range",
            )
        if not isinstance(gallery, Integral) or gallery < 1:
            raise GdrdError(
                f"the size of the gallery is {gallery!r}; give the number of its people, at least 1", "fpir-gallery"
            )
        far = -math.expm1(math.log1p(-fpir) / gallery)
        if not self.supports(far):
            finest = -math.expm1(gallery * math.log1p(-self.finest()))
            largest = int(math.log1p(-fpir) / math.log1p(-self.finest()))
            raise GdrdError(
                f"a false positive identification rate of {fpir:g} in a gallery of {gallery:,} is finer than the "
                f"calibration supports: {self.between} pairs of different people ({self.name}) are enough for "
                + (f"{_rounded_up(finest):.2g} in this gallery" if finest <= LARGEST_FAR else "no rate in this gallery")
                + (f", or for {fpir:g} in one of {largest:,}" if largest else "")
                + "; give such a rate, or export the student again with more people (gdrd export --calibration FACES)",
                "fpir-too-fine",
            )
        return far

    def supports(self, far: float) -> bool:
        """Whether the thresholds were learned on enough people for a false accept rate."""
        return far >= self.fars[-1] * (1 - 1e-9)

    def finest(self) -> float:
        """The lowest supported false accept rate, rounded up to two digits."""
        return _rounded_up(self.fars[-1])

    def tar(self, far: float) -> float:
        """The true accept rate at a false accept rate, measured on the same faces; raises the errors of `at`."""
        return self.tars[self._index(far)]

    def _index(self, far: float) -> int:
        if not isinstance(far, Real) or not 0 < far <= LARGEST_FAR:
            given = f"{far:g}" if isinstance(far, Real) else repr(far)
            raise GdrdError(
                f"the false accept rate is {given}; give a number above 0 and at most {LARGEST_FAR:g}", "far-range"
            )
        if not self.supports(far):
            raise GdrdError(
                f"a false accept rate of {far:g} is finer than the calibration supports: {self.between} pairs "
                f"of different people ({self.name}) are enough for {self.finest():.2g}; "
                f"give --far {self.finest():.2g} (far={self.finest():.2g}), or export the student again with more "
                "people (gdrd export --calibration FACES)",
                "far-too-fine",
            )
        return next(i for i, kept in enumerate(self.fars) if kept <= far * (1 + 1e-9))


def strictest(impostors: np.ndarray, fars: np.ndarray) -> np.ndarray:
    """The lowest thresholds that at most these shares of impostor pairs reach, `[F]`.

    Args:
      impostors: similarities, falling, float32 `[I]`.
      fars: rates below 1, float `[F]`.
    """
    # Just above the first impostor pair that would exceed the rate.
    return np.nextafter(impostors[np.floor(fars * len(impostors) * (1 + 1e-9)).astype(int)], np.float32(np.inf))


def _rounded_up(rate: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return math.ceil(rate / unit * (1 - 1e-9)) * unit


def compared(labels: np.ndarray) -> np.ndarray:
    """Rows of the faces that `Thresholds.learn` compares, increasing; their number is limited, also for each person."""
    order = np.argsort(labels, kind="stable")
    number = number_within(labels)[order]
    order, number = order[number < FACES_PER_PERSON], number[number < FACES_PER_PERSON]
    two_of_each_first = np.argsort(number // 2, kind="stable")
    return np.sort(order[two_of_each_first][:FACES])
