"""Identification: whose face is it, among those enrolled?"""

import numpy as np


def first_of_each(labels: np.ndarray) -> np.ndarray:
    """Rows of the first face of every identity: the gallery; all others are probes."""
    return np.unique(labels, return_index=True)[1]


def nearest(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Gallery rows by falling cosine similarity.

    Args:
      probes: float `[P, D]`, unit length.
      gallery: float `[G, D]`, unit length.

    Returns:
      int `[P, G]`.
    """
    return np.argsort(-(probes @ gallery.T), axis=1, kind="stable")


def rank_1(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Share of probes whose nearest gallery face is of the same identity, in [0, 1].

    Args:
      embeddings: float `[N, D]`, unit length.
      labels: int `[N]`; the gallery is `first_of_each(labels)`.
    """
    gallery = first_of_each(labels)
    probes = np.setdiff1d(np.arange(len(labels)), gallery)
    found = labels[gallery][nearest(embeddings[probes], embeddings[gallery])[:, 0]]
    return float(np.mean(found == labels[probes]))
