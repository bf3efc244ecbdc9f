"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fastzoo.errors import OutputError, one_line


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
