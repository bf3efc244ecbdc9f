"""What this machine has published, so that a push goes on where the last one ended.

One file per namespace; each thing done appends a line, a registry of that one thing. It saves
requests: without it, everything is found again on the Hub.
"""

from __future__ import annotations

import os
from contextlib import suppress

from fastzoo.core.errors import IntegrityError, OutputError
from fastzoo.core.text import one_line
from fastzoo.hub.client import state_folder
from fastzoo.hub.registry import Registry, parse_registry


class Journal:
    """``known`` is all that was noted; of several lines about a thing the last one counts."""

    def __init__(self, namespace: str) -> None:
        self.path = state_folder(namespace) / "ledger.jsonl"  # its name since the first version
        self.known = Registry(namespace)
        try:
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read ({one_line(error)})") from None
        for line in lines:
            with suppress(IntegrityError):  # the line that a killed process was writing
                self.known = self.known.updated(parse_registry(line, str(self.path)))

    def note(self, entry: Registry) -> None:
        """Append what is new: the collection, or SAEs whose files were found on the Hub."""
        before, self.known = self.known, self.known.updated(entry)
        if self.known == before:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                # A killed process may have left its line without an end, which must not swallow this.
                file.write(b"\n" + entry.to_text(indent=None).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({one_line(error)})") from None
