"""Tables on the terminal, printed the same way by every command. Loads rich only to wrap or measure text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence

Lines = Sequence[Sequence[str]]

NARROWEST = 16
"""Width down to which a column is wrapped."""


def terminal_width() -> int | None:
    """Characters in a line of the terminal; None if stdout is no terminal: lines may have any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fits(headings: Sequence[str], lines: Lines, gap: int = 2) -> bool:
    """Whether the table, with ``gap`` blanks between columns, fits the terminal."""
    limit = terminal_width()
    return limit is None or sum(_widths(headings, lines)) + gap * (len(headings) - 1) <= limit


def print_table(
    headings: Sequence[str], lines: Lines, left: Collection[int] = (0,), wrapped: bool = False, gap: int = 2
) -> None:
    """Print lines under headings.

    Args:
        left: columns of text, which are aligned left; the others are aligned right.
        wrapped: break the last column into several lines if the terminal is too narrow for it.
        gap: blanks between columns.
    """
    widths = _widths(headings, lines)
    limit = terminal_width()
    if wrapped and limit is not None:
        rest = limit - sum(widths[:-1]) - gap * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(rest, NARROWEST))
    for line in (headings, *lines):
        parts = _broken(line[-1], widths[-1]) if wrapped else [line[-1]]
        for i, part in enumerate(parts):
            cells = [*(line[:-1] if i == 0 else [""] * (len(line) - 1)), part]
            padded = [_padded(cell, widths[j], j in left) for j, cell in enumerate(cells)]
            print((" " * gap).join(padded).rstrip())


def _widths(headings: Sequence[str], lines: Lines) -> list[int]:
    return [max(map(_width, column)) for column in zip(headings, *lines, strict=True)]


def _width(text: str) -> int:
    """Width of a text on the terminal, where a Chinese character is two wide."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int, left: bool) -> str:
    blanks = " " * (width - _width(text))
    return text + blanks if left else blanks + text


def _broken(text: str, width: int) -> list[str]:
    """The lines of a text, each at most ``width`` wide, broken at blanks if possible."""
    if _width(text) <= width:
        return [text]
    from rich.console import Console
    from rich.text import Text

    return [line.plain for line in Text(text).wrap(Console(), width)]
