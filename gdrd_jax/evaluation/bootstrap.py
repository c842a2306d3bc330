"""How sure a figure is: 95 % intervals from resampled people (or pairs, or probes).

People are drawn with replacement, not pairs: two pairs that share a person are not two
independent observations. A pair of one person then weighs as often as that person was drawn,
a pair of two the product of both numbers. Every figure is computed for all resamples at once.
"""

from collections.abc import Iterator

import numpy as np

from gdrd_jax.evaluation.verification import Pairs

REPLICATES = 1000
LEVEL = 0.95
BLOCK = 100  # resamples at once, to bound memory


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values `[B]`; NaNs are resamples in which the figure did not exist."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def draws(count: int, replicates: int, seed: int) -> np.ndarray:
    """How often each of `count` people is drawn: float32 `[B, count]`."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float32)


def of_mean(values: np.ndarray, people: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0) -> tuple:
    """Interval of the mean of `values` `[N]`, whose owners are `people`, int `[N]`."""
    _, owner, count = np.unique(people, return_inverse=True, return_counts=True)
    drawn = draws(len(count), replicates, seed)
    total = drawn @ np.bincount(owner, weights=values)
    return interval(total / (drawn @ count))


def error_of_pairs(values: np.ndarray, people: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0) -> float:
    """Standard error of the mean of `values` `[P]`, one a pair, with `people`, int `[P, 2]`, in them."""
    weights = np.concatenate(list(_weights(*people.T, replicates, seed)))
    return float((weights @ values / weights.sum(axis=1)).std(ddof=1))


def of_pairs(
    pairs: Pairs,
    first: np.ndarray,
    second: np.ndarray,
    folds: np.ndarray,
    fars: tuple[float, ...],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Intervals of all verification figures.

    Args:
      pairs: scored pairs, `[P]`.
      first, second: who is in them, int `[P]`; where people are unknown, the pair's own number twice.
      folds: int `[P]`.
      fars: false accept rates.

    Returns:
      `accuracy` (of the folds; without it if there is one fold), `best_threshold_accuracy`, `auc`, `eer` and
      `tar_at_far_F` to (low, high), in [0, 1].
    """
    order = np.argsort(-pairs.scores, kind="stable")
    scores, same = pairs.scores[order], pairs.same[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # equal scores are accepted together
    values: dict[str, list[np.ndarray]] = {}
    for weights in _weights(first, second, replicates, seed):
        for name, value in _figures(weights[:, order], same, folds[order], ends, fars).items():
            values.setdefault(name, []).append(value)
    return {name: interval(np.concatenate(parts)) for name, parts in values.items()}


def _weights(first: np.ndarray, second: np.ndarray, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """How much each pair of these people weighs in each resample: float32 `[BLOCK, P]` after another."""
    people, number = np.unique(np.concatenate([first, second]), return_inverse=True)
    first, second = number[: len(first)], number[len(first) :]
    drawn = draws(len(people), replicates, seed)
    for start in range(0, replicates, BLOCK):
        block = drawn[start : start + BLOCK]
        yield block[:, first] * np.where(first == second, 1, block[:, second])


def _figures(weights: np.ndarray, same: np.ndarray, folds: np.ndarray, ends: np.ndarray, fars) -> dict:
    """Every figure for each row of `weights`, `[B, P]`; pairs by falling score."""

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
