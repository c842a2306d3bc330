"""Retrieval: how high do a probe's mates rank in a gallery with any number of distractors?

The similarity matrix is never kept in memory: for every mate of a probe, the gallery faces that rank before it are
counted block by block.
"""

import jax
import jax.numpy as jnp
import numpy as np

PROBES, GALLERY = 1024, 32768  # faces compared at once: 128 MB of similarities
TIE = 1e-6  # closer similarities are taken for equal, and then the mate comes last


def mate_ranks(
    probes: np.ndarray, probe_ids: np.ndarray, gallery: np.ndarray, gallery_ids: np.ndarray
) -> list[np.ndarray]:
    """Ranks of every probe's mates.

    A stranger that is as similar as a mate ranks before it, so that a model that cannot tell faces apart gets no
    credit.

    Args:
      probes: float `[P, D]`, unit length.
      probe_ids: int `[P]`, at least 0.
      gallery: float `[G, D]`, unit length.
      gallery_ids: int `[G]`; -1 for distractors, which are mates of no probe.

    Returns:
      For each probe the ranks of its mates, increasing, where 1 is the most similar gallery face; empty without mates.
    """
    by_id = np.argsort(gallery_ids, kind="stable")
    first = np.searchsorted(gallery_ids[by_id], probe_ids, "left")
    mates = np.searchsorted(gallery_ids[by_id], probe_ids, "right") - first
    ranks: list[np.ndarray] = [np.zeros(0, int)] * len(probes)
    order = np.argsort(mates, kind="stable")
    order = order[mates[order] > 0]
    for start in range(0, len(order), PROBES):
        rows = order[start : start + PROBES]
        scores = np.full((PROBES, _round_up(mates[rows].max())), np.inf, np.float32)
        for line, row in enumerate(rows):
            own = gallery[by_id[first[row] : first[row] + mates[row]]]
            scores[line, : mates[row]] = np.sort(own @ probes[row])[::-1]
        strangers = _strangers_before(
            _padded(probes[rows], PROBES), _padded(probe_ids[rows], PROBES), gallery, gallery_ids, scores
        )
        for line, row in enumerate(rows):
            ranks[row] = strangers[line, : mates[row]] + np.arange(1, mates[row] + 1)
    return ranks


def _round_up(count: int) -> int:
    return 1 << int(count - 1).bit_length()  # few shapes, compiled once each


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


def _strangers_before(
    probes: np.ndarray, ids: np.ndarray, gallery: np.ndarray, gallery_ids: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    counts = np.zeros(scores.shape, np.int64)
    for start in range(0, len(gallery), GALLERY):
        block, block_ids = gallery[start : start + GALLERY], gallery_ids[start : start + GALLERY]
        missing = min(GALLERY, len(gallery)) - len(block)  # the last block: faces of everybody's, never counted
        valid = np.arange(len(block) + missing) < len(block)
        counts += np.asarray(
            _count(
                probes, ids, _padded(block, len(block) + missing), _padded(block_ids, len(block) + missing), valid,
                scores,
            )
        )  # fmt: skip
    return counts


@jax.jit
def _count(
    probes: jax.Array, ids: jax.Array, gallery: jax.Array, gallery_ids: jax.Array, valid: jax.Array, scores: jax.Array
) -> jax.Array:
    similarity = jnp.matmul(probes, gallery.T, precision="highest")
    stranger = (ids[:, None] != gallery_ids[None, :]) & valid[None, :]
    similarity = jnp.where(stranger, similarity, -jnp.inf)
    # One mate at a time: an array of probes x gallery x mates would be too large.
    return jax.lax.map(lambda column: (similarity >= column[:, None] - TIE).sum(1), scores.T).T


def rank_k(ranks: list[np.ndarray], k: int) -> np.ndarray:
    """Whether any mate is among the first k: bool `[P]`."""
    return np.array([len(r) > 0 and r[0] <= k for r in ranks])


def average_precision(ranks: list[np.ndarray]) -> np.ndarray:
    """Mean of the precision at the ranks of a probe's mates, as in scikit-learn and TREC: float `[P]`, in [0, 1]."""
    return np.array([np.mean(np.arange(1, len(r) + 1) / r) if len(r) else 0.0 for r in ranks])


def average_precision_trapezoid(ranks: list[np.ndarray]) -> np.ndarray:
    """Area under the precision-recall curve by trapezoids, as in TinyFace's toolkit: float `[P]`, in [0, 1]."""
    return np.array([_trapezoid(r) if len(r) else 0.0 for r in ranks])


def _trapezoid(ranks: np.ndarray) -> float:
    found = np.arange(len(ranks))
    before = np.where(ranks > 1, found / np.maximum(ranks - 1, 1), 1.0)  # precision one rank earlier
    return float(np.mean((before + (found + 1) / ranks) / 2))


def cmc(ranks: list[np.ndarray], longest: int) -> np.ndarray:
    """Cumulative match characteristic: share of probes with a mate among the first 1 to `longest`, `[longest]`."""
    return np.array([rank_k(ranks, k).mean() for k in range(1, longest + 1)])
