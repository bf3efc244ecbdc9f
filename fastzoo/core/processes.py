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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

from fastzoo.core.signals import LOOK_SECONDS, PeerEnded, end_undisturbed, several, signals

ANSWER_SECONDS = 20.0
"""How long, after a signal, a process waits for the others' answer: the launcher kills after 30."""


def asked_to_stop() -> int | None:
    """The signal by which this process, or another one of the run, was asked to stop."""
    found = signals()
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
            if until == float("inf") and signals().number is not None:
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
