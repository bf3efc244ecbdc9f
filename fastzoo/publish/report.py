"""What is asked of a push, and what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastzoo.core.errors import FastzooError, HubError


@dataclass(frozen=True)
class Options:
    """What is asked of a push besides its SAEs."""

    namespace: str
    private: bool = False
    public_at_end: bool = False
    """Make the repositories private, and all of them public once everything is there."""
    collection: bool = True
    """Bring the collection, the results dataset and the Space up to date, too."""
    space: Path | None = None
    """A Space's folder."""
    overwrite_cards: bool = False
    """Send cards as they are here, whatever was written into them on the Hub."""


@dataclass
class Report:
    """What a push did."""

    namespace: str
    saes: dict[str, dict[str, Any]]
    """Name to repo_id, sha and status: published, unchanged, failed or not reached."""
    commits: int = 0
    collection: str | None = None
    dataset: str | None = None
    space: str | None = None
    children: Sequence[str] = ()
    """Collections in the collection, where it is too small."""
    first_error: FastzooError | None = None

    def summary(self) -> str:
        """In one line."""
        count = Counter(entry["status"] for entry in self.saes.values())
        done = ", ".join(f"{n} {status}" for status, n in sorted(count.items()))
        place = f"; collection {self.collection}" if self.collection else ""
        more = "; the same command goes on" if isinstance(self.first_error, HubError) else ""
        return f"{done} ({self.commits} commits) under {self.namespace}{place}{more}"

    def to_value(self) -> dict[str, Any]:
        error = self.first_error and str(self.first_error)
        return {**vars(self), "first_error": error}
