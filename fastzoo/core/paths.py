"""The one place where a user's text becomes a path."""

from __future__ import annotations

import os
from pathlib import Path

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line


def path_of(text: str | os.PathLike[str], what: str) -> Path:
    """``text`` as a path, there or not, with ``~`` for a home folder if that is known.

    Whether anything is there is asked with os.path's functions: unlike pathlib's, they answer False for a name that
    is too long. Raises InputError, in which ``what`` says whose value it is: no path can have this text, as it is empty,
    or holds a NUL, a lone surrogate or, in a locale without UTF-8, other characters than its own.
    """
    try:
        # Looks in the list of users for one of this name, and for the home folder if HOME is not set.
        path = os.path.expanduser(text)
        held = "a NUL character" if b"\0" in os.fsencode(path) else None
    except UnicodeEncodeError:
        held = "characters that no file name has in this locale"
    except ValueError:  # from the list of users
        held = "a NUL character"
    if held or not path:
        why = f"it holds {held}" if held else "it is empty"
        raise InputError(f"{what}: '{one_line(text, 120)}' cannot be a path: {why}")
    return Path(path)
