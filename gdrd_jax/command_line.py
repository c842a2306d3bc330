"""What all command lines do with errors and signals."""

import logging
import signal
import sys
from collections.abc import Callable

from gdrd_jax.errors import GdrdError
from gdrd_jax.interrupt import Interrupted


def _terminated(number: int, _frame) -> None:
    raise Interrupted("between two saves", number)


def guarded(work: Callable[[], None], *, resumes: bool = True) -> int:
    """Does the work of a command line.

    Args:
      work: does it.
      resumes: the same command goes on where it was stopped.

    Returns:
      The exit status: 2 for a user's mistake, 130 after Ctrl-C, 0 after SIGTERM and otherwise.
    """
    signal.signal(signal.SIGTERM, _terminated)
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be of any bytes
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("gdrd_jax").setLevel(logging.INFO)
    try:
        work()
    except GdrdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one would cut through the threads' end
            signal.signal(number, signal.SIG_IGN)
        told = f": {str(stop) or 'between two saves'}; the same command continues" if resumes else ""
        print(f"\nstopped{told}", file=sys.stderr)
        return 0 if getattr(stop, "signal", signal.SIGINT) == signal.SIGTERM else 130
    return 0
