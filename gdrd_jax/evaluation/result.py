"""What every protocol says of one model at one resolution."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np

Metric = float | None | Sequence[float | None] | Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures of one row of a table.

    Attributes:
      metrics: name to figure, shares in percent; None where the data cannot support it.
      intervals: name to 95 % interval, in the same unit; "a.b" for the figure b of the metric a.
      arrays: what the figures were computed from, for `scores.npz`.
    """

    metrics: Mapping[str, Metric]
    intervals: Mapping[str, tuple[float, float]]
    arrays: Mapping[str, np.ndarray]

    def figure(self, name: str) -> float | None:
        """See `figure`."""
        return figure(self.metrics, name)


def figure(metrics: Mapping[str, Metric], name: str) -> float | None:
    """A single figure of `Result.metrics`, "a.b" for the figure b of the metric a; None where there is none."""
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
    """The same for both ends of an interval."""
    low, high = interval
    return percent(low), percent(high)
