"""Tables on the terminal: whole at any width."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from fastzoo.core.tables import fits, print_table
from fastzoo.results.figures import shown
from fastzoo.results.summary import print_results

FIGURES: dict[str, Any] = {
    figure.key: {s: {"value": 0.123456} for s in figure.subsets} for figure, _ in shown("run")
}
NAMES = [f"tiny-chat-L{i}-8x-jumprelu" for i in range(5)]


@pytest.mark.parametrize("columns", [60, 90, 300, None])
def test_no_figure_is_cut(
    columns: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: columns is not None)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    rows = [(name, FIGURES, 1234.4, False) for name in NAMES]
    print_results(rows)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert text.count("0.1235") == len(NAMES) * len(shown("run"))
    assert all(name in text for name in NAMES)
    assert text.count("1234") == len(NAMES)
    assert "…" not in text
    if columns is not None:
        assert all(len(line.rstrip()) <= columns for line in text.splitlines())


LINES = [["甲乙", "1", "first second third fourth"], ["c", "-10.5", "x"]]


def test_columns_are_aligned_by_what_the_terminal_shows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["token", "value", "words"], LINES, left=(0, 2))
    print_table(["token", "value", "words"], LINES, left=(0, 2), wrapped=True, gap=1)
    assert capsys.readouterr().out.splitlines() == [
        "token  value  words",
        "甲乙       1  first second third fourth",
        "c      -10.5  x",
        "token value words",
        "甲乙      1 first second third fourth",
        "c     -10.5 x",
    ]


def test_the_last_column_is_wrapped_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "33")
    assert not fits(["token", "value", "words"], LINES)
    print_table(["token", "value", "words"], LINES, left=(0, 2), wrapped=True)
    assert capsys.readouterr().out.splitlines() == [
        "token  value  words",
        "甲乙       1  first second third",
        "              fourth",
        "c      -10.5  x",
    ]
