"""Closed-set classification: test images of classes of which there are training images, by frozen embeddings."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.evaluation import bootstrap
from gdrd_jax.evaluation.result import Result, percent, percents
from gdrd_jax.utils.arrays import unit

NEIGHBORS = 5
BLOCK = 1024  # test images that are compared at once


@dataclasses.dataclass(frozen=True)
class ClosedSet:
    """Images of classes, some of them to learn from and some to test.

    Attributes:
      faces: all images; as an array, uint8 `[N, R, R, C]`, where they have been reduced.
      labels: int `[N]`, from 0 on without a gap.
      train, test: rows of `faces`; every class has a training image.
      neighbors: k of the nearest training images that vote.
    """

    faces: Faces | np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    neighbors: int = NEIGHBORS

    main = "top_1"
    columns = {"top_1": "top-1 %", "top_5": "top-5 %", "knn": "k-NN %"}
    legend = (
        "Top-1: share of test images nearest to the center of their own class, the normalized mean of the unit-length "
        "embeddings of its training images. Top-5: the class is among the five nearest centers. k-NN: most of the k "
        "nearest training images are of the class; of equal votes the more similar ones count. No classifier is "
        "trained."
    )

    @property
    def remark(self) -> str:
        """Number of neighbors, and the share of right answers by chance."""
        return f"k is {self.neighbors}; chance is {100 / self._classes:.3g} %"

    @property
    def _classes(self) -> int:
        return int(self.labels.max()) + 1

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int = 0) -> Result:
        """Scores one model.

        Args:
          embeddings: float `[N, D]`, unit length.
          gallery: of the same images as training images; None where they are the same.
          seed: of the bootstrap, which draws test images.

        Returns:
          `top_1`, `top_5` (None of fewer than six classes) and `knn`; arrays `predicted` and `predicted_knn`.
        """
        learned = (embeddings if gallery is None else gallery)[self.train]
        known, tested, truth = self.labels[self.train], embeddings[self.test], self.labels[self.test]
        order = np.argsort(-(tested @ class_means(learned, known).T), axis=1, kind="stable")
        predicted = {"top_1": order[:, 0], "knn": nearest_classes(tested, learned, known, self.neighbors)}
        right = {name: found == truth for name, found in predicted.items()}
        if self._classes > 5:
            right["top_5"] = (order[:, :5] == truth[:, None]).any(axis=1)
        metrics = {name: percent(right[name].mean()) if name in right else None for name in ("top_1", "top_5", "knn")}
        metrics |= {"n_train": len(known), "n_test": len(truth), "n_classes": self._classes}
        images = np.arange(len(truth))
        intervals = {name: percents(bootstrap.of_mean(found, images, seed=seed)) for name, found in right.items()}
        return Result(metrics, intervals, {"predicted": predicted["top_1"], "predicted_knn": predicted["knn"]})

    def curves(self, results: Mapping[str, Result]) -> dict:
        """None: there is no ROC."""
        return {}


def class_means(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Normalized mean of the unit-length embeddings `[N, D]` of each class: `[K, D]`."""
    sums = np.zeros((int(labels.max()) + 1, embeddings.shape[1]), np.float64)
    np.add.at(sums, labels, unit(embeddings))
    return unit(sums).astype(np.float32)


def nearest_classes(probes: np.ndarray, gallery: np.ndarray, labels: np.ndarray, neighbors: int) -> np.ndarray:
    """The class of most of the nearest gallery images, of equal votes that of the larger similarities.

    Args:
      probes: float `[P, D]`, unit length.
      gallery: float `[G, D]`, unit length.
      labels: int `[G]`.
      neighbors: k; all of the gallery where that has fewer.

    Returns:
      int `[P]`.
    """
    k, classes, found = min(neighbors, len(gallery)), int(labels.max()) + 1, []
    for start in range(0, len(probes), BLOCK):
        similarity = probes[start : start + BLOCK] @ gallery.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(similarity), classes))
        rows = np.arange(len(similarity))[:, None]
        # Similarities of k neighbors add up to at most k, so they never outweigh a vote.
        np.add.at(votes, (rows, labels[nearest]), 1 + np.take_along_axis(similarity, nearest, axis=1) / (4 * k))
        found.append(votes.argmax(axis=1))
    return np.concatenate(found)
