"""Identification: which enrolled person, if any, does a face belong to?

In a closed set, every probe shows somebody in the gallery. In an open set, a probe can be a stranger; a search then
returns the most similar face if its similarity reaches a threshold t, and "unknown" otherwise (NIST IR 8271):

    FPIR(t)  share of the searches for people who are not in the gallery that return anybody
    FNIR(t)  share of the searches for people who are in the gallery that do not return this person
    TPIR(t)  1 - FNIR(t)

This is NIST's FNIR(N, R, T) with R = 1: a mate ranked below a stranger is not found. P is the number of probes, G the
number of gallery faces, D the dimension of the embeddings; rates are in [0, 1].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdrd_jax.evaluation import bootstrap
from gdrd_jax.evaluation.result import Metric, percent, percents
from gdrd_jax.evaluation.retrieval import TIE

FPIRS = (1e-1, 1e-2, 1e-3)
CELLS = 1 << 25  # similarities at once, 128 MB, so that a million gallery faces fit


class Searches(NamedTuple):
    """The most similar gallery face of each probe.

    Attributes:
      best: similarity of that face, float `[P]`.
      nearest: row of that face in the gallery, int `[P]`; the first one among equally similar faces.
      right: whether that face shows the probe's person, bool `[P]`; False if a stranger is equally similar.
      mated: whether the probe's person is in the gallery, bool `[P]`.
    """

    best: np.ndarray
    nearest: np.ndarray
    right: np.ndarray
    mated: np.ndarray


def first_of_each(labels: np.ndarray) -> np.ndarray:
    """Rows of the first face of each identity, which form the gallery; all other faces are probes."""
    return np.unique(labels, return_index=True)[1]


def nearest(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Gallery rows in order of decreasing cosine similarity.

    Args:
      probes: float `[P, D]`, unit length.
      gallery: float `[G, D]`, unit length.

    Returns:
      int `[P, G]`.
    """
    return np.argsort(-(probes @ gallery.T), axis=1, kind="stable")


def rank_1(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Share of probes whose nearest gallery face has the same identity, in [0, 1].

    Args:
      embeddings: float `[N, D]`, unit length.
      labels: identities, int `[N]`; the gallery is `first_of_each(labels)`.
    """
    gallery = first_of_each(labels)
    probes = np.setdiff1d(np.arange(len(labels)), gallery)
    found = labels[gallery][nearest(embeddings[probes], embeddings[gallery])[:, 0]]
    return float(np.mean(found == labels[probes]))


def search(probes: np.ndarray, probe_ids: np.ndarray, gallery: np.ndarray, gallery_ids: np.ndarray) -> Searches:
    """Compares every probe with the whole gallery without keeping all similarities in memory.

    Args:
      probes: float `[P, D]`, unit length.
      probe_ids: identities of the probes, int `[P]`; those of strangers are not in the gallery.
      gallery: float `[G, D]`, unit length; of several faces of a person, the most similar one counts.
      gallery_ids: identities of the gallery faces, int `[G]`.
    """
    step = max(1, CELLS // len(gallery))
    blocks = [
        searched(probes[start : start + step] @ gallery.T, probe_ids[start : start + step], gallery_ids)
        for start in range(0, len(probes), step)
    ]
    return Searches(*map(np.concatenate, zip(*blocks)))


def searched(scores: np.ndarray, probe_ids: np.ndarray, gallery_ids: np.ndarray) -> Searches:
    """As `search`, for given similarities, float `[P, G]`."""
    own = probe_ids[:, None] == gallery_ids[None, :]
    mate, stranger = (scores.max(axis=1, where=of, initial=-np.inf) for of in (own, ~own))
    first = scores.argmax(axis=1)
    best = np.take_along_axis(scores, first[:, None], axis=1)[:, 0]
    return Searches(best, first, mate > stranger + TIE, own.any(axis=1))


def tpir_at_fpir(searches: Searches, fpir: float) -> float | None:
    """The highest TPIR, in [0, 1], of all thresholds whose FPIR is at most a given rate f.

    None if there are fewer than 1 / f probes of strangers, or no probes of known people.
    """
    strangers = int((~searches.mated).sum())
    if fpir * strangers < 1 or strangers == len(searches.mated):
        return None
    return float(_tpir(searches, np.ones((1, len(searches.mated))), [fpir])[0, 0])


def tpir_intervals(
    searches: Searches, people: np.ndarray, fpirs: Sequence[float] = FPIRS, *, seed: int = 0
) -> dict[float, tuple[float, float]]:
    """95 % intervals of `tpir_at_fpir`; rates for which there are too few probes of strangers are left out.

    The people of the probes are drawn with replacement; the gallery stays as it is.

    Args:
      searches: searches for P probes.
      people: people of the probes, int `[P]`.
      fpirs: false positive identification rates.
      seed: seed of the bootstrap.
    """
    usable = [fpir for fpir in fpirs if tpir_at_fpir(searches, fpir) is not None]
    if not usable:
        return {}
    blocks = bootstrap.blocks_of_pairs(np.stack([people, people], axis=1), seed=seed)
    values = np.concatenate([_tpir(searches, weights, usable) for weights in blocks])
    return dict(zip(usable, map(bootstrap.interval, values.T)))


def tpir_figures(
    searches: Searches, people: np.ndarray, fpirs: Sequence[float] = FPIRS, *, seed: int = 0
) -> tuple[Metric, dict[str, tuple[float, float]]]:
    """`tpir_at_fpir` by rate, and its `tpir_intervals`, in percent, as a `Result` has them; arguments as of these."""
    found = {f"{fpir:g}": percent(tpir_at_fpir(searches, fpir)) for fpir in fpirs}
    intervals = tpir_intervals(searches, people, fpirs, seed=seed)
    return found, {f"tpir_at_fpir.{fpir:g}": percents(ends) for fpir, ends in intervals.items()}


def fnir_over_fpir(searches: Searches) -> tuple[np.ndarray, np.ndarray]:
    """FPIR, increasing from 0 to 1, and the FNIR at each: the curve that NIST calls DET; float `[K]` each.

    Args:
      searches: searches for mated probes and for strangers.
    """
    strangers = np.sort(searches.best[~searches.mated])
    # Just above each score of a stranger, and at no threshold.
    levels = np.append(np.unique(strangers)[::-1], -np.inf)
    found = np.sort(searches.best[searches.mated & searches.right])
    fpir = 1 - np.searchsorted(strangers, levels, "right") / len(strangers)
    fnir = 1 - (len(found) - np.searchsorted(found, levels, "right")) / searches.mated.sum()
    return fpir, fnir


def _tpir(searches: Searches, weights: np.ndarray, fpirs: Sequence[float]) -> np.ndarray:
    """`tpir_at_fpir` in each of B resamples, float `[B, F]`; NaN without probes of one kind.

    Args:
      searches: of P probes.
      weights: how often each probe counts, `[B, P]`.
      fpirs: F rates.
    """
    best, right, mated = searches.best, searches.right, searches.mated
    strangers = np.flatnonzero(~mated)[np.argsort(-best[~mated], kind="stable")]
    found = np.flatnonzero(mated & right)[np.argsort(-best[mated & right], kind="stable")]
    weights = weights.astype(np.float64)
    accepted = np.cumsum(weights[:, strangers], axis=1)
    identified = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, found], axis=1)], axis=1)
    total = weights[:, mated].sum(axis=1)
    levels = np.append(best[strangers], -np.inf)
    rows, shares = np.arange(len(weights)), []
    with np.errstate(invalid="ignore", divide="ignore"):
        for fpir in fpirs:
            # The threshold is just above the first stranger too many.
            first = (accepted <= fpir * accepted[:, -1:] * (1 + 1e-9)).sum(axis=1)
            above = np.searchsorted(-best[found], -levels[first], "left")
            shares.append(np.where(accepted[:, -1] > 0, identified[rows, above] / total, np.nan))
    return np.stack(shares, axis=1)
