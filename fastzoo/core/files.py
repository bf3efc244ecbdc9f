"""Files that appear whole or not at all, and bounds on what is read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.text import one_line

MAX_JSON_BYTES = 16 << 20  # it is read into memory whole; real files have a few kB


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def resource(name: str) -> Path:
    """The folder ``cards``, ``recipes`` or ``spaces``: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent.parent
    return package / name if (package / name).is_dir() else package.parent / name


def machine_memory() -> int:
    """Bytes of this machine's memory; a number larger than any where that is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 1 << 62


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises InputError: there is no such file, it is too large, or it holds something else.
    """
    try:
        if not path.is_file():  # a pipe may never be written to
            raise InputError(f"{path.parent}: {path.name} is {'not a file' if path.exists() else 'missing'}")
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise InputError(f"{path}: more than {MAX_JSON_BYTES} bytes, too many for a record")
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


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = partial_of(path)
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def refuse_unwritable(path: Path) -> None:
    """Check before long work that ``write_text`` can write a file.

    Raises OutputError: it cannot, or something else is there (a folder, a device, a pipe).
    """
    try:
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise OutputError(f"'{path}' cannot be written: give a file in a folder that exists")
        temporary = partial_of(path)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {one_line(error.strerror)}") from None


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary sibling, sync it to disk, then rename it to ``folder``.

    An older ``folder`` is replaced. If anything fails, nothing of the new one is left behind.
    Raises OutputError: the disk is full, read-only, or otherwise refuses.
    """
    temporary = partial_of(folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for path in sorted(temporary.rglob("*")):
            sync(path)
        put_in_place(temporary, folder)
    except REFUSALS as error:
        raise refused(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


REFUSALS = (OSError, SafetensorError)
"""What writing raises where the disk refuses: safetensors wraps the system's error."""


def refused(path: Path, error: BaseException) -> OutputError:
    """What to raise then."""
    reason = one_line(getattr(error, "strerror", None) or error)
    return OutputError(f"'{path}' cannot be written: {reason}; what was complete before is kept")


def partial_of(path: Path) -> Path:
    """Where a file or folder is written before it is complete."""
    return path.with_name(f".{path.name}.partial")


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left incomplete in ``folder``."""
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder; if this process is killed meanwhile, nobody finds a part of it."""
    temporary = partial_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Rename a complete folder, whose files are synced, to its final name; replaces an older one."""
    sync(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until the disk holds a file, or the names in a folder: some report only here that they are full."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # network file systems that sync no folders
            raise
    finally:
        os.close(handle)
