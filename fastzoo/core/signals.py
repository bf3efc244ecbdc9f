"""SIGINT and SIGTERM: a first one stops the run after its step, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ECHO_SECONDS = 1.0
"""On Ctrl-C both the terminal and the launcher signal every process: a second signal this soon is no request."""
LOOK_SECONDS = 0.25
"""Between two looks at whether another process was asked to stop."""


class PeerEnded(BaseException):
    """Another process ended. Like KeyboardInterrupt not an ``Exception``: code that it interrupts must
    not take it for a failure of its own."""


class Stopped(BaseException):
    """The run was asked to stop, and did. ``exit_code`` is 128 plus the signal's number."""

    def __init__(self, number: int, when: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{when}; the same command goes on")
        self.exit_code = 128 + number


def several() -> bool:
    """Whether a launcher started several processes for this run."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def label() -> str:
    """``rank 1: `` where several processes run, nothing for a single one."""
    return f"rank {os.environ.get('RANK', '?')}: " if several() else ""


class _Signals:
    """The signal that this process got, and what it does about one."""

    def __init__(self) -> None:
        self.number: int | None = None  # the first that came
        self.at = 0.0
        self.noted_only = False  # it interrupts nothing
        self.idle: Callable[[], None] = lambda: None  # called during a ``nap``
        self.launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None
        self.looked = 0.0

    def note(self, number: int) -> None:
        self.number, self.at = number, time.monotonic()

    def on_signal(self, number: int, frame: Any) -> None:
        if self.number is not None:
            if not several() or time.monotonic() - self.at > ECHO_SECONDS:
                os.write(2, f"error: {label()}ended at once by a second signal\n".encode())
                os._exit(128 + number)
            return
        self.note(number)
        if self.noted_only:
            return
        self.noted_only = True
        if several() and number == signal.SIGTERM:
            raise PeerEnded("stopped by SIGTERM: the launcher sends it when another process has ended")
        raise Stopped(number)


_signals = _Signals()


def signals() -> _Signals:
    """Those of this process."""
    return _signals


@contextmanager
def obeying_signals() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise ``Stopped`` (within ``stoppable`` they are only noted); a
    second one ends the process at once."""
    global _signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals = _Signals()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda n, f: _signals.on_signal(n, f)) for n in numbers]
    try:
        yield
    finally:
        # One of several processes may be signalled again while it leaves.
        if not several():
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


@contextmanager
def stoppable(idle: Callable[[], None]) -> Iterator[None]:
    """Within, a signal is only noted, and the training loop asks ``asked_to_stop`` between steps;
    ``idle`` asks it during a ``nap``."""
    _signals.noted_only, _signals.idle = True, idle
    yield
    # (not after an exception: the run is ending and only tidies up, undisturbed)
    _signals.noted_only, _signals.idle = False, lambda: None
    if _signals.number is not None:
        raise Stopped(_signals.number, " after the last step")


def end_undisturbed() -> None:
    """From here on this process only tidies up: a first signal does not interrupt it."""
    _signals.noted_only, _signals.idle = True, lambda: None


def nap(seconds: float) -> None:
    """Sleep, but wake up when the run is asked to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_SECONDS))
        if threading.current_thread() is threading.main_thread():
            _signals.idle()


def wait_for_launcher() -> None:
    """Wait a moment for its SIGTERM: it should see first the process that ended first."""
    until = time.monotonic() + 5.0
    while _signals.number is None and time.monotonic() < until:
        time.sleep(0.05)
