"""The result of a protocol for one model at one resolution."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np

Metric = float | None | Sequence[float | None] | Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Result:
    """The figures of one row of a table.

    Attributes:
      metrics: name to figure; rates are in percent, and None if the data cannot support them.
      intervals: name to 95 % interval, in the same unit; "a.b" names the figure b of the metric a.
      arrays: the arrays from which the figures were computed, for `scores.npz`.
    """

    metrics: Mapping[str, Metric]
    intervals: Mapping[str, tuple[float, float]]
    arrays: Mapping[str, np.ndarray]

    def figure(self, name: str) -> float | None:
        """See `figure`."""
        return figure(self.metrics, name)


def figure(metrics: Mapping[str, Metric], name: str) -> float | None:
    """A single figure from `Result.metrics`; "a.b" is the figure b of the metric a. None if there is none."""
    first, _, rest = name.partition(".")
    found = metrics.get(first)
    found = metrics[name] if name in metrics else found.get(rest) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) else None


@overload
def percent(share: float) -> float: ...
@overload
def percent(share: None) -> None: ...
@overload
def percent(share: float | None) -> float | None: ...
def percent(share: float | None) -> float | None:
    """A share in [0, 1] as a percentage, to four decimals."""
    return None if share is None else round(100 * float(share), 4)


def percents(interval: tuple[float, float]) -> tuple[float, float]:
    """Both ends of an interval in [0, 1] as percentages, to four decimals."""
    low, high = interval
    return percent(low), percent(high)
