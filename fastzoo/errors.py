"""Every error a user can cause: one line that says what, where and what would be right.

The command line prints the message and exits with ``exit_code``; nothing else is shown.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from fastzoo.ranks import (
    PeerEnded,
    Stopped,
    label,
    leave,
    leave_after_failure,
    leave_after_peer,
    several,
)


class FastzooError(Exception):
    """Base of all expected failures. ``exit_code`` is what a command ends with.

    The message is one line of bearable length without tokens, whatever paths and values it names.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        line = without_secrets(one_line(message, len(message)))
        # Cut in the middle: the start says what is wrong, the end what would be right.
        super().__init__(line if len(line) <= 900 else f"{line[:600]} … {line[-297:]}")


class InputError(FastzooError):
    """A name, option or configuration value that cannot be used."""

    exit_code = 2


class HubError(FastzooError):
    """The Hub cannot be reached, goes on failing, or is not to be asked (offline) for what the cache
    lacks."""

    exit_code = 5


class NotFoundError(HubError):
    """No such repository, revision, file or collection on the Hub, or not to be seen."""

    exit_code = 3


class AccessError(HubError):
    """No token, a wrong one, one that may not do this, or a gated repository."""

    exit_code = 4


class IntegrityError(HubError):
    """Bytes that are not those that were published."""

    exit_code = 6


class TrainingError(FastzooError):
    """Training or evaluation met values it cannot go on with (NaN or infinity)."""

    exit_code = 7


class DataError(FastzooError):
    """Dialogues or text that cannot be read or hold nothing usable."""

    exit_code = 8


class ModelError(FastzooError):
    """A language model or tokenizer that cannot be used as asked."""

    exit_code = 9


class OutputError(FastzooError):
    """An output folder that cannot be written, or that already holds something else."""

    exit_code = 10


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

EXIT_CODES = {
    0: "done",
    1: "a fault of fastzoo's own, with a traceback",
    2: "a name, option or recipe that cannot be used",
    3: "not found on the Hub",
    4: "no access on the Hub (token, gated repository)",
    5: "the Hub cannot be reached, or offline and not in the cache",
    6: "wrong bytes from the Hub",
    7: "NaN or infinity in training or evaluation",
    8: "data that cannot be used",
    9: "a language model that cannot be used",
    10: "an output folder that cannot be written",
    130: "stopped by Ctrl-C (SIGINT)",
    143: "stopped by SIGTERM",
}
"""What a command can end with."""

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


_SECRET = re.compile(r"(?i:(bearer\s+)[^\s'\"]+)|\b(?:hf|api_org)_[A-Za-z0-9]{16,}")


def without_secrets(text: str) -> str:
    """``text`` with stars for whatever is, or looks like, an access token of the Hub."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if len(token := os.environ.get(variable, "").strip()) > 7:
            text = text.replace(token, "***")
    return _SECRET.sub(lambda match: (match[1] or "") + "***", text)


def one_line(text: object, limit: int = 300) -> str:
    """``text`` without line breaks or control characters, cut at ``limit`` characters.

    Bytes of a path that are not UTF-8 (lone surrogates) show as question marks.
    """
    valid = str(text).encode("utf-8", "replace").decode()
    flat = " ".join("".join(c if c.isprintable() else " " for c in valid).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def did_you_mean(word: str, choices: Iterable[str], count: int = 3) -> str:
    """`` Did you mean a, b?`` with the nearest ``choices``, or an empty string."""
    names = {choice.lower(): choice for choice in choices}
    near = get_close_matches(word.lower(), list(names), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(names[n] for n in near)}?" if near else ""
