"""How a command ends: one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from fastzoo.core.errors import FastzooError
from fastzoo.core.processes import board
from fastzoo.core.signals import PeerEnded, Stopped, label, several, wait_for_launcher
from fastzoo.core.text import without_secrets

DEBUG = "FASTZOO_DEBUG"
"""Environment variable: expected failures show their traceback, too."""


def report_failures(command: Callable[[], None]) -> None:
    """Run a command; an expected failure becomes one line on stderr and its exit code. Where several
    processes run, what they print names the rank."""
    try:
        command()
    except FastzooError as error:
        if os.environ.get(DEBUG, "0") != "0":
            sys.stderr.write(without_secrets(traceback.format_exc()))
        print(f"error: {label()}{error}", file=sys.stderr)
        _leave(error.exit_code, failed=True)
    except Stopped as stopped:
        print(f"{label()}{stopped}", file=sys.stderr)
        _leave(stopped.exit_code)
    except KeyboardInterrupt:
        print(f"error: {label()}interrupted", file=sys.stderr)
        _leave(130)
    except PeerEnded as ended:
        print(f"{label()}{ended}", file=sys.stderr, flush=True)
        wait_for_launcher()
        _leave(1)
    except BrokenPipeError:
        # The reader of a pipe went away (`fastzoo list | head`): nothing may be flushed into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        # In one piece, so that no other process writes into it.
        head = f"error: {label()}unexpected {type(error).__name__}\n" if several() else ""
        sys.stderr.write(head + without_secrets(traceback.format_exc()))
        _leave(1, failed=True)


def _leave(code: int, *, failed: bool = False) -> NoReturn:
    """End this process; of several, tell those that wait for one that failed, and skip the orderly end of
    the process group, which would wait for processes that may be gone (NCCL) and was seen to abort (gloo)."""
    if not several():
        sys.exit(code)
    if failed:
        with suppress(BaseException):  # there is no group yet, or nobody is left
            board().write("failed")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
