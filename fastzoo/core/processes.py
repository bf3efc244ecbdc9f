"""How the processes of one run stop and end together.

Whoever is asked to stop (SIGINT, SIGTERM) while it trains finishes its step; the processes agree on
the step after which all write a checkpoint and leave. A process that fails says why, and the others
follow in one line. They talk through the process group's key-value store, which works in the midst
of a collective call too.

`accelerate launch` tells every process its rank by environment variables. When one process ends
badly, the launcher sends SIGTERM to the others of its machine and, half a minute later, SIGKILL;
those on other machines find their connections closed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

LINGER_SECONDS = 5.0
"""How long a process that lost another one waits for the launcher's SIGTERM before it leaves."""

PATIENCE_SECONDS = 20.0
"""How long, after a signal, a process waits for the others' answer: the launcher kills after 30."""

ECHO_SECONDS = 1.0
"""On Ctrl-C the terminal signals every process, and then the launcher does so again: within this
time a second signal is no second wish."""

LOOK_SECONDS = 0.25
"""Between two looks at whether another process was asked to stop."""


class PeerEnded(BaseException):
    """Another process ended. Like KeyboardInterrupt no ``Exception``: it comes at any moment, and
    whatever runs then must not take it for a failure of its own."""


class Stopped(BaseException):
    """The run was asked to stop, and did. ``exit_code`` is 128 plus the signal's number."""

    def __init__(self, number: int, when: str = "") -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}{when}; the same command goes on"
        )
        self.exit_code = 128 + number


def several() -> bool:
    """Whether a launcher started several processes for this run."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def label() -> str:
    """``rank 1: `` where several processes run, nothing for a single one."""
    return f"rank {os.environ.get('RANK', '?')}: " if several() else ""


# --- signals -------------------------------------------------------------------------------------


class _Signals:
    """What was signalled to this process, and what a signal means now."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that came."""
        self.at = 0.0
        self.noted_only = False
        """Whether somebody asks for it, so that it interrupts nothing."""
        self.idle: Callable[[], None] = lambda: None
        """Asks for it where something is waited for."""
        self.launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None
        self.looked = 0.0

    def on_signal(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.number is not None:
            if not several() or now - self.at > ECHO_SECONDS:
                os.write(2, f"error: {label()}ended at once by a second signal\n".encode())
                os._exit(128 + number)
            return
        self.number, self.at = number, now
        if self.noted_only:
            return
        self.noted_only = True
        if several() and number == signal.SIGTERM:
            raise PeerEnded(
                "stopped by SIGTERM: the launcher sends it when another process has ended"
            )
        raise Stopped(number)


_signals = _Signals()


@contextmanager
def obeying_signals() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise ``Stopped`` (while training, ``stoppable``, they are noted);
    a second one ends the process at once."""
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
        # A process that leaves a launcher is signalled again.
        if not several():
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


@contextmanager
def stoppable(idle: Callable[[], None]) -> Iterator[None]:
    """Within, a signal is only noted: whoever trains asks ``asked_to_stop`` between steps.

    Args:
        idle: asks for it during a ``nap``.
    """
    _signals.noted_only, _signals.idle = True, idle
    yield
    _signals.idle = lambda: None
    # An exception ends the run: it only tidies up, undisturbed.
    _signals.noted_only = False
    if _signals.number is not None:
        raise Stopped(_signals.number, " after the last step")


def end_undisturbed() -> None:
    """From here on this process only tidies up: a first signal does not interrupt it."""
    _signals.noted_only = True


def nap(seconds: float) -> None:
    """Sleep, but not longer than it takes to notice that the run is to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_SECONDS))
        if threading.current_thread() is threading.main_thread():
            _signals.idle()


def asked_to_stop() -> int | None:
    """The signal by which this process, or another one of the run, was asked to stop."""
    found = _signals
    if found.number is None and found.launcher not in (None, os.getppid()):
        # A launcher of a single process does not pass on what ended it.
        found.number, found.at = signal.SIGTERM, time.monotonic()
    if not several():
        return found.number
    if found.number is not None:
        if not _board.has("stop"):
            _board.write("stop", str(found.number))
    elif time.monotonic() - found.looked > LOOK_SECONDS:
        found.looked = time.monotonic()
        if _board.has("stop"):
            found.number, found.at = int(_board.read("stop")), found.looked
    return found.number


# --- what they tell each other -------------------------------------------------------------------


class Board:
    """Notes that all processes of the run can read, by key; nothing is ever taken off."""

    def __init__(self) -> None:
        self._own: dict[str, str] = {}
        self._store: Any = None

    def _shared(self) -> Any:
        if self._store is None:
            from torch.distributed import PrefixStore, distributed_c10d

            self._store = PrefixStore("fastzoo", distributed_c10d._get_default_store())
        return self._store

    def write(self, key: str, text: str = "") -> None:
        if not several():
            self._own[key] = text
            return
        with talking():
            self._shared().set(key, text)

    def has(self, key: str) -> bool:
        if not several():
            return key in self._own
        with talking():
            return bool(self._shared().check([key]))

    def read(self, key: str, meanwhile: Callable[[], None] = lambda: None) -> str:
        """The note, waited for.

        Args:
            meanwhile: called now and then.

        Raises:
            PeerEnded: another process failed, or does not answer although the run was to stop.
        """
        if not several():
            return self._own[key]
        nap, until = 0.0005, float("inf")
        while not self.has(key):
            if self.has("failed"):
                end_undisturbed()
                raise PeerEnded("another process has failed")
            if until == float("inf") and _signals.number is not None:
                until = time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > until:
                end_undisturbed()
                raise PeerEnded(f"no answer from another process in {PATIENCE_SECONDS:.0f} s")
            meanwhile()
            time.sleep(nap)
            nap = min(0.02, 2 * nap)
        with talking():
            return str(self._shared().get(key).decode())


_board = Board()


def board() -> Board:
    """That of this run."""
    return _board


@contextmanager
def talking() -> Iterator[None]:
    """Around calls that wait for other processes: their end is no error of this one.

    Raises:
        PeerEnded: the backend failed (gloo and NCCL raise RuntimeError for everything).
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
            raise  # torch's own, of this process's GPU
        end_undisturbed()
        first = str(error).strip().partition("\n")[0]
        cause = "" if "closed by peer" in first else f" ({first[:200]})"
        raise PeerEnded(f"another process ended, or cannot be reached{cause}") from None


# --- leaving -------------------------------------------------------------------------------------


def leave(code: int) -> NoReturn:
    """End this process with ``code``.

    One of several skips the orderly end of the process group, which would wait for processes that
    may be gone (NCCL) and was seen to abort (gloo).
    """
    if not several():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_after_failure(code: int) -> NoReturn:
    """End this process with ``code``; others that wait for it are told."""
    if several():
        with suppress(BaseException):  # there is no group yet, or nobody is left
            _board.write("failed")
    leave(code)


def leave_after_peer() -> NoReturn:
    """End this process with code 1, but not before the launcher has seen which one ended first."""
    until = time.monotonic() + LINGER_SECONDS
    while _signals.number is None and time.monotonic() < until:
        time.sleep(0.05)
    leave(1)
