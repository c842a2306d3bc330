"""The held-out people protocol: all pairs of people who were never trained on."""

import numpy as np

from gdrd_jax.evaluation import identification, verification
from gdrd_jax.evaluation.result import Result, percent

COLUMNS = {"accuracy": "accuracy %", "auc": "AUC %", "eer": "EER %", "rank_1": "rank-1 %"}
LEGEND = (
    "Accuracy: mean of the shares of genuine pairs accepted and impostor pairs rejected, at the threshold that is "
    "best on training people whose identity no row has learned. AUC: area under the ROC curve. EER: equal "
    "error rate. Rank-1: the nearest of the gallery faces (the first of each test person) is of the right person."
)


def evaluate(
    test: np.ndarray, test_labels: np.ndarray, calibration: np.ndarray, calibration_labels: np.ndarray
) -> Result:
    """Scores one model.

    Args:
      test: embeddings of faces of held-out people, float `[N, D]`, unit length.
      test_labels: int `[N]`, every identity at least twice.
      calibration: embeddings of people on whom the threshold is learned, `[M, D]`. The model must not
        have learned to tell these people apart, or the threshold is too high for strangers.
      calibration_labels: int `[M]`.

    Returns:
      Metrics `accuracy` (balanced, at the threshold learned on calibration people), `best_threshold_accuracy`,
      `auc`, `eer` and `rank_1`, in percent, and that `threshold`; arrays `scores` and `same`.
    """
    pairs = verification.all_pairs(test, test_labels)
    threshold = verification.best_threshold(verification.all_pairs(calibration, calibration_labels))
    shares = {
        "accuracy": verification.balanced_accuracy(pairs, threshold),
        "best_threshold_accuracy": verification.balanced_accuracy(pairs, verification.best_threshold(pairs)),
        "auc": verification.auc(pairs),
        "eer": verification.eer(pairs),
        "rank_1": identification.rank_1(test, test_labels),
    }
    metrics = {name: percent(share) for name, share in shares.items()} | {"threshold": threshold}
    return Result(metrics, {}, {"scores": pairs.scores, "same": pairs.same})
