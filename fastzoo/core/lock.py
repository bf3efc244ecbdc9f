"""Folders that one process has to itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fastzoo.core.errors import OutputError

WAIT_SECONDS = 40.0
"""A launcher gives the processes of a run that lost one of them half a minute to end."""

_claims: list[int] = []


def claim(
    folder: Path,
    say: Callable[[str], None],
    by: str = "another process; give another folder, or let it end",
) -> None:
    """Keep other processes from using ``folder`` until ``release_claims`` or this process's end.

    It is made if it is not there. What is left of a run that was killed a moment ago is waited for,
    and ``say`` told so.

    Args:
        by: who else would use it, and what to do then.

    Raises:
        OutputError: another process uses it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        folder.mkdir(parents=True, exist_ok=True)
        return
    until: float | None = None
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        _claims.append(handle)
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if until is None:
                    say(f"'{folder}' is in use by another process, which may be ending; waiting")
                    until = time.monotonic() + WAIT_SECONDS
                if time.monotonic() > until:
                    raise OutputError(f"'{folder}' is in use by {by}") from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        # Who held it may have moved or removed it meanwhile: this is then another folder's lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), folder.stat()):
                return


def release_claims() -> None:
    """Let others use what this process claimed."""
    while _claims:
        os.close(_claims.pop())
