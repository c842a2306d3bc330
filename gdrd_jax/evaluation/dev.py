"""The dev set: faces on which a student is verified while it is trained."""

import dataclasses
from pathlib import Path

import numpy as np

from gdrd_jax.data.degradation import Degradation, resize
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.evaluation import verification
from gdrd_jax.evaluation.lfw import PairList, open_bin, open_lfw
from gdrd_jax.evaluation.result import percent
from gdrd_jax.evaluation.verification import Pairs

SEED = 0  # of noise, the default of gdrd evaluate


@dataclasses.dataclass(frozen=True)
class DevSet:
    """Faces, and the pairs of them that are verified.

    Attributes:
      faces: uint8 RGB `[N, R, R, 3]`.
      first, second: numbers of the faces of each pair, int `[P]`.
      same: bool `[P]`.
      people: who is in a pair, int `[P, 2]`; where that is unknown the pair's own number twice.
      folds: int `[P]`, of the LFW protocol; all 0: one threshold, the best on these very pairs.
      balanced: count genuine and impostor pairs alike, however many they are.
    """

    faces: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    people: np.ndarray
    folds: np.ndarray
    balanced: bool = False

    def score(self, embeddings: np.ndarray) -> Pairs:
        """float `[N, D]`, unit length -> the pairs with their cosine."""
        return Pairs(np.einsum("pd,pd->p", embeddings[self.first], embeddings[self.second]), self.same)

    def judge(self, pairs: Pairs) -> dict[str, float]:
        """`dev_accuracy` and `dev_auc` in percent."""
        if self.balanced:
            accuracy = verification.balanced_accuracy(pairs, verification.best_threshold(pairs))
        elif np.ptp(self.folds):
            accuracy = verification.fold_accuracies(pairs, self.folds)[0].mean()
        else:
            accuracy = verification.best_accuracy(pairs)
        return {"dev_accuracy": percent(accuracy), "dev_auc": percent(verification.auc(pairs))}


def of_people(faces: np.ndarray, labels: np.ndarray) -> DevSet:
    """All pairs of some people."""
    first, second = np.triu_indices(len(labels), 1)
    people = np.stack([labels[first], labels[second]], axis=1)
    return DevSet(faces, first, second, people[:, 0] == people[:, 1], people, np.zeros(len(first), int), balanced=True)


def of_pairs(data: Path, pairs: Path | None, how: Degradation) -> DevSet:
    """LFW with its `pairs.txt`, or an InsightFace `.bin`, its faces degraded as gdrd evaluate does.

    Raises:
      GdrdError: they are missing, damaged or do not belong together.
    """
    found = open_pairs(data, pairs)
    of = (getattr(found, name) for name in ("first", "second", "same", "people", "folds"))
    faces = found.faces
    low = in_parallel(lambda i: how.of_named(faces[i], faces.names[i], SEED), range(len(faces)))
    return DevSet(np.stack(list(low)), *of)


def open_pairs(data: Path, pairs: Path | None) -> PairList:
    """The pairs themselves; arguments and errors as of `of_pairs`."""
    how = {"stretch": False, "skip_bad": False}
    return open_bin(data, **how) if data.suffix == ".bin" else open_lfw(data, pairs, **how)


def reduced(faces: Faces, resolution: int, kernel: str) -> np.ndarray:
    """All faces: uint8 RGB `[N, R, R, 3]`."""
    return np.stack(list(in_parallel(lambda i: resize(faces[i], resolution, kernel), range(len(faces)))))
