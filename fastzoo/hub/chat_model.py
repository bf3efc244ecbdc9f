"""A chat model behind the OpenAI protocol, asked many things at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.text import one_line

KEY_VARIABLE = "FASTZOO_JUDGE_KEY"
"""Environment variable with the server's API key. Without it the Hub's own token is used, and that only
for the Hub's own servers."""

HUB_DOMAIN = "huggingface.co"
"""Inference endpoints (huggingface.cloud) and Spaces are not the Hub's own: anyone can run one."""

TRIES = 6

TRIES_OF_CHECK = 3

TIMEOUT_SECONDS = 180.0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    printable = url.isprintable() and " " not in url
    return parts.scheme in ("http", "https") and bool(parts.hostname) and printable


def _without_secrets(url: str) -> str:
    """An address without user, password and query, any of which may hold a key."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _is_hub(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" and (host == HUB_DOMAIN or host.endswith(f".{HUB_DOMAIN}"))


def _read_cache(path: Path) -> dict[str, str]:
    """Earlier replies by key. A line that is none (a process was killed writing it) is left out."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return found
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read: {one_line(error.strerror)}") from None
    for line in lines:
        try:
            row = json.loads(line)
            key, reply = row["key"], row["reply"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if isinstance(key, str) and isinstance(reply, str):
            found[key] = reply
    if not found and lines[0] and not lines[0].startswith('{"key": '):
        raise InputError(f"'{path}' does not hold a judge's replies; give another file")
    return found


def _append(path: Path, row: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            # A line break first where the last line was cut off: this one must not join it.
            whole = file.tell() == 0 or _ends_whole(path)
            line = json.dumps(row, ensure_ascii=False)
            file.write((b"" if whole else b"\n") + line.encode("utf-8", "replace") + b"\n")
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {one_line(error.strerror)}") from None


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
