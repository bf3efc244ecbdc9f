"""What a long run shows: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 15.0
"""Between lines where there is no terminal."""


class Progress(tqdm):
    """Counts towards ``total``, with a note beside it.

    Silent unless ``shown``: of several processes, only the main one should talk.
    """

    monitor_interval = 0  # no thread of tqdm's own

    def __init__(self, title: str, total: int, *, shown: bool = True) -> None:
        self.note = ""
        self._terminal = sys.stderr.isatty()
        bar = "|{bar}|" if self._terminal else ""
        # In a log nothing before the first line is due, and nothing at the end.
        lines: dict[str, Any] = {"mininterval": LINE_SECONDS, "delay": 1e-9, "leave": False, "file": _Lines()}
        super().__init__(
            desc=title,
            total=total,
            disable=not shown,
            miniters=1,
            smoothing=0,
            position=0,
            nrows=2,  # tqdm draws nothing where a terminal does not say how large it is
            bar_format=f"{{desc}}{{percentage:4.0f}}% {bar} {{note}}  {{remaining}} left",
            **({} if self._terminal else lines),
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        width = shutil.get_terminal_size().columns if self._terminal else None
        return {**super().format_dict, "note": self.note, "ncols": width}

    @property
    def done(self) -> int:
        return int(self.n)

    def begin_at(self, done: int) -> None:
        """So many were done before; they say nothing about how long the others take."""
        self.n = self.initial = self.last_print_n = done
        self.start_t = self.last_print_t = time.time()

    def advance(self, by: int = 1, note: str | None = None) -> None:
        """``by`` more are done; ``note`` replaces the text beside the bar."""
        if note is not None:
            self.note = note
        self.update(by)


class _Lines:
    """A log as tqdm sees it: what would be drawn over is a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass
