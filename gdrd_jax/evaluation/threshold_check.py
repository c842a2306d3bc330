"""Do decision thresholds hold for other people than those whom they were learned on?

N is the number of faces, K that of people, D the dimension of the embeddings; rates are in [0, 1].
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
    """What faces do at a threshold.

    Attributes:
      far, tar: false and true accept rate; of all pairs of faces of two people, and of one.
      far_interval, tar_interval: 95 %, over people.
      people: K.
      genuine: pairs of faces of one person; without any, `tar` is NaN.
    """

    far: float
    far_interval: tuple[float, float]
    tar: float
    tar_interval: tuple[float, float]
    people: int
    genuine: int

    def holds(self, far: float) -> bool | None:
        """Whether a nominal rate is inside the interval of the realized one; None if there are too few people.

        Rates of which fewer than `EXPECTED` pairs of people would pass can be seen to be exceeded, but not to hold.
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
    """Rates at each threshold, with intervals over people.

    If a person was drawn n times and another one m times, pairs of both weigh n m; see `evaluation.bootstrap`.

    Args:
      embeddings: float `[N, D]`, unit length.
      labels: people, int `[N]`; of each some faces are compared, see `inference.thresholds.compared`.
      thresholds: a pair is accepted from this similarity on.
      gallery: embeddings of the same faces as they are in a gallery, `[N, D]`; each face of `embeddings` is compared
        with all others in it.
      seed: of the bootstrap.
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
    """False accept rates of people at thresholds that were learned on others.

    People are divided into `FOLDS` folds; thresholds are learned on all but one, and judged on the pairs within it.

    Args:
      embeddings, labels, gallery: as of `realized`.
      rates: nominal ones; those for which a fold has fewer pairs of people than 1 / rate are left out.

    Returns:
      For each nominal rate `far` the `mean`, the lowest and the highest realized rate of the folds, `low` and `high`.
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
