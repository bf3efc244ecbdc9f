"""Files that appear whole or not at all, and bounds on what is read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fastzoo.errors import InputError, OutputError, one_line

MAX_JSON_BYTES = 16 << 20
"""Real ones have some kB; JSON is read into memory whole."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def machine_memory() -> int:
    """Bytes of this machine's memory; more than any has where that is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: there is no such file, or not one of bearable size with an object in it.
    """
    try:
        if not path.is_file():  # a pipe could be waited for in vain
            what = "not a file" if path.exists() else "missing"
            raise InputError(f"{path.parent}: {path.name} is {what}")
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise InputError(f"{path}: more than {MAX_JSON_BYTES} bytes, which is no record")
        value = json.loads(text.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({one_line(error, 80)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Pretty JSON with a final newline. Values that JSON lacks (NaN) raise ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary sibling, sync it to disk, then rename it to ``folder``.

    An older ``folder`` is replaced. If anything fails, nothing of the new one is left behind.

    Raises:
        OutputError: the disk is full, read-only, or otherwise refuses; names folder and cause.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                _sync(path)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        raise OutputError(
            f"'{folder}' cannot be written: {one_line(getattr(error, 'strerror', None) or error)}; "
            "what was complete before is kept"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    # Delayed allocation reports a full disk only here.
    with path.open("rb") as file:
        os.fsync(file.fileno())
