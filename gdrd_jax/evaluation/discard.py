"""Error-versus-discard curves (EDC): does a quality score find the faces that are not recognized?

Among G genuine pairs, those below a decision threshold are false rejects. The quality of a pair is the lower one of its
two faces. EDC(d) is the false non-match rate (FNMR) among the pairs that remain when the share d of the pairs with the
lowest quality is discarded. The threshold is that of a false match rate on all pairs and stays fixed (ISO/IEC 29794-1;
Schlett et al., arXiv 2303.13294). Random scores leave FNMR unchanged. Among pairs of equal quality, any one may be
discarded next: the curve is the mean over their orders, so that constant scores are as good as random ones.
"""

import numpy as np

from gdrd_jax.evaluation import bootstrap
from gdrd_jax.evaluation.result import Result, percent, percents
from gdrd_jax.evaluation.verification import Pairs
from gdrd_jax.inference.thresholds import strictest

FMR = 1e-2  # whose threshold decides
LIMIT = 0.3  # share of the pairs up to which the area is measured
SHARES = np.linspace(0, LIMIT, 61)
SHOWN = (0.1, 0.2, 0.3)  # shares at which the rate is a metric
PLOTTED = np.linspace(0, 0.9, 91)


def curve(
    quality: np.ndarray, wrong: np.ndarray, shares: np.ndarray = SHARES, weights: np.ndarray | None = None
) -> np.ndarray:
    """The false non-match rate after discarding.

    Args:
      quality: quality of the genuine pairs, float `[G]`; higher is better.
      wrong: which of these pairs are false rejects, bool `[G]`.
      shares: shares of the pairs that are discarded, in [0, 1), `[K]`.
      weights: weights of the pairs in B resamples, float `[B, G]`.

    Returns:
      float64 `[K]`, or `[B, K]` with weights, in [0, 1]; NaN in resamples without any pair.
    """
    order = np.argsort(quality, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(quality[order]) > 0, True))  # of runs of equal quality
    rows = np.ones((1, len(quality))) if weights is None else np.asarray(weights, np.float64)
    with np.errstate(invalid="ignore"):
        rows = rows[:, order] / rows.sum(axis=1, keepdims=True)
    discarded = np.cumsum(rows, axis=1)[:, ends]
    errors = np.cumsum(rows * wrong[order], axis=1)[:, ends]
    start = np.zeros(1)
    found = np.stack([
        (one[-1] - np.interp(shares, np.append(start, gone), np.append(start, one))) / (1 - shares)
        for gone, one in zip(discarded, errors)
    ])  # fmt: skip
    return found[0] if weights is None else found


def area(quality: np.ndarray, wrong: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The area below `curve` up to `LIMIT`, divided by `LIMIT`: the mean FNMR in this range.

    Args:
      quality, wrong, weights: as in `curve`.

    Returns:
      float64 scalar, or `[B]` with weights, in [0, 1].
    """
    return _mean(curve(quality, wrong, SHARES, weights))


def _mean(rates: np.ndarray) -> np.ndarray:
    """The mean, over the last axis, of a curve at `SHARES`."""
    return np.trapezoid(rates, SHARES, axis=-1) / LIMIT


def false_rejects(pairs: Pairs, fmr: float = FMR) -> np.ndarray:
    """The pairs below the lowest threshold whose false match rate on all pairs is at most `fmr`, bool `[P]`."""
    return pairs.scores < strictest(np.sort(pairs.scores[~pairs.same])[::-1], np.array([fmr]))


def with_curve(result: Result, pairs: Pairs, quality: np.ndarray, people: np.ndarray, *, seed: int) -> Result:
    """Adds the metrics of the curve to a result.

    Args:
      result: result of scored pairs.
      pairs: its P genuine and impostor pairs.
      quality: quality of each pair, float `[P]`.
      people: people in each pair, int `[P, 2]`.
      seed: seed of the bootstrap, which draws people; the threshold is always that of all pairs.

    Returns:
      The result with additional metrics in percent: `fnmr` with nothing discarded, `fnmr_discarded` at `SHOWN`, and
      `edc_area`, see `area`. Its arrays also have `quality`. With fewer than 1 / `FMR` impostor pairs, which give no
      threshold, the result as it is.
    """
    genuine = pairs.same
    if FMR * (~genuine).sum() < 1:
        return result
    wrong, kept = false_rejects(pairs)[genuine], quality[genuine]
    shares, few = np.concatenate([[0], SHOWN, SHARES]), 1 + len(SHOWN)
    rates = curve(kept, wrong, shares)
    blocks = bootstrap.blocks_of_pairs(people[genuine], seed=seed)
    spread = np.concatenate([curve(kept, wrong, shares, weights) for weights in blocks])
    metrics = {
        "fnmr": percent(rates[0]), "edc_area": percent(float(_mean(rates[few:]))),
        "fnmr_discarded": {f"{share:g}": percent(rate) for share, rate in zip(SHOWN, rates[1:few])},
    }  # fmt: skip
    names = ["fnmr", *(f"fnmr_discarded.{share:g}" for share in SHOWN)]
    intervals = {name: percents(bootstrap.interval(values)) for name, values in zip(names, spread[:, :few].T)}
    intervals["edc_area"] = percents(bootstrap.interval(_mean(spread[:, few:])))
    arrays = {**result.arrays, "quality": quality.astype(np.float32)}
    return Result({**result.metrics, **metrics}, {**result.intervals, **intervals}, arrays)
