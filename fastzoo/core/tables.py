"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any, Literal


def print_table(
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    left: Collection[int] = (0,),
    wrapped: Collection[int] = (),
    gap: int = 2,
) -> None:
    """Print lines under headings, with ``gap`` blanks between columns.

    Args:
        left: columns of text, which stand to the left.
        wrapped: columns that go on in further lines where the terminal is too narrow.
    """
    _print(_console(), headings, lines, left, wrapped, gap)


def fits(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> bool:
    """Whether the terminal is as wide as the table."""
    return _width(headings, lines) <= _console().width


def _console() -> Any:
    from rich.console import Console

    # Where there is no terminal, lines may be as long as they need to be.
    # Names may be paths: brackets and colons in them are no markup.
    return Console(width=None if sys.stdout.isatty() else 1000, markup=False, emoji=False)


def _width(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    return sum(2 + max(map(len, column)) for column in zip(headings, *lines, strict=True))


def _print(
    console: Any,
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    left: Collection[int] = (0,),
    wrapped: Collection[int] = (),
    gap: int = 2,
) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for i, heading in enumerate(headings):
        justify: Literal["left", "right"] = "left" if i in left else "right"
        table.add_column(heading, justify=justify, no_wrap=i not in wrapped)
    for line in lines:
        table.add_row(*line)
    console.print(table)
