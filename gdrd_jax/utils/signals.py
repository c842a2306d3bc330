"""Stopping long work cleanly on SIGINT (Ctrl-C) and SIGTERM.

Python calls a signal's handler between any two instructions of the main thread. If these belong to a callback of the
garbage collector, such as JAX's, or to a destructor, what the handler raises is printed and dropped, and the work goes
on. So a signal is also recorded, and long work looks at the record between its parts (`check_signals`).
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, ClassVar


class Interrupted(BaseException):  # libraries that import themselves lazily take an Exception for a broken install
    """A signal asked to stop; everything done so far is on disk.

    Attributes:
      signal: the signal's number.
    """

    def __init__(self, where: str, number: int):
        super().__init__(where)
        self.signal = number


class Signals:
    """Within this context SIGINT and SIGTERM are recorded; contexts inside another one share its record.

    Outside the main thread, which alone receives signals, the context changes nothing.

    Args:
      hold: the first signal is only recorded, so that work can be saved; a second one raises KeyboardInterrupt.
        Without `hold` each one raises it.
    """

    _innermost: ClassVar["Signals | None"] = None

    def __init__(self, *, hold: bool = True):
        self.hold = hold
        self._outer = Signals._innermost
        self._numbers: list[int] = self._outer._numbers if self._outer else []
        self._handlers: dict[int, Any] = {}

    @property
    def received(self) -> int:
        """Number of the last signal that arrived, in this context or those around it, or 0."""
        return self._numbers[-1] if self._numbers else 0

    def _handle(self, number: int, _frame: object) -> None:
        again = bool(self._numbers)
        self._numbers.append(number)
        if again or not self.hold:
            raise KeyboardInterrupt

    def _report_dropped(self, dropped: Any) -> None:
        """Leaves out the KeyboardInterrupts that `check_signals` makes up for."""
        if not (self._numbers and issubclass(dropped.exc_type, KeyboardInterrupt)):
            self._report_before(dropped)

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            # SIGINT first, and last in `__exit__`: where its handler before raises, nothing is left half changed.
            self._handlers = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
            self._report_before, sys.unraisablehook = sys.unraisablehook, self._report_dropped
            Signals._innermost = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers:
            Signals._innermost = self._outer
            sys.unraisablehook = self._report_before
            for number, handler in reversed(self._handlers.items()):
                signal.signal(number, handler)


def check_signals(where: str = "") -> None:
    """Raises `Interrupted` if a signal arrived whose KeyboardInterrupt was dropped.

    Where the innermost context of `Signals` holds signals, it does nothing: the work in it looks at the record itself.

    Args:
      where: what is on disk, as part of a sentence; by default what was saved last.
    """
    context = Signals._innermost
    if context and context.received and not context.hold:
        raise Interrupted(where, context.received)


@contextlib.contextmanager
def deferred(where: str) -> Iterator[None]:
    """Holds a signal back until the end of this context, then raises `Interrupted`, unless a context around holds it.

    For imports of native libraries, which can crash when an exception cuts through them.
    """
    with Signals() as signals:
        yield
    around = Signals._innermost
    if signals.received and not (around and around.hold):
        raise Interrupted(where, signals.received)
