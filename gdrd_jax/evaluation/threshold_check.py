"""Do decision thresholds hold for people other than those they were learned on?

N is the number of faces, K the number of people, D the dimension of the embeddings; rates are in [0, 1].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdrd_jax.evaluation import bootstrap
from gdrd_jax.inference.thresholds import compared, strictest

RATES = (1e-1, 1e-2, 1e-3, 1e-4)
EXPECTED = 10  # pairs of people that must be expected to pass at a rate that is said to hold
FOLDS = 5


class Realized(NamedTuple):
    """The rates that were measured at a threshold.

    Attributes:
      far, tar: false accept rate over all pairs of faces of different people, and true accept rate over all pairs of
        faces of the same person.
      far_interval, tar_interval: 95 % intervals over people.
      people: number of people, K.
      genuine: number of pairs of faces of the same person; if there are none, `tar` is NaN.
    """

    far: float
    far_interval: tuple[float, float]
    tar: float
    tar_interval: tuple[float, float]
    people: int
    genuine: int

    def holds(self, far: float) -> bool | None:
        """Whether a nominal rate is inside the interval of the measured rate; None if there are too few people.

        If fewer than `EXPECTED` pairs of people would be expected to pass, the data can show that a rate is exceeded,
        but not that it holds.
        """
        low, high = self.far_interval
        if low > far:
            return False
        if self.people * (self.people - 1) / 2 * far < EXPECTED:
            return None
        return far <= high


def realized(
    embeddings: np.ndarray, labels: np.ndarray, thresholds: Sequence[float], gallery: np.ndarray | None = None, *,
    seed: int = 0,
) -> list[Realized]:  # fmt: skip
    """Measures the rates at each threshold, with intervals over people.

    If one person was drawn n times and another m times, a pair of both has the weight n m; see `evaluation.bootstrap`.

    Args:
      embeddings: float `[N, D]`, unit length.
      labels: people, int `[N]`; a limited number of faces of each is compared, see `inference.thresholds.compared`.
      thresholds: lowest similarities at which a pair is accepted.
      gallery: embeddings of the same faces as they are in a gallery, `[N, D]`; each face of `embeddings` is then
        compared with all other faces in `gallery`.
      seed: seed of the bootstrap.
    """
    rows = compared(labels)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    scores = embeddings[rows] @ (embeddings if gallery is None else gallery)[rows].T
    np.fill_diagonal(scores, -np.inf)
    _, first, faces = np.unique(labels[rows], return_index=True, return_counts=True)
    apart = 1 - np.eye(len(faces), dtype=np.float32)
    pairs = np.outer(faces, faces).astype(np.float32) * apart
    genuine = faces * (faces - 1.0)
    drawn = bootstrap.draws(len(faces), bootstrap.REPLICATES, seed)
    all_pairs, all_genuine = ((drawn @ pairs) * drawn).sum(axis=1), drawn @ genuine
    found = []
    for threshold in thresholds:
        accepted = np.add.reduceat((scores >= threshold).astype(np.float32), first, axis=0)
        accepted = np.add.reduceat(accepted, first, axis=1)
        own, others = np.diagonal(accepted).astype(float), accepted * apart
        with np.errstate(invalid="ignore", divide="ignore"):
            fars = ((drawn @ others) * drawn).sum(axis=1) / all_pairs
            tars = drawn @ own / all_genuine
            tar = float(own.sum() / genuine.sum())
        interval = bootstrap.interval(tars) if genuine.any() else (np.nan, np.nan)
        far = float(others.sum(dtype=float) / pairs.sum(dtype=float))
        count = int(genuine.sum()) // (2 if gallery is None else 1)
        found.append(Realized(far, bootstrap.interval(fars), tar, interval, len(faces), count))
    return found


def held_out(
    embeddings: np.ndarray, labels: np.ndarray, gallery: np.ndarray | None = None, *, rates: Sequence[float] = RATES
) -> list[dict[str, float]]:
    """False accept rates at thresholds that were learned on other people.

    People are divided into `FOLDS` folds; thresholds are learned on all folds but one and judged on that one.

    Args:
      embeddings, labels, gallery: as in `realized`.
      rates: nominal rates; those for which a fold has fewer than 1 / rate pairs of people are left out.

    Returns:
      For each nominal rate `far`, the `mean`, lowest (`low`) and highest (`high`) measured rate over the folds.
    """
    rows = compared(labels)
    scores = embeddings[rows] @ (embeddings if gallery is None else gallery)[rows].T
    people, person = np.unique(labels[rows], return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(people)) % FOLDS)[person]
    least = len(people) // FOLDS
    usable = [far for far in rates if far * least * (least - 1) / 2 >= 1]
    if not usable:
        return []
    different = person[:, None] != person
    shares = []
    for number in range(FOLDS):
        inside = fold == number
        learned = np.sort(scores[different & ~inside[:, None] & ~inside])[::-1]
        judged = scores[different & inside[:, None] & inside]
        shares.append([(judged >= value).mean() for value in strictest(learned, np.array(usable))])
    return [
        {"far": far, "mean": float(np.mean(of)), "low": float(min(of)), "high": float(max(of))}
        for far, of in zip(usable, zip(*shares))
    ]
