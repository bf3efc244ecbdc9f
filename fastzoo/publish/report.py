"""What a push is asked to do, and what it did."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastzoo.config.recipe import PushSection
from fastzoo.core.errors import FastzooError, HubError


class PushOptions(PushSection):
    """What a push is asked to do besides sending its SAEs."""

    namespace: str
    """Hub user or organisation to publish under."""
    space: Path | None = None
    """Folder of a Space to publish with them."""
    overwrite_cards: bool = False
    """Send cards as they are here, whatever was written into them on the Hub."""

    @property
    def starts_private(self) -> bool:
        return self.private or self.public_at_end


@dataclass
class PushReport:
    """What a push did."""

    namespace: str
    saes: dict[str, dict[str, Any]]
    """Name to repo_id, sha and status: published, unchanged, failed or not reached."""
    commits: int = 0
    collection: str | None = None
    dataset: str | None = None
    space: str | None = None
    children: Sequence[str] = ()
    """Collections in the collection, where one is too small for all SAEs."""
    first_error: FastzooError | None = None

    def summary(self) -> str:
        """In one line."""
        counts = Counter(entry["status"] for entry in self.saes.values())
        done = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        place = f"; collection {self.collection}" if self.collection else ""
        more = "; the same command goes on" if isinstance(self.first_error, HubError) else ""
        return f"{done} ({self.commits} commits) under {self.namespace}{place}{more}"

    def to_value(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "first_error": self.first_error and str(self.first_error)}


def say(line: str) -> None:
    """Tell people what a push does, or cannot do."""
    print(line, file=sys.stderr)
