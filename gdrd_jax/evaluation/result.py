"""What every protocol says of one model at one resolution."""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures of one row of a table.

    Attributes:
      metrics: name to figure, shares in percent; None where the data cannot support it.
      intervals: name to 95 % interval, in the same unit.
      arrays: what the figures were computed from, for `scores.npz`.
    """

    metrics: dict[str, object]
    intervals: dict[str, tuple[float, float]]
    arrays: dict[str, np.ndarray]


def percent(share: float | None) -> float | None:
    """A share in [0, 1] as a percentage, to four decimals."""
    return None if share is None else round(100 * float(share), 4)


def percents(interval: Iterable[float]) -> tuple[float, ...]:
    """The same for both ends of an interval."""
    return tuple(round(100 * float(end), 4) for end in interval)
