"""Every error a user can cause: one line that says what, where and what would be right.

The command line prints that line and ends with the class's ``exit_code``; nothing else is shown.
"""

from __future__ import annotations

from fastzoo.core.text import one_line, without_secrets


class FastzooError(Exception):
    """Base of all expected failures.

    The message is one line of at most 900 characters without tokens, whatever it is made of.
    """

    exit_code, when = 1, "a fault of fastzoo's own, with a traceback"

    def __init__(self, message: str) -> None:
        line = without_secrets(one_line(message, len(message)))
        # Cut in the middle: the start says what is wrong, the end what would be right.
        super().__init__(line if len(line) <= 900 else f"{line[:600]} … {line[-297:]}")


class InputError(FastzooError):
    """A name, option or configuration value that cannot be used."""

    exit_code, when = 2, "a name, option or recipe that cannot be used"


class HubError(FastzooError):
    """The Hub cannot be reached, keeps failing, or may not be asked (offline) for what the cache
    lacks."""

    exit_code, when = 5, "the Hub cannot be reached, or offline and not in the cache"


class NotFoundError(HubError):
    """The Hub has no such repository, revision, file or collection, or does not show it."""

    exit_code, when = 3, "not found on the Hub"


class AccessError(HubError):
    """No token, a wrong one, one without the right to do this, or a gated repository."""

    exit_code, when = 4, "no access on the Hub (token, gated repository)"


class IntegrityError(HubError):
    """Bytes that are not those that were published."""

    exit_code, when = 6, "wrong bytes from the Hub"


class TrainingError(FastzooError):
    """Training or evaluation met values it cannot go on with (NaN or infinity)."""

    exit_code, when = 7, "NaN or infinity in training or evaluation"


class DataError(FastzooError):
    """Dialogues or text that cannot be read or hold nothing usable."""

    exit_code, when = 8, "data that cannot be used"


class ModelError(FastzooError):
    """A language model or tokenizer that cannot be used as asked."""

    exit_code, when = 9, "a language model that cannot be used"


class OutputError(FastzooError):
    """An output folder that cannot be written, or that already holds something else."""

    exit_code, when = 10, "an output folder that cannot be written"


_KINDS: list[type[FastzooError]] = [FastzooError, *FastzooError.__subclasses__()]

_KINDS += HubError.__subclasses__()

EXIT_CODES = {
    0: "done",
    **{kind.exit_code: kind.when for kind in sorted(_KINDS, key=lambda kind: kind.exit_code)},
    130: "stopped by Ctrl-C (SIGINT)",
    143: "stopped by SIGTERM",
}
"""What a command can end with, and when."""
