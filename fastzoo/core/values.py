"""Values out of JSON that anyone may have written: of the right type, or None."""

from __future__ import annotations

import sys
from typing import Any

from fastzoo.core.text import one_line


def value_at(value: Any, *keys: str) -> Any:
    """What a JSON value holds at ``keys``; None if it has no such keys."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def text_at(value: Any, *keys: str) -> str | None:
    """The text that a JSON value holds at ``keys``, in one line; None if that is no text."""
    found = value_at(value, *keys)
    return one_line(found) if isinstance(found, str) else None


def number_at(value: Any, *keys: str) -> float | None:
    """The finite number that a JSON value holds at ``keys``; None if that is no such number."""
    found = value_at(value, *keys)
    number = isinstance(found, int | float) and not isinstance(found, bool)
    return found if number and abs(found) <= sys.float_info.max else None
