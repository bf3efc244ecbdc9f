"""How a command ends: one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from fastzoo.core.errors import FastzooError
from fastzoo.core.processes import (
    PeerEnded,
    Stopped,
    label,
    leave,
    leave_after_failure,
    leave_after_peer,
    several,
)
from fastzoo.core.text import without_secrets

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

DEBUG = "FASTZOO_DEBUG"
"""Environment variable that has the traceback of expected failures printed, too."""


def report_failures(command: Callable[[], None]) -> None:
    """Run a command; an expected failure is one line on stderr and the exit code it calls for.

    Where several processes run, every line names the rank, and so does what stands above an
    unexpected exception's traceback.
    """
    try:
        command()
    except FastzooError as error:
        if os.environ.get(DEBUG, "0") != "0":
            sys.stderr.write(without_secrets(traceback.format_exc()))
        print(f"error: {label()}{error}", file=sys.stderr)
        leave_after_failure(error.exit_code)
    except Stopped as stopped:
        print(f"{label()}{stopped}", file=sys.stderr)
        leave(stopped.exit_code)
    except KeyboardInterrupt:
        print(f"error: {label()}interrupted", file=sys.stderr)
        leave(INTERRUPTED)
    except PeerEnded as ended:
        print(f"{label()}{ended}", file=sys.stderr, flush=True)
        leave_after_peer()
    except BrokenPipeError:
        # The reader of a pipe went away (`fastzoo list | head`): nothing may be flushed into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        # In one piece, so that no other process writes into it.
        head = f"error: {label()}unexpected {type(error).__name__}\n" if several() else ""
        sys.stderr.write(head + without_secrets(traceback.format_exc()))
        leave_after_failure(1)
