"""Text for one line of a terminal: no line breaks, no secrets; suggestions for misspelt words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches

_SECRET = re.compile(r"(?i:(bearer\s+)[^\s'\"]+)|\b(?:hf|api_org)_[A-Za-z0-9]{16,}")


def without_secrets(text: str) -> str:
    """``text`` with stars in place of anything that is, or looks like, an access token of the Hub."""
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
