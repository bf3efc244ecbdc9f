"""Every error a user can cause: one line that says what, where and what would be right.

The command line prints the message and exits with ``exit_code``; nothing else is shown.
"""

from __future__ import annotations

from fastzoo.core.text import one_line, without_secrets


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
