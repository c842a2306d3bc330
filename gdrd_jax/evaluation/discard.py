"""Error-versus-discard curves (EDC): does a quality score find the faces that are not recognized?

Of G genuine pairs, those below a decision threshold are false rejects. The quality of a pair is the lower one of its
two faces. EDC(d) is the false non-match rate (FNMR) among the pairs that are left when the share d of the pairs with
the lowest quality is discarded; the threshold is that of a false match rate on all pairs, and stays fixed (ISO/IEC
29794-1; Schlett et al., arXiv 2303.13294). Random scores leave FNMR as it is. Of equal qualities any pair may be the
next to be discarded: the curve is that of their mean, so that constant scores are as good as random ones.
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
      quality: of genuine pairs, float `[G]`; higher is better.
      wrong: which of them are false rejects, bool `[G]`.
      shares: of the pairs that are discarded, in [0, 1), `[K]`.
      weights: of the pairs in B resamples, float `[B, G]`.

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
    """The partial area below `curve` up to `LIMIT`, as a share of `LIMIT`: the mean FNMR there.

    Args:
      quality, wrong, weights: as of `curve`.

    Returns:
      float64 scalar, or `[B]` with weights, in [0, 1].
    """
    return np.trapezoid(curve(quality, wrong, SHARES, weights), SHARES, axis=-1) / LIMIT


def false_rejects(pairs: Pairs, fmr: float = FMR) -> np.ndarray:
    """Which pairs are below the lowest threshold whose false match rate on all of them is at most `fmr`: bool `[P]`."""
    return pairs.scores < strictest(np.sort(pairs.scores[~pairs.same])[::-1], np.array([fmr]))


def with_curve(result: Result, pairs: Pairs, quality: np.ndarray, people: np.ndarray, *, seed: int) -> Result:
    """A result with the metrics of the curve.

    Args:
      result: of scored pairs.
      pairs: its P pairs, genuine and impostor ones.
      quality: of the pairs, float `[P]`.
      people: in the pairs, int `[P, 2]`.
      seed: of the bootstrap, which draws people; the threshold is that of all pairs.

    Returns:
      The result, with `fnmr` (nothing discarded), `fnmr_discarded` at `SHOWN` and `edc_area` (see `area`) in percent,
      and `quality` among its arrays. As it is where fewer than 1 / `FMR` impostor pairs cannot give a threshold.
    """
    genuine = pairs.same
    if FMR * (~genuine).sum() < 1:
        return result
    wrong, kept = false_rejects(pairs)[genuine], quality[genuine]
    at = np.array([0, *SHOWN])
    rates, spread, areas = curve(kept, wrong, at), [], []
    for weights in bootstrap.blocks_of_pairs(people[genuine], seed=seed):
        spread.append(curve(kept, wrong, at, weights))
        areas.append(area(kept, wrong, weights))
    metrics = {
        "fnmr": percent(rates[0]), "edc_area": percent(float(area(kept, wrong))),
        "fnmr_discarded": {f"{share:g}": percent(rate) for share, rate in zip(SHOWN, rates[1:])},
    }  # fmt: skip
    names = ["fnmr", *(f"fnmr_discarded.{share:g}" for share in SHOWN)]
    intervals = {name: percents(bootstrap.interval(values)) for name, values in zip(names, np.concatenate(spread).T)}
    intervals["edc_area"] = percents(bootstrap.interval(np.concatenate(areas)))
    arrays = {**result.arrays, "quality": quality.astype(np.float32)}
    return Result({**result.metrics, **metrics}, {**result.intervals, **intervals}, arrays)
