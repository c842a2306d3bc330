"""A trace of some steps, and how much of the time the device was at work in it."""

import collections
import logging
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

LOG = logging.getLogger(__name__)
# What runs on the device: a line of a GPU's plane has one event a kernel; on the CPU one event is a dispatch.
CPU_WORK = "ThunkExecutor::Execute"


def busy_share(directory: Path) -> tuple[float, float] | None:
    """Of the newest trace below `directory`: share of the time the device was at work, and that time in seconds.

    The time runs from the first to the last event of the device; where several devices worked it is their mean. None
    if none did.
    """
    shares, longest = [], 0.0
    for events in _work(directory):
        spans = [span for _, *span in events]
        start, stop = min(s for s, _ in spans), max(e for _, e in spans)
        shares.append(_covered(spans) / (stop - start))
        longest = max(longest, (stop - start) / 1e9)
    return (sum(shares) / len(shares), longest) if shares else None


def kernel_seconds(directory: Path) -> dict[str, float]:
    """Of the newest trace below `directory`: seconds of each kernel by its name, all devices together."""
    found: dict[str, float] = collections.defaultdict(float)
    for events in _work(directory):
        for name, start, stop in events:
            found[name] += (stop - start) / 1e9
    return dict(found)


def _work(directory: Path) -> list[list[tuple[str, float, float]]]:
    """Name, start and end of what each device did, in nanoseconds."""
    path = max(directory.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    planes = list(ProfileData.from_file(str(path)).planes)
    gpus = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    if gpus:
        found = [[(e.name, e.start_ns, e.end_ns) for line in plane.lines for e in line.events] for plane in gpus]
    else:
        found = [[
            (e.name, e.start_ns, e.end_ns) for plane in planes for line in plane.lines for e in line.events
            if e.name.startswith(CPU_WORK)
        ]]  # fmt: skip
    return [events for events in found if events]


def _covered(spans: list[list[float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


class Trace:
    """Traces a few dispatches once the first, which compile, are over.

    Args:
      directory: for the trace, which TensorBoard's profile plugin and xprof read; None traces nothing.
    """

    SKIPPED, TRACED = 3, 5

    def __init__(self, directory: Path | None):
        self._directory, self._seen, self._running = directory, 0, False

    def dispatched(self, result: Any) -> None:
        """Counts a dispatch, whose result is given, and starts or ends the trace."""
        if self._directory is None:
            return
        self._seen += 1
        if self._seen == self.SKIPPED:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self._directory)
            self._running = True
        elif self._seen == self.SKIPPED + self.TRACED:
            jax.block_until_ready(result)
            self.stop()

    def stop(self) -> None:
        """Ends the trace if it is running, and logs what it shows."""
        if self._running and self._directory:
            jax.profiler.stop_trace()
            self._running = False
            found = busy_share(self._directory)
            if found is None:
                LOG.info("profile: nothing ran after the first dispatches; train more steps")
                return
            share, seconds = found
            LOG.info(
                "profile: the device was at work in %.1f %% of %.2f s; look at %s with TensorBoard's profile plugin",
                100 * share, seconds, self._directory,
            )  # fmt: skip
