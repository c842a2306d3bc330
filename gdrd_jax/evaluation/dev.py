"""The dev set: faces on which a student is verified while it is trained."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gdrd_jax.data.degrade import resize
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.evaluation import verification
from gdrd_jax.evaluation.lfw import open_bin, open_lfw
from gdrd_jax.evaluation.result import percent
from gdrd_jax.evaluation.verification import Pairs


@dataclasses.dataclass(frozen=True)
class DevSet:
    """Faces and how their embeddings are judged.

    Attributes:
      faces: uint8 RGB `[N, R, R, 3]`.
      judge: float `[N, D]`, unit length -> `dev_accuracy` and `dev_auc` in percent.
    """

    faces: np.ndarray
    judge: Callable[[np.ndarray], dict[str, float]]


def of_people(faces: np.ndarray, labels: np.ndarray) -> DevSet:
    """All pairs of some people; accuracy is balanced, at the threshold that is best on these very pairs."""

    def judge(embeddings: np.ndarray) -> dict[str, float]:
        pairs = verification.all_pairs(embeddings, labels)
        return _metrics(verification.balanced_accuracy(pairs, verification.best_threshold(pairs)), pairs)

    return DevSet(faces, judge)


def of_pairs(data: Path, pairs: Path | None, resolution: int, kernel: str) -> DevSet:
    """LFW with its `pairs.txt`, or an InsightFace `.bin`; accuracy by the LFW protocol.

    Raises:
      GdrdError: they are missing, damaged or do not belong together.
    """
    how = {"stretch": False, "skip_bad": False}
    found = open_bin(data, **how) if data.suffix == ".bin" else open_lfw(data, pairs, **how)
    faces = np.stack(list(in_parallel(lambda i: resize(found.faces[i], resolution, kernel), range(len(found.faces)))))

    def judge(embeddings: np.ndarray) -> dict[str, float]:
        scored = Pairs(np.einsum("pd,pd->p", embeddings[found.first], embeddings[found.second]), found.same)
        if len(np.unique(found.folds)) == 1:
            return _metrics(verification.best_accuracy(scored), scored)
        return _metrics(verification.fold_accuracies(scored, found.folds)[0].mean(), scored)

    return DevSet(faces, judge)


def _metrics(accuracy: float, pairs: Pairs) -> dict[str, float]:
    return {"dev_accuracy": percent(accuracy), "dev_auc": percent(verification.auc(pairs))}
