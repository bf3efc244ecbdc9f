"""What a long run shows: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

LINE_SECONDS = 15.0
"""Between lines where there is no terminal."""


class Progress:
    """Counts towards ``total`` and shows what it is told beside it.

    Silent unless ``shown``: of several processes, only the main one should talk.
    """

    def __init__(self, title: str, total: int, *, shown: bool = True) -> None:
        self.title, self.total, self.done, self._before = title, total, 0, 0
        self._started = self._last_line = time.monotonic()
        self._bar = None
        self._shown = shown
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin_at(self, done: int) -> None:
        """So many were done before; they say nothing about how long the others take."""
        self.done = self._before = done
        if self._bar:
            self._bar.reset(self._task, completed=done)

    def advance(self, by: int = 1, note: str | None = None) -> None:
        """``by`` more are done; ``note`` replaces the text beside the bar."""
        self.done += by
        if self._bar:
            self._bar.advance(self._task, by)
            if note is not None:
                self._bar.update(self._task, note=note)
            return
        now = time.monotonic()
        if self._shown and note and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            speed = (self.done - self._before) / (now - self._started)
            left = (self.total - self.done) / speed
            print(
                f"{self.title} {self.done / self.total:4.0%}  {note}  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
