"""What a long run shows."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from fastzoo.core import progress
from fastzoo.core.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


def run(shown: bool = True) -> None:
    with Progress("training", 8, shown=shown) as bar:
        bar.begin_at(4)
        bar.advance(note="loss 2")
        bar.advance(2)
        bar.advance(note="loss 1")


def test_a_log_has_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    assert capsys.readouterr().err == ""  # fifteen seconds are not over
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    run(shown=False)
    assert capsys.readouterr().err == ""
    run()
    lines = [line.rsplit("  ", 1) for line in capsys.readouterr().err.splitlines()]
    assert [line[0] for line in lines] == [
        *("training  62%  loss 2", "training  88%  loss 2", "training 100%  loss 1")
    ]
    assert all(line[1].endswith(" left") for line in lines)


def test_a_terminal_has_a_bar_even_if_it_does_not_say_how_large_it_is() -> None:
    terminal, end = pty.openpty()
    script = "from core.test_progress import run; run()"
    subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stderr=end,
        check=True,
    )
    os.close(end)
    said = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "\rtraining   0% |" in said and "training 100% |██" in said and "| loss 1  " in said
