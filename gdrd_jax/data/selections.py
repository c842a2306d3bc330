"""Selections by name, see `gdrd_jax.registry.selections`: how much each image of a training set is worth to a loss.

A selection is a subclass of `Selection` with `@selections.register("name")`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gdrd_jax.registry import selections

BISECTIONS = 30  # of the reward
BLOCK = 1024  # rows whose cosines with all others are in memory at once


class Selection:
    """Weights of the images of a training set, computed once before a stage.

    Attributes:
      Config: frozen dataclass of the selection's settings.

    Args:
      config: a `Config`.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The weights, which a batch has as `selected`.

        Args:
          embeddings: of T_d, float32 `[N, D]`, of unit length.
          labels: int `[N]`, -1 without identity.

        Returns:
          float32 `[N]`, at least 0.
        """
        raise NotImplementedError


@selections.register("sparse_graph")
class SparseGraph(Selection):
    """Images near the center of their identity and far from other identities, as selective knowledge distillation
    chooses them (SKD, Ge et al., arXiv 1811.09998; our reading of its abstract).

    The choice `a` in {0, 1}^N minimizes
    `sum_i a_i (1 - t_i . mu_i) + penalty sum_ij a_i a_j [t_i . t_j - margin]+ - reward sum_i a_i`
    over images i, with the edges from each image to its nearest ones of other identities. Iterated conditional modes
    solve it, from all ones, in the order of the rows; the reward is found by bisection, so that a share `keep` of the
    images remains. Unlabeled images are not chosen.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          keep: share of the images that are chosen, above 0 and at most 1.
          penalty: factor of the similarity between chosen images of different identities, at least 0.
          margin: cosine up to which images of different identities are not similar.
          neighbors: nearest images of other identities of each image, at least 1.
          sweeps: most passes over all images, at least 1.
        """

        keep: float = 0.7
        penalty: float = 1.0
        margin: float = 0.3
        neighbors: int = 10
        sweeps: int = 10

        def __post_init__(self) -> None:
            if not 0 < self.keep <= 1:
                raise ValueError("keep must be above 0 and at most 1")
            if not (self.penalty >= 0 and self.neighbors >= 1 and self.sweeps >= 1):
                raise ValueError("penalty must be at least 0, neighbors and sweeps at least 1")

    def __call__(self, embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
        known = np.flatnonzero(labels >= 0)
        chosen = np.zeros(len(labels), np.float32)
        if self.config.keep == 1:
            chosen[known] = 1
            return chosen
        cost, pairs, weights = self.graph(embeddings[known], labels[known])
        low, high = 0.0, float(cost.max() + self.config.penalty * weights.sum()) + 1e-6
        wanted, best = round(self.config.keep * len(known)), np.ones(len(known), bool)
        for _ in range(BISECTIONS):
            reward = (low + high) / 2
            found = self.solve(cost, pairs, weights, reward)
            if abs(int(found.sum()) - wanted) < abs(int(best.sum()) - wanted):
                best = found
            low, high = (reward, high) if found.sum() < wanted else (low, reward)
        chosen[known] = best
        return chosen

    def graph(self, embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cost of each image alone, float `[n]`; pairs of similar images of different identities, int `[m, 2]`, each
        once; and how similar they are, above 0, float `[m]`."""
        identities, own = np.unique(labels, return_inverse=True)
        centers = np.zeros((len(identities), embeddings.shape[1]), np.float32)
        np.add.at(centers, own, embeddings)
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
        cost = 1 - np.sum(embeddings * centers[own], axis=1)
        count = min(self.config.neighbors, len(labels) - 1)
        pairs, weights = [], []
        for start in range(0, len(labels), BLOCK):
            block = np.arange(start, min(start + BLOCK, len(labels)))
            cosine = embeddings[block] @ embeddings.T
            cosine[own[block, None] == own[None]] = -np.inf
            nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
            excess = np.take_along_axis(cosine, nearest, axis=1) - self.config.margin
            similar = excess > 0
            ends = np.stack([np.broadcast_to(block[:, None], nearest.shape), nearest], axis=-1)
            pairs.append(np.sort(ends[similar], axis=1))
            weights.append(excess[similar])
        unique, first = np.unique(np.concatenate(pairs), axis=0, return_index=True)
        return cost, unique, np.concatenate(weights)[first]

    def solve(self, cost: np.ndarray, pairs: np.ndarray, weights: np.ndarray, reward: float) -> np.ndarray:
        """The choice, bool `[n]`, by iterated conditional modes; arguments as `graph` returns them."""
        count = len(cost)
        ends, both = np.concatenate([pairs, pairs[:, ::-1]]), np.tile(weights, 2)
        order = np.argsort(ends[:, 0], kind="stable")
        others, both = ends[order, 1], both[order]
        bounds = np.searchsorted(ends[order, 0], np.arange(count + 1))
        chosen = np.ones(count, bool)
        for _ in range(self.config.sweeps):
            before = chosen.copy()
            for image in range(count):
                near = slice(bounds[image], bounds[image + 1])
                chosen[image] = cost[image] + self.config.penalty * both[near] @ chosen[others[near]] < reward
            if (chosen == before).all():
                break
        return chosen
