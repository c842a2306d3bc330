"""Ctrl-C stops work at once, or at the next safe point where what it raises is dropped."""

import signal
import sys
import threading

import pytest
from conftest import send_while_collecting

from gdrd_jax.utils.signals import Interrupted, Signals, check_signals, deferred


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once(number):
    with pytest.raises(KeyboardInterrupt), Signals(hold=False) as signals:
        signal.raise_signal(number)
        pytest.fail("the work went on")
    assert signals.received == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_dropped_stops_the_work_at_the_next_safe_point(number, capfd):
    reached = False
    with pytest.raises(Interrupted, match="3 of 4") as caught, Signals(hold=False):
        check_signals()
        send_while_collecting(number)
        reached = True
        check_signals("3 of 4 parts are done")
    assert reached and caught.value.signal == number
    assert "Traceback" not in capfd.readouterr().err


def test_a_signal_that_is_dropped_is_known_to_a_stage_that_saves():
    with Signals(hold=False):
        send_while_collecting()
        with Signals() as signals:
            check_signals()
            assert signals.received == signal.SIGINT


def test_a_signal_is_held_until_the_end_of_the_context():
    with pytest.raises(Interrupted, match="loaded"), Signals(hold=False):
        with deferred("loaded"):
            signal.raise_signal(signal.SIGINT)
            check_signals()
            held = True
    assert held


def test_the_stage_that_saves_is_not_cut_by_a_context_inside_it():
    with Signals() as signals:
        with deferred("loaded"):
            signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT


def test_contexts_leave_no_trace():
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook]
    with pytest.raises(KeyboardInterrupt), Signals(hold=False), Signals(), Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook] == before
    check_signals()
    with Signals() as signals:
        assert not signals.received


@pytest.fixture
def interruptible():
    """A command that was stopped earlier in this process may have left signals ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("method", ["__enter__", "__exit__"])
def test_a_signal_while_the_context_begins_or_ends_leaves_no_trace(method, interruptible):
    state = lambda: [*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)), sys.unraisablehook, Signals._innermost]  # noqa: E731
    before, tracer = state(), sys.gettrace()
    code = getattr(Signals, method).__code__
    lines = sorted({line for *_, line in code.co_lines() if line and line > code.co_firstlineno})
    raised = []
    for line in lines:

        def at_line(frame, event, _, line=line):
            if frame.f_code is code and event == "line" and frame.f_lineno == line:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
            return at_line

        try:
            sys.settrace(at_line)
            with Signals():
                pass
        except KeyboardInterrupt:
            raised.append(line)
        finally:
            sys.settrace(tracer)
        assert state() == before
    assert len(lines) > 3 and bool(raised) == (method == "__enter__")


def test_other_threads_may_enter_the_context():
    problems = []

    def work():
        try:
            with Signals(), deferred("loaded"):
                check_signals()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not problems


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_exceptions_that_are_dropped_are_reported(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))

    class Bad:
        def __del__(self):
            raise ZeroDivisionError

    with Signals(hold=False):
        Bad()
    assert reported == [ZeroDivisionError]
