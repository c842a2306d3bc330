"""The held-out people protocol: all pairs of people who were never trained on."""

import dataclasses

import numpy as np

from gdrd_jax.evaluation import identification, verification
from gdrd_jax.evaluation.verification import Pairs


@dataclasses.dataclass(frozen=True)
class Row:
    """One model under the protocol.

    Attributes:
      metrics: `accuracy` (balanced, at the threshold learnt on calibration people),
        `best_threshold_accuracy`, `auc`, `eer` and `rank_1`, all in percent, and that `threshold`.
      pairs: of the test people, all.
      embeddings: of the test faces, `[N, D]`.
    """

    metrics: dict[str, float]
    pairs: Pairs
    embeddings: np.ndarray


def evaluate(test: np.ndarray, test_labels: np.ndarray, calibration: np.ndarray, calibration_labels: np.ndarray) -> Row:
    """Scores one model.

    Args:
      test: embeddings of faces of held-out people, float `[N, D]`, unit length.
      test_labels: int `[N]`, every identity at least twice.
      calibration: embeddings of people on whom the threshold is learnt, `[M, D]`. The model must not
        have learnt to tell these people apart, or the threshold is too high for strangers.
      calibration_labels: int `[M]`.
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
    return Row({**{k: round(100 * v, 2) for k, v in shares.items()}, "threshold": threshold}, pairs, test)
