"""Every error a user can cause: one line that says what, where and what would be right.

The command line prints that line and ends with the class's ``exit_code``; nothing else is shown. ``when``
says, for the help as well, what a class is for.
"""

from __future__ import annotations

from fastzoo.core.text import one_line, without_secrets


class FastzooError(Exception):
    """An expected failure; its message is one line of at most 900 characters without tokens."""

    exit_code, when = 1, "a fault of fastzoo's own, with a traceback"

    def __init__(self, message: str) -> None:
        line = without_secrets(one_line(message, len(message)))
        # Cut in the middle: the start says what is wrong, the end what would be right.
        super().__init__(line if len(line) <= 900 else f"{line[:600]} … {line[-297:]}")


class InputError(FastzooError):
    exit_code, when = 2, "a name, option or recipe that cannot be used"


class HubError(FastzooError):
    exit_code, when = 5, "the Hub cannot be reached, or offline and not in the cache"


class NotFoundError(HubError):
    exit_code, when = 3, "not found on the Hub"


class AccessError(HubError):
    exit_code, when = 4, "no access on the Hub (token, gated repository)"


class IntegrityError(HubError):
    exit_code, when = 6, "wrong bytes from the Hub"


class TrainingError(FastzooError):
    exit_code, when = 7, "NaN or infinity in training or evaluation"


class DataError(FastzooError):
    exit_code, when = 8, "data that cannot be used"


class ModelError(FastzooError):
    exit_code, when = 9, "a language model that cannot be used"


class OutputError(FastzooError):
    exit_code, when = 10, "an output folder that cannot be written"


_KINDS: list[type[FastzooError]] = [FastzooError, *FastzooError.__subclasses__(), *HubError.__subclasses__()]

EXIT_CODES = {
    0: "done",
    **dict(sorted((kind.exit_code, kind.when) for kind in _KINDS)),
    130: "stopped by Ctrl-C (SIGINT)",
    143: "stopped by SIGTERM",
}
"""What a command can end with, and when."""
