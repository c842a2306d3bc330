"""Stopping long work cleanly on SIGINT (Ctrl-C) and SIGTERM."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(BaseException):  # libraries that import themselves lazily take an Exception for a broken install
    """A signal asked to stop; everything done so far is on disk.

    Attributes:
      signal: the signal's number.
    """

    def __init__(self, where: str, number: int):
        super().__init__(where)
        self.signal = number


class Signals:
    """Within this context the first SIGINT or SIGTERM is only remembered, so that work can be saved.

    Attributes:
      received: number of the signal that arrived, or 0. A second one raises
        KeyboardInterrupt at once.
    """

    def __init__(self):
        self.received = 0

    def _handle(self, number, _frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> "Signals":
        self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred(where: str) -> Iterator[None]:
    """Holds a signal back until the end of this context, then raises `Interrupted`.

    For imports of native libraries, which can crash when an exception cuts through them.
    Outside the main thread, which alone receives signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with Signals() as signals:
        yield
    if signals.received:
        raise Interrupted(where, signals.received)
