"""Verification: are two faces of one person? Functions of scores, not of models."""

import dataclasses

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Scored pairs.

    Attributes:
      scores: similarity, float `[P]`.
      same: bool `[P]`, True for a genuine pair.
    """

    scores: np.ndarray
    same: np.ndarray


def all_pairs(embeddings: np.ndarray, labels: np.ndarray) -> Pairs:
    """Cosine similarity of every unordered pair of different faces.

    Args:
      embeddings: float `[N, D]`, unit length.
      labels: identities, int `[N]`.
    """
    first, second = np.triu_indices(len(labels), 1)
    scores = (embeddings @ embeddings.T)[first, second]
    return Pairs(scores, labels[first] == labels[second])


def roc(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(FAR, TAR, threshold)` of every operating point; a pair is accepted at `score >= threshold`."""
    return roc_curve(pairs.same, pairs.scores, drop_intermediate=False)


def best_threshold(pairs: Pairs) -> float:
    """The threshold of the highest `balanced_accuracy`: midway between the two scores that it parts."""
    far, tar, thresholds = roc(pairs)
    best = int(np.argmax(tar - far))
    if best == 0:  # rejecting everything is best
        return float(np.nextafter(pairs.scores.max(), np.inf))
    return float(thresholds[best : best + 2].mean())


def balanced_accuracy(pairs: Pairs, threshold: float) -> float:
    """Mean of the shares of accepted genuine and of rejected impostor pairs, in [0, 1].

    The accuracy of a list with as many genuine as impostor pairs; here impostors
    abound, and rejecting everything would be right nine times out of ten.
    """
    accepted = pairs.scores >= threshold
    return float((accepted[pairs.same].mean() + (~accepted[~pairs.same]).mean()) / 2)


def auc(pairs: Pairs) -> float:
    """Area under the ROC curve, in [0, 1]."""
    return float(roc_auc_score(pairs.same, pairs.scores))


def eer(pairs: Pairs) -> float:
    """Equal error rate, in [0, 1]: where false accepts and false rejects meet, interpolated."""
    far, tar, _ = roc(pairs)
    gap = far - (1 - tar)
    after = int(np.argmax(gap >= 0))
    if after == 0 or gap[after] == gap[after - 1]:
        return float(far[after])
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(far[after - 1] + share * (far[after] - far[after - 1]))
