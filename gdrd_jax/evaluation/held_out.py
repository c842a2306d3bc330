"""The held-out people protocol: all pairs of people who were never trained on."""

import dataclasses

import numpy as np

from gdrd_jax.evaluation import identification, verification
from gdrd_jax.evaluation.result import Result, percent
from gdrd_jax.evaluation.verification import Pairs


@dataclasses.dataclass(frozen=True)
class HeldOutPeople:
    """Low-resolution faces of test people, and of calibration people on whom the threshold is learned.

    The recognizers must not have learned to tell the calibration people apart, or the threshold is too high for
    strangers.

    Attributes:
      faces: uint8 RGB `[N, R, R, 3]`, those of test people first.
      labels: int `[N]`; every test person has at least two faces.
      tested: number of faces of test people.
    """

    faces: np.ndarray
    labels: np.ndarray
    tested: int

    columns = {"accuracy": "accuracy %", "auc": "AUC %", "eer": "EER %", "rank_1": "rank-1 %"}
    legend = (
        "Accuracy: mean of the shares of genuine pairs accepted and impostor pairs rejected, at the threshold that is "
        "best on training people whose identity no row has learned. AUC: area under the ROC curve. EER: equal "
        "error rate. Rank-1: the nearest of the gallery faces (the first of each test person) is of the right person."
    )

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int = 0) -> Result:
        """Scores one model.

        Args:
          embeddings: float `[N, D]`, unit length.
          gallery, seed: unused; the gallery of rank-1 is the first face of each test person.

        Returns:
          The metrics of `verification.pair_metrics`, balanced and at the threshold of the calibration people, and
          `rank_1`; arrays `scores` and `same`.
        """
        test, labels = embeddings[: self.tested], self.labels[: self.tested]
        calibration = verification.all_pairs(embeddings[self.tested :], self.labels[self.tested :])
        pairs = verification.all_pairs(test, labels)
        threshold = verification.best_threshold(calibration)
        metrics = verification.pair_metrics(pairs, threshold=threshold, balanced=True)
        metrics["rank_1"] = percent(identification.rank_1(test, labels))
        return Result(metrics, {}, {"scores": pairs.scores, "same": pairs.same})

    def curves(self, results: dict[str, Result]) -> dict[str, Pairs]:
        """ROC of every row."""
        return {name: Pairs(result.arrays["scores"], result.arrays["same"]) for name, result in results.items()}
