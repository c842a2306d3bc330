"""95 % confidence intervals of metrics, from resamples of people (or of pairs or probes).

People are drawn with replacement, not pairs, because two pairs that share a person are not independent observations. A
genuine pair is weighted by the number of times its person was drawn, an impostor pair by the product of the numbers of
both people. Every metric is computed for many resamples at once.

No metric needs every pair of a long list. Within a run of impostors between two genuine scores, accepting one more
impostor changes only the false accept rate: the ROC curve is a straight line there. So the weights of such a run are
added up. The metrics stay exact, although there are only about as many runs as genuine pairs (IJB-C: 19,557 among 15.7
million pairs).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from gdrd_jax.evaluation.verification import Pairs

REPLICATES = 1000
LEVEL = 0.95
BLOCK = 100  # resamples at once
CELLS = 1 << 22  # weights of runs at once, to bound memory: 32 MB, and several times that for curves
PAIRS = 1 << 12  # whose weights are added up at once
SHORT = 100_000  # pairs up to which each is a run of its own, which rounds as earlier versions did


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values `[B]`; NaNs are resamples in which the metric is not defined."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def draws(count: int, replicates: int, seed: int | np.random.Generator) -> np.ndarray:
    """How often each of `count` people is drawn, float32 `[B, count]`; a generator continues with further resamples."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float32)


def of_mean(
    values: np.ndarray, people: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of `values`, `[N]`, which belong to `people`, int `[N]`."""
    _, owner, count = np.unique(people, return_inverse=True, return_counts=True)
    drawn = draws(len(count), replicates, seed)
    total = drawn @ np.bincount(owner, weights=values)
    return interval(total / (drawn @ count))


def resamples_of_pairs(people: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """Weights, float32 `[R, P]`, that turn a mean over P pairs into the mean of each resample.

    R is the number of replicates, without those that contain none of the pairs.

    Args:
      people: people in each pair, int `[P, 2]`; for a single person, such as that of a probe, the same number twice.
    """
    weights = np.concatenate(list(blocks_of_pairs(people, replicates=replicates, seed=seed)))
    total = weights.sum(axis=1, keepdims=True)
    there = total[:, 0] > 0
    return weights[there] / total[there]


def blocks_of_pairs(people: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0) -> Iterator[np.ndarray]:
    """How much each of P pairs weighs in each resample, float32 `[B, P]`: few resamples at a time, which bounds memory.

    Args:
      people: as of `resamples_of_pairs`.
    """
    return _weights(people[:, 0], people[:, 1], np.arange(len(people)), replicates, seed)


def of_pairs(
    pairs: Pairs,
    first: np.ndarray,
    second: np.ndarray,
    folds: np.ndarray,
    fars: Sequence[float],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Intervals of all verification metrics.

    Args:
      pairs: scored pairs, `[P]`.
      first, second: people in each pair, int `[P]`; if they are unknown, the number of the pair in both.
      folds: fold of each pair, int `[P]`.
      fars: false accept rates.

    Returns:
      A dict from `accuracy` (over the folds; missing if there is only one), `best_threshold_accuracy`, `auc`, `eer` and
      `tar_at_far_F` to (low, high), in [0, 1].
    """
    order = np.argsort(-pairs.scores, kind="stable")
    scores, same, folds = pairs.scores[order], pairs.same[order], folds[order]
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores are accepted together
    starts = _runs(same, folds, last)
    ends = np.flatnonzero(last[np.append(starts[1:], len(same)) - 1])
    values: dict[str, list[np.ndarray]] = {}
    for weights in _weights(first[order], second[order], starts, replicates, seed):
        for name, value in _figures(weights, same[starts], folds[starts], ends, fars).items():
            values.setdefault(name, []).append(value)
    return {name: interval(np.concatenate(parts)) for name, parts in values.items()}


def _runs(same: np.ndarray, folds: np.ndarray, last: np.ndarray) -> np.ndarray:
    """First pair of each run: pairs of one kind and fold, without a threshold at a genuine score between them.

    Args:
      same, folds: of pairs by falling score, `[P]`.
      last: whether a pair is the last one of its score, bool `[P]`.
    """
    if len(same) <= SHORT:
        return np.arange(len(same))
    first = np.append(True, last[:-1])
    score = np.cumsum(first, dtype=np.int32) - 1
    genuine = np.bincount(score, weights=same)[score] > 0  # a genuine pair has this score
    threshold = first[1:] & (genuine[1:] | genuine[:-1])
    return np.flatnonzero(np.append(True, threshold | (same[1:] != same[:-1]) | (folds[1:] != folds[:-1])))


def _weights(
    first: np.ndarray, second: np.ndarray, starts: np.ndarray, replicates: int, seed: int
) -> Iterator[np.ndarray]:
    """How much each of R runs of pairs of these people weighs in each resample: `[B, R]`, B of them after another.

    As float32 where each pair is a run, or float64: both hold the sums of whole numbers exactly.
    """
    people = np.union1d(np.unique(first), np.unique(second))
    first, second = (np.searchsorted(people, of).astype(np.int32) for of in (first, second))
    block, random = max(1, min(BLOCK, CELLS // len(starts))), np.random.default_rng(seed)
    for start in range(0, replicates, block):
        drawn = draws(len(people), min(block, replicates - start), random)
        if len(starts) == len(first):
            yield drawn[:, first] * np.where(first == second, 1, drawn[:, second])
        else:
            yield _added(np.ascontiguousarray(drawn.T), first, second, starts)


def _added(drawn: np.ndarray, first: np.ndarray, second: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Weights of runs, float64 `[B, R]`; `drawn` is `[people, B]`, whose rows are read without gaps."""
    total = np.zeros((len(starts), drawn.shape[1]))
    for start in range(0, len(first), PAIRS):
        a, b = first[start : start + PAIRS], second[start : start + PAIRS]
        weights, others = drawn[a], drawn[b]
        others[a == b] = 1
        weights *= others
        runs = slice(np.searchsorted(starts, start, "right") - 1, np.searchsorted(starts, start + len(a)))
        total[runs] += np.add.reduceat(weights, np.maximum(starts[runs] - start, 0))
    return np.ascontiguousarray(total.T)


def _figures(
    weights: np.ndarray, same: np.ndarray, folds: np.ndarray, ends: np.ndarray, fars: Sequence[float]
) -> dict[str, np.ndarray]:
    """Every figure for each row of `weights`, `[B, R]`.

    Args:
      weights: of runs by falling score.
      same, folds: of runs, `[R]`.
      ends: runs after which there is a threshold.
      fars: false accept rates.
    """

    def accepted(chosen: np.ndarray) -> np.ndarray:
        """Weight of the chosen pairs among the first k, for every threshold: `[B, T + 1]`, from none to all."""
        total = np.cumsum(np.where(chosen, weights, 0), axis=1)[:, ends]
        return np.concatenate([np.zeros((len(weights), 1), total.dtype), total], axis=1)

    def right(chosen: np.ndarray) -> np.ndarray:
        impostors = accepted(chosen & ~same)
        return accepted(chosen & same) + impostors[:, -1:] - impostors

    with np.errstate(invalid="ignore", divide="ignore"):
        genuine, impostor = accepted(same), accepted(~same)
        tar, far = genuine / genuine[:, -1:], impostor / impostor[:, -1:]
        correct = right(np.ones_like(same))
        found = {
            "best_threshold_accuracy": correct.max(axis=1) / weights.sum(axis=1),
            "auc": np.trapezoid(tar, far, axis=1),
            "eer": _eer(tar, far),
        }
        for rate in fars:
            last = (far <= rate * (1 + 1e-6)).sum(axis=1) - 1
            found[f"tar_at_far_{rate:g}"] = np.take_along_axis(tar, last[:, None], axis=1)[:, 0]
        if len(np.unique(folds)) > 1:
            shares = []
            for fold in np.unique(folds):
                held_out = right(folds == fold)
                best = np.argmax(correct - held_out, axis=1)[:, None]
                shares.append(np.take_along_axis(held_out, best, axis=1)[:, 0] / weights[:, folds == fold].sum(axis=1))
            found["accuracy"] = np.mean(shares, axis=0)
    both = (genuine[:, -1] > 0) & (impostor[:, -1] > 0)
    return {name: np.where(both, value, np.nan) for name, value in found.items()}


def _eer(tar: np.ndarray, far: np.ndarray) -> np.ndarray:
    gap = far - (1 - tar)
    after = np.argmax(gap >= 0, axis=1)[:, None]
    before = np.maximum(after - 1, 0)
    gaps, rates = (lambda at: np.take_along_axis(gap, at, axis=1)), (lambda at: np.take_along_axis(far, at, axis=1))
    step = gaps(after) - gaps(before)
    share = np.where(step > 0, -gaps(before) / np.where(step > 0, step, 1), 1)
    return (rates(before) + share * (rates(after) - rates(before)))[:, 0]
