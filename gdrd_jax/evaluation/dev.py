"""The dev set: faces on which a student is verified while it is trained."""

import dataclasses
from pathlib import Path

import numpy as np

from gdrd_jax.data.degradation import Degradation
from gdrd_jax.data.loader import in_parallel
from gdrd_jax.evaluation import verification
from gdrd_jax.evaluation.lfw import LFW, Bin, PairList
from gdrd_jax.evaluation.result import figure
from gdrd_jax.evaluation.verification import Pairs

SEED = 0  # of noise, the default of gdrd evaluate


@dataclasses.dataclass(frozen=True)
class DevSet(PairList):
    """Pairs of low-resolution faces, uint8 RGB `[N, R, R, 3]`.

    Attributes:
      balanced: count genuine and impostor pairs alike, however many they are.
    """

    balanced: bool = False

    def judge(self, pairs: Pairs) -> dict[str, float | None]:
        """`dev_accuracy` and `dev_auc`, in percent, of the pairs as `score` makes them."""
        metrics = verification.pair_metrics(pairs, folds=self.folds, balanced=self.balanced)
        accuracy = figure(metrics, verification.main_accuracy(metrics))
        return {"dev_accuracy": accuracy, "dev_auc": figure(metrics, "auc")}


def of_people(faces: np.ndarray, labels: np.ndarray) -> DevSet:
    """All pairs of some people, uint8 RGB `[N, R, R, 3]` and int `[N]`: one threshold, the best on these very pairs."""
    first, second = np.triu_indices(len(labels), 1)
    people = np.stack([labels[first], labels[second]], axis=1)
    folds = np.zeros(len(first), int)
    return DevSet(faces, first, second, people[:, 0] == people[:, 1], folds, people, {}, balanced=True)


def of_pairs(data: Path, pairs: Path | None, degradation: Degradation) -> DevSet:
    """LFW with its `pairs.txt`, or an InsightFace `.bin`, its faces degraded as gdrd evaluate does.

    Raises:
      GdrdError: they are missing, damaged or do not belong together.
    """
    listed = open_pairs(data, pairs)
    faces = listed.named_faces
    low = in_parallel(lambda row: degradation.of_named(faces[row], faces.names[row], SEED), range(len(faces)))
    fields = {field.name: getattr(listed, field.name) for field in dataclasses.fields(PairList)}
    return DevSet(**fields | {"faces": np.stack(list(low))})


def open_pairs(data: Path, pairs: Path | None) -> PairList:
    """The pairs themselves; arguments and errors as of `of_pairs`."""
    return Bin.open(data) if data.suffix == ".bin" else LFW.open(data, LFW.Config("" if pairs is None else str(pairs)))
