"""How the processes of one run end: the one that failed says why, the others follow in one line.

`accelerate launch` tells every process its rank by environment variables. When one process ends
badly, the launcher sends SIGTERM to the others of its machine and, half a minute later, SIGKILL;
those on other machines find their connections closed. All of them get to keep what they trained.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

LINGER_SECONDS = 5.0
"""How long a process that lost another one waits for the launcher's SIGTERM before it leaves."""


class PeerEnded(BaseException):
    """Another process ended. Like KeyboardInterrupt no ``Exception``: it comes at any moment, and
    whatever runs then must not take it for a failure of its own."""


_ending = False
_told = False


def several() -> bool:
    """Whether a launcher started several processes for this run."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def label() -> str:
    """``rank 1: `` where several processes run, nothing for a single one."""
    return f"rank {os.environ.get('RANK', '?')}: " if several() else ""


def obey_launcher() -> None:
    """Turn the first SIGINT or SIGTERM into an exception and ignore all that follow.

    On Ctrl-C the terminal signals every process, and then the launcher does so again: the second
    one must not interrupt the keeping of what was trained. A single process is left as it is.
    """
    if several() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _on_signal)
        signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, frame: Any) -> None:
    global _told
    _told = True
    if _ending:
        return
    end_undisturbed()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise PeerEnded("stopped by SIGTERM: the launcher sends it when another process has ended")


def end_undisturbed() -> None:
    """From here on this process only tidies up: signals no longer interrupt it."""
    global _ending
    _ending = True


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


def leave_after_peer() -> NoReturn:
    """End this process with code 1, but not before the launcher has seen which one ended first."""
    until = time.monotonic() + LINGER_SECONDS
    while not _told and time.monotonic() < until:
        time.sleep(0.05)
    leave(1)
