"""A file of a repository as the Hub lists it, and bytes of this machine to compare with it."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastzoo.core.errors import InputError
from fastzoo.core.files import sha256_of

SHA1 = re.compile("[0-9a-f]{40}")
"""A commit."""

HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
"""What the Hub lists of a file: git's name of its bytes, or their sha256."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, with its size in bytes. ``digest``, in hex, is their sha256 (64 digits) or, for small
    files, of which the Hub lists nothing else, their git blob id (40 digits)."""

    path: str
    size: int
    digest: str

    @property
    def sha256(self) -> str | None:
        return self.digest if len(self.digest) == 64 else None

    def holds(self, content: Content) -> bool:
        """Whether the Hub has these bytes."""
        found = content.sha256 if self.sha256 else content.git_id
        return self.size == content.size and self.digest == found


@dataclass
class Content:
    """What a file holds or is to hold: a local file, or bytes. Its hashes are computed once."""

    source: Path | bytes

    def __post_init__(self) -> None:
        self._as_found = self._state()

    def _state(self) -> tuple[int, int]:
        """Size in bytes, and when it was changed."""
        if isinstance(self.source, bytes):
            return len(self.source), 0
        found = self.source.stat()
        return found.st_size, found.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise InputError if the file is not as it was when this was made."""
        with suppress(OSError):
            if self._state() == self._as_found:
                return
        raise InputError(
            f"'{self.source!s}' was changed while it was being published; push it again once nothing writes to it"
        )

    def __bytes__(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    @property
    def size(self) -> int:
        return self._as_found[0]

    @cached_property
    def sha256(self) -> str:
        return (
            hashlib.sha256(self.source).hexdigest()
            if isinstance(self.source, bytes)
            else sha256_of(self.source)
        )

    @cached_property
    def git_id(self) -> str:
        from huggingface_hub.utils.sha import git_hash

        return git_hash(bytes(self))

    def at(self, path: str) -> HubFile:
        """These bytes as the file ``path`` of a repository."""
        return HubFile(path, self.size, self.sha256)
