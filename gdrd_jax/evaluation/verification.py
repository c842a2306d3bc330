"""Verification: are two faces of one person? Functions of scores, not of models."""

import dataclasses

import numpy as np

from gdrd_jax.evaluation.result import percent

FARS = (1e-1, 1e-2, 1e-3, 1e-4)


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


def pair_metrics(
    pairs: Pairs, *, folds: np.ndarray | None = None, threshold: float | None = None, balanced: bool = False
) -> dict[str, object]:
    """The figures of scored pairs: of every protocol that compares two faces.

    Args:
      pairs: genuine and impostor ones, scored.
      folds: int `[P]`; two or more give the accuracy of the LFW protocol, see `fold_accuracies`.
      threshold: learned on other people; gives the `balanced_accuracy` at it.
      balanced: take `balanced_accuracy` at the best threshold, too: genuine and impostor pairs count alike.

    Returns:
      In percent: `accuracy` where folds or a threshold give one, `best_threshold_accuracy` at the threshold that is
      best on these very pairs, `auc`, `eer` and `tar_at_far`; with folds `accuracy_std_error` and `accuracy_by_fold`.
      `threshold`: the given one or the mean over the folds, None where that is not finite. `n_pairs`, `n_genuine` and
      `n_impostor`.
    """
    metrics = {}
    if threshold is not None:
        metrics = {"accuracy": percent(balanced_accuracy(pairs, threshold)), "threshold": threshold}
    elif folds is not None and np.ptp(folds):
        shares, thresholds = fold_accuracies(pairs, folds)
        metrics = {
            "accuracy": percent(shares.mean()),
            "accuracy_std_error": percent(shares.std(ddof=1) / np.sqrt(len(shares))),
            "accuracy_by_fold": [percent(share) for share in shares],
            "threshold": float(thresholds.mean()) if np.isfinite(thresholds).all() else None,
        }
    best = balanced_accuracy(pairs, best_threshold(pairs)) if balanced else best_accuracy(pairs)
    return metrics | {
        "best_threshold_accuracy": percent(best), "auc": percent(auc(pairs)), "eer": percent(eer(pairs)),
        "tar_at_far": {f"{far:g}": percent(tar_at_far(pairs, far)) for far in FARS},
        "n_pairs": len(pairs.scores), "n_genuine": int(pairs.same.sum()), "n_impostor": int((~pairs.same).sum()),
    }  # fmt: skip


def main_accuracy(metrics: dict) -> str:
    """The name of the accuracy that models are compared by: on other folds or people where there are any."""
    return "accuracy" if "accuracy" in metrics else "best_threshold_accuracy"


def roc(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(FAR, TAR, threshold)` of every operating point; a pair is accepted at `score >= threshold`."""
    from sklearn.metrics import roc_curve  # imported late: it takes more than a second

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
    from sklearn.metrics import roc_auc_score

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


def tar_at_far(pairs: Pairs, far: float) -> float | None:
    """The highest true accept rate, in [0, 1], whose false accept rate is at most `far`.

    Not interpolated. None when there are fewer than `1 / far` impostor pairs: no such rate can
    be told apart from 0 then.
    """
    if far * (~pairs.same).sum() < 1:
        return None
    rates, tar, _ = roc(pairs)
    return float(tar[np.searchsorted(rates, far * (1 + 1e-9), "right") - 1])


def best_accuracy(pairs: Pairs) -> float:
    """The highest share of right decisions, in [0, 1], that one threshold reaches: chosen on the pairs it judges."""
    return float(_correct(pairs)[0].max() / len(pairs.same))


def fold_accuracies(pairs: Pairs, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The LFW protocol: every fold judged at the threshold that is best on the others.

    Of equally good thresholds the strictest serves; a pair is accepted at `score >= threshold`.

    Args:
      pairs: as above.
      folds: int `[P]`, at least two different ones.

    Returns:
      Share of right decisions, in [0, 1], and threshold of each fold, in the order of fold numbers.
    """
    shares, thresholds = [], []
    for fold in np.unique(folds):
        held_out = folds == fold
        correct, candidates = _correct(Pairs(pairs.scores[~held_out], pairs.same[~held_out]))
        thresholds.append(candidates[int(np.argmax(correct))])
        shares.append(np.mean((pairs.scores[held_out] >= thresholds[-1]) == pairs.same[held_out]))
    return np.array(shares), np.array(thresholds)


def _correct(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Number of right decisions at each threshold, strictest first, and the thresholds."""
    far, tar, thresholds = roc(pairs)
    genuine, impostor = pairs.same.sum(), (~pairs.same).sum()
    return np.rint(tar * genuine + (1 - far) * impostor), thresholds
