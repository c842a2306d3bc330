"""What all command lines share: the parser of arguments, and how errors, signals and closed pipes end them."""

import argparse
import contextlib
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable

from gdrd_jax.utils.errors import GdrdError, did_you_mean
from gdrd_jax.utils.platforms import platform_problem
from gdrd_jax.utils.signals import Interrupted, Signals, check_signals

CLOSED_PIPE = 128 + getattr(signal, "SIGPIPE", 13)  # which Windows does not have
EXAMPLES = "\nExamples:\n"


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose mistakes are `GdrdError`s, so that they are printed like all others.

    Args:
      about: the text above the options, whose lines stay as they are. What follows a line "Examples:" in it is
        printed below the options.
      settings: of `argparse.ArgumentParser`.
    """

    def __init__(self, about: str | None = None, **settings):
        above, _, examples = (about or "").partition(EXAMPLES)
        super().__init__(
            description=above or None, epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter, **settings,
        )  # fmt: skip

    def error(self, message: str):
        """Raises the error of a mistake in the arguments."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        raise GdrdError(f"{message}; {hint}{self.prog} --help explains the arguments", "command-usage")


def add_degradation(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `data.degradation.STRENGTHS`, by which faces are degraded before they are embedded."""
    add = parser.add_argument
    add("--blur", type=float, default=0.0, help="Gaussian blur before reducing: sigma in pixels of 112 (default: 0)")
    add("--motion", type=float, default=0.0, help="motion blur before reducing: length in pixels of 112")
    add("--noise", type=float, default=0.0, help="Gaussian noise after reducing: sigma of 255")
    add("--jpeg", type=int, default=0, help="JPEG quality after reducing, 1-100 (default: none)")


def guarded(work: Callable[[], None], *, resumes: bool = True) -> int:
    """Does the work of a command line, parsing its arguments included.

    Args:
      work: does it.
      resumes: the same command continues where it was stopped.

    Returns:
      The exit status: 2 for a user's mistake, 130 after Ctrl-C, 141 if the reader of the output has gone (`| head`),
      0 after SIGTERM and otherwise.
    """
    _prepare_output()
    try:
        status = _status(work, resumes)
        flush()
        return status
    except BrokenPipeError as error:
        if not _output_is_closed():  # a worker's pipe, or a socket
            what = f"{error.strerror}: a process or connection that this command works with has ended"
            return print_error(what, "connection-lost")
        _silence()
        return CLOSED_PIPE
    except SystemExit:  # argparse's
        try:
            flush()
        except BrokenPipeError:
            _silence()
            return CLOSED_PIPE
        raise


def _status(work: Callable[[], None], resumes: bool) -> int:
    signals = Signals(hold=False)
    try:
        with signals:
            work()
            check_signals()
    except GdrdError as error:
        return print_error(str(error), error.code)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return print_error(f"{error.strerror or error}{where}", "system")
    except (RuntimeError, AssertionError) as error:
        if not (problem := platform_problem(error)):
            raise
        return print_error(problem, "jax-platform")
    except (Interrupted, KeyboardInterrupt) as stop:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one would cut through the threads' end
            signal.signal(number, signal.SIG_IGN)
        saved, since = (f": {stop}", "") if str(stop) else ("", " from the last save")
        print(f"\nstopped{saved}; the same command continues{since}" if resumes else "\nstopped", file=sys.stderr)
        number = getattr(stop, "signal", signals.received)  # not received here if another process was stopped
        return 0 if number == signal.SIGTERM else 130
    return 0


def print_error(message: str, code: str) -> int:
    """Prints a user's mistake as all commands do; returns the exit status, 2."""
    print(f"error: {message} [{code}]", file=sys.stderr)
    return 2


def _prepare_output() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `2>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):  # a notebook's streams do not have it
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("gdrd_jax").setLevel(logging.INFO)


def flush() -> None:
    """Writes what is left of the output; raises BrokenPipeError if its reader has gone."""
    sys.stdout.flush()
    sys.stderr.flush()


def _output_is_closed() -> bool:
    """Whether the reader of stdout or stderr has gone; taken for granted on Windows, which has no `poll`."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a test's stream has no descriptor
            poll.register(stream.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))


def _silence() -> None:
    """Discards what Python still writes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a test's stream has no descriptor
            os.dup2(nowhere, stream.fileno())
