"""How the processes of one run stop and end together.

A process that is asked to stop (SIGINT, SIGTERM) while it trains finishes its step; all agree on the
step after which they write a checkpoint and leave. A process that fails says why, and the others end
with one line. They talk through the key-value store of the process group, which works even while a
collective call waits. When one process ends badly, `accelerate launch` sends SIGTERM to the others of
its machine and, half a minute later, SIGKILL; those on other machines find their connections closed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

ANSWER_SECONDS = 20.0
"""How long, after a signal, a process waits for the others' answer: the launcher kills after 30."""
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


def asked_to_stop() -> int | None:
    """The signal by which this process, or another one of the run, was asked to stop."""
    found = _signals
    if found.number is None and found.launcher not in (None, os.getppid()):
        # A launcher of a single process does not pass on the signal that ended it.
        found.note(signal.SIGTERM)
    if not several():
        return found.number
    if found.number is not None:
        if not board().has("stop"):
            board().write("stop", str(found.number))
    elif time.monotonic() - found.looked > LOOK_SECONDS:
        found.looked = time.monotonic()
        if board().has("stop"):
            found.note(int(board().read("stop")))
    return found.number


def wait_for_launcher() -> None:
    """Wait a moment for its SIGTERM: it should see first the process that ended first."""
    until = time.monotonic() + 5.0
    while _signals.number is None and time.monotonic() < until:
        time.sleep(0.05)


class Board:
    """Notes that all processes of the run can read, by key; none is ever removed."""

    def __init__(self) -> None:
        self._own: dict[str, str] = {}

    @cached_property
    def _shared(self) -> Any:
        from torch.distributed import PrefixStore, distributed_c10d

        return PrefixStore("fastzoo", distributed_c10d._get_default_store())

    def write(self, key: str, text: str = "") -> None:
        if not several():
            self._own[key] = text
            return
        with talking():
            self._shared.set(key, text)

    def has(self, key: str) -> bool:
        if not several():
            return key in self._own
        with talking():
            return bool(self._shared.check([key]))

    def read(self, key: str, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Wait for a note and return it; ``meanwhile`` is called now and then.

        Raises PeerEnded: another process failed, or does not answer although the run was to stop.
        """
        if not several():
            return self._own[key]
        pause, until = 0.0005, float("inf")
        while not self.has(key):
            if self.has("failed"):
                end_undisturbed()
                raise PeerEnded("another process has failed")
            if until == float("inf") and _signals.number is not None:
                until = time.monotonic() + ANSWER_SECONDS
            if time.monotonic() > until:
                end_undisturbed()
                raise PeerEnded(f"no answer from another process in {ANSWER_SECONDS:.0f} s")
            meanwhile()
            time.sleep(pause)
            pause = min(0.02, 2 * pause)
        with talking():
            return str(self._shared.get(key).decode())


@cache
def board() -> Board:
    """The one of this run."""
    return Board()


@contextmanager
def talking() -> Iterator[None]:
    """Around calls that wait for other processes: their RuntimeError, which gloo and NCCL raise for
    everything, becomes PeerEnded, since it is not an error of this process."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
            raise  # torch's own, of this process's GPU
        end_undisturbed()
        first = str(error).strip().partition("\n")[0]
        cause = "" if "closed by peer" in first else f" ({first[:200]})"
        raise PeerEnded(f"another process ended, or cannot be reached{cause}") from None
