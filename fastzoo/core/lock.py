"""Folders that one process has to itself."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastzoo.core.errors import OutputError

if TYPE_CHECKING:
    from filelock import FileLock

WAIT_SECONDS = 40.0
"""A launcher gives the processes of a run that lost one of them half a minute to end."""
INSIDE = ".fastzoo.lock"
"""The lock file of a folder that cannot have one beside it: its parent is read-only, its name too long."""
LONGEST_NAME = 255  # bytes


def folder_lock(
    folder: Path, say: Callable[[str], None], by: str = "another process; give another folder, or let it end"
) -> ExitStack:
    """Make ``folder`` if it is missing, and keep all others out until the returned ``with`` block ends.

    Others are other processes and other threads of this one. The lock belongs to a file beside the
    folder, so it holds while the folder is moved away or made again, and the system frees it when a
    process is killed. Leaving the block removes that file, and the folders made here that are empty.

    Args:
        say: told in one line that a folder in use, perhaps by a run that is ending, is waited for.
        by: who else would use it, and what to do then.

    Raises OutputError: it is still in use after ``WAIT_SECONDS``. OSError: it cannot be made.
    """
    from filelock import FileLock

    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(_lock_file(Path(os.path.realpath(folder))))
    with ExitStack() as held:
        for path in reversed(missing[1:]):
            held.callback(_remove_if_empty, path)
        held.callback(_release, lock)
        _acquire(lock, folder, say, by)
        if missing:  # still locked then, so that nobody else uses it yet
            held.callback(_remove_if_empty, folder)
        folder.mkdir(parents=True, exist_ok=True)
        return held.pop_all()


def _lock_file(folder: Path) -> Path:
    beside = folder.parent / f".{folder.name}.lock"
    there = next((path for path in folder.parents if path.exists()), folder)
    fits = len(os.fsencode(beside.name)) <= LONGEST_NAME
    return beside if fits and os.access(there, os.W_OK) else folder / INSIDE


def _acquire(lock: FileLock, folder: Path, say: Callable[[str], None], by: str) -> None:
    from filelock import Timeout

    until, failures = 0.0, 0
    while True:
        try:
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            return
        except (Timeout, FileNotFoundError, FileExistsError):
            if os.path.exists(lock.lock_file):
                failures = 0
            elif (failures := failures + 1) < 100:
                continue  # others remove the files and the empty folders that they made
            else:
                folder.mkdir(parents=True, exist_ok=True)  # says what is in the way
                raise
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            return  # a file system without locks: nobody is kept out
        if not until:
            say(f"'{folder}' is in use by another process, which may be ending; waiting")
            until = time.monotonic() + WAIT_SECONDS
        if time.monotonic() > until:
            raise OutputError(f"'{folder}' is in use by {by}")
        time.sleep(0.1)


def _release(lock: FileLock) -> None:
    if lock.is_locked:
        # While it is held: whoever waits for this file sees that it is gone, and makes a new one.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
