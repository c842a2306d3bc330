"""Verification: do two faces show the same person? Metrics as functions of scores."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from gdrd_jax.evaluation.result import Metric, Result, figure, percent, percents

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
MANY, KEPT = 1_000_000, 100_000  # points of a curve that are thinned, and that are kept then
BLOCK = 1 << 14  # pairs scored at once: 64 MB of embeddings of 512 dimensions


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Scored pairs.

    Attributes:
      scores: similarity of each pair, float `[P]`.
      same: whether each pair is genuine, bool `[P]`.
    """

    scores: np.ndarray
    same: np.ndarray


def cosines(first: np.ndarray, second: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity of the chosen pairs, computed in blocks to bound the memory.

    Args:
      first, second: float `[N, D]` and `[M, D]`, unit length.
      a, b: rows of the pairs in `first` and in `second`, int `[P]`.

    Returns:
      Similarities, float `[P]`, in the dtype of the embeddings.
    """
    scores = np.empty(len(a), np.result_type(first, second))
    for start in range(0, len(a), BLOCK):
        part = slice(start, start + BLOCK)
        scores[part] = np.einsum("pd,pd->p", first[a[part]], second[b[part]])
    return scores


def all_pairs(embeddings: np.ndarray, labels: np.ndarray) -> Pairs:
    """Scores every unordered pair of different faces by cosine similarity.

    Args:
      embeddings: float `[N, D]`, unit length.
      labels: identities, int `[N]`.
    """
    first, second = np.triu_indices(len(labels), 1)
    scores = (embeddings @ embeddings.T)[first, second]
    return Pairs(scores, labels[first] == labels[second])


def hardest_pairs(scores: np.ndarray, same: np.ndarray, genuine: bool, count: int) -> np.ndarray:
    """The genuine pairs with the lowest scores or the impostor pairs with the highest, hardest first: int `[<= count]`.

    Args:
      scores: similarity of each pair, float `[P]`.
      same: whether each pair is genuine, bool `[P]`.
      genuine: True for genuine pairs, False for impostor pairs.
      count: maximum number of pairs.
    """
    pairs = np.flatnonzero(same == genuine)
    order = scores[pairs] if genuine else -scores[pairs]
    return pairs[np.argsort(order, kind="stable")[:count]]


def pair_metrics(
    pairs: Pairs,
    *,
    folds: np.ndarray | None = None,
    threshold: float | None = None,
    balanced: bool = False,
    fars: tuple[float, ...] = FARS,
) -> dict[str, Metric]:
    """The metrics of every protocol that compares two faces, computed from scored pairs.

    Args:
      pairs: scored genuine and impostor pairs.
      folds: fold of each pair, int `[P]`; with two or more folds, `accuracy` follows the LFW protocol, see
        `fold_accuracies`.
      threshold: a threshold learned on other people, at which `accuracy` is then the `balanced_accuracy`.
      balanced: compute `best_threshold_accuracy` as a `balanced_accuracy`, too, in which genuine and impostor pairs
        have the same weight.
      fars: false accept rates for `tar_at_far`.

    Returns:
      In percent: `accuracy` if there are folds or a threshold, `best_threshold_accuracy` at the threshold that is best
      on these very pairs, `auc`, `eer` and `tar_at_far`; with folds also `accuracy_std_error` and `accuracy_by_fold`.
      `threshold` is the given one or the mean over the folds, or None if that is not finite. `n_pairs`, `n_genuine` and
      `n_impostor` are counts.
    """
    metrics: dict[str, Metric] = {}
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
    far, tar, thresholds = roc(pairs)
    genuine, impostor = int(pairs.same.sum()), int((~pairs.same).sum())
    if balanced:
        best = balanced_accuracy(pairs, _best_threshold(far, tar, thresholds, pairs))
    else:
        best = float(_correct(far, tar, genuine, impostor).max() / len(pairs.same))
    return metrics | {
        "best_threshold_accuracy": percent(best), "auc": percent(auc(pairs)), "eer": percent(_eer(far, tar)),
        "tar_at_far": {f"{rate:g}": percent(_tar_at_far(far, tar, impostor, rate)) for rate in fars},
        "n_pairs": len(pairs.scores), "n_genuine": genuine, "n_impostor": impostor,
    }  # fmt: skip


def result(pairs: Pairs, metrics: Mapping[str, Metric], intervals: Mapping[str, tuple[float, float]]) -> Result:
    """The result of a verification protocol for one row.

    Args:
      pairs: scored pairs.
      metrics: metrics from `pair_metrics`.
      intervals: intervals from `bootstrap.of_pairs`, in [0, 1]; intervals of metrics that are None are left out.
    """
    named = {name.replace("tar_at_far_", "tar_at_far."): percents(ends) for name, ends in intervals.items()}
    kept = {name: ends for name, ends in named.items() if figure(metrics, name) is not None}
    return Result(metrics, kept, {"scores": pairs.scores.astype(np.float32, copy=False)})


def main_accuracy(metrics: Mapping[str, Metric]) -> str:
    """The name of the accuracy by which models are compared: the one on other folds or people, if there is one."""
    return "accuracy" if "accuracy" in metrics else "best_threshold_accuracy"


def roc(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(FAR, TAR, threshold)` of every operating point; a pair is accepted at `score >= threshold`."""
    from sklearn.metrics import roc_curve  # imported late: it takes more than a second

    return roc_curve(pairs.same, pairs.scores, drop_intermediate=False)


def thinned(far: np.ndarray, tar: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A curve for files and plots: at most `KEPT` points if there are more than `MANY`, each of them exact.

    Half of the points that are kept are spread evenly over the curve, half over the logarithm of the false accept rate.
    No metric is computed from them.
    """
    if len(far) <= MANY:
        return far, tar, thresholds
    low = far[np.searchsorted(far, 0, "right")]  # the least rate above 0
    rates = np.geomspace(low, 1, KEPT // 2)
    chosen = np.union1d(
        np.linspace(0, len(far) - 1, KEPT // 2 - 1).astype(int), np.searchsorted(far, rates, "right") - 1
    )
    return far[chosen], tar[chosen], thresholds[chosen]


def best_threshold(pairs: Pairs) -> float:
    """The threshold with the highest `balanced_accuracy`: midway between the two scores that it separates."""
    return _best_threshold(*roc(pairs), pairs)


def _best_threshold(far: np.ndarray, tar: np.ndarray, thresholds: np.ndarray, pairs: Pairs) -> float:
    best = int(np.argmax(tar - far))
    if best == 0:  # rejecting everything is best
        return float(np.nextafter(pairs.scores.max(), np.inf))
    return float(thresholds[best : best + 2].mean())


def balanced_accuracy(pairs: Pairs, threshold: float) -> float:
    """Mean of the share of accepted genuine pairs and the share of rejected impostor pairs, in [0, 1].

    It equals the accuracy on a list with as many genuine as impostor pairs. If all pairs of some faces are compared,
    impostors abound, and rejecting everything would be right nine times out of ten.
    """
    accepted = pairs.scores >= threshold
    return float((accepted[pairs.same].mean() + (~accepted[~pairs.same]).mean()) / 2)


def auc(pairs: Pairs) -> float:
    """Area under the ROC curve, in [0, 1]."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(pairs.same, pairs.scores))


def eer(pairs: Pairs) -> float:
    """Equal error rate, in [0, 1]: the rate at which false accepts equal false rejects, interpolated."""
    return _eer(*roc(pairs)[:2])


def _eer(far: np.ndarray, tar: np.ndarray) -> float:
    gap = far - (1 - tar)
    after = int(np.argmax(gap >= 0))
    if after == 0 or gap[after] == gap[after - 1]:
        return float(far[after])
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(far[after - 1] + share * (far[after] - far[after - 1]))


def tar_at_far(pairs: Pairs, far: float) -> float | None:
    """The highest true accept rate, in [0, 1], whose false accept rate is at most `far`.

    Not interpolated. None if there are fewer than `1 / far` impostor pairs, which cannot distinguish the rate from 0.
    """
    return _tar_at_far(*roc(pairs)[:2], int((~pairs.same).sum()), far)


def _tar_at_far(far: np.ndarray, tar: np.ndarray, impostor: int, rate: float) -> float | None:
    if rate * impostor < 1:
        return None
    return float(tar[np.searchsorted(far, rate * (1 + 1e-9), "right") - 1])


def best_accuracy(pairs: Pairs) -> float:
    """The highest share of correct decisions, in [0, 1], that one threshold reaches on the pairs it was chosen on."""
    far, tar, _ = roc(pairs)
    return float(_correct(far, tar, pairs.same.sum(), (~pairs.same).sum()).max() / len(pairs.same))


def fold_accuracies(pairs: Pairs, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The LFW protocol: every fold is judged at the threshold that is best on the other folds.

    Among equally good thresholds, the strictest one is used; a pair is accepted at `score >= threshold`.

    Args:
      pairs: scored pairs.
      folds: fold of each pair, int `[P]`; at least two folds.

    Returns:
      Share of correct decisions, in [0, 1], and threshold of each fold, in the order of the fold numbers.
    """
    shares, thresholds = [], []
    for fold in np.unique(folds):
        held_out = folds == fold
        others = Pairs(pairs.scores[~held_out], pairs.same[~held_out])
        far, tar, candidates = roc(others)
        correct = _correct(far, tar, others.same.sum(), (~others.same).sum())
        thresholds.append(candidates[int(np.argmax(correct))])
        shares.append(np.mean((pairs.scores[held_out] >= thresholds[-1]) == pairs.same[held_out]))
    return np.array(shares), np.array(thresholds)


def fold_decisions(pairs: Pairs, folds: np.ndarray) -> np.ndarray:
    """Whether the LFW protocol decides each pair correctly, bool `[P]`; arguments as in `fold_accuracies`."""
    _, thresholds = fold_accuracies(pairs, folds)
    return (pairs.scores >= thresholds[np.searchsorted(np.unique(folds), folds)]) == pairs.same


def _correct(far: np.ndarray, tar: np.ndarray, genuine: int, impostor: int) -> np.ndarray:
    """Number of right decisions at each threshold, strictest first."""
    return np.rint(tar * genuine + (1 - far) * impostor)
