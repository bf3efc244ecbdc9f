"""The short form of tests/long/fuzz.py, and that it notices what it is there to notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

LONG = Path(__file__).parent / "long"
sys.path.insert(0, str(LONG))

import fuzz  # noqa: E402
from properties import PROPERTIES, Property, bounded  # noqa: E402

CASES = {"dialogues": 120, "files": 100, "templates": 100, "recipes": 150, "names": 100, "saes": 100}


@pytest.mark.parametrize("name", PROPERTIES)
def test_no_case_is_a_crash(name: str) -> None:
    found = fuzz.fuzz(name, CASES[name], 0)
    assert not found["crashes"], "\n".join(found["crashes"])
    assert found["cases"] >= CASES[name]
    # Neither is everything refused, nor everything accepted.
    assert 0.03 < found["accepted"] / found["cases"] < 0.95


def leaves_a_file(case: int, place: Path) -> bool:
    with bounded(place):
        (place / f"left{case}").touch()
    return True


def leaves_a_file_in_the_current_folder(case: int, place: Path) -> bool:
    with bounded(place):
        Path(f"left{case}").touch()
    return True


def raises_an_error_of_its_own(case: int, place: Path) -> bool:
    with bounded(place):
        return bool(1 // (case - 7))


def needs_memory(case: int, place: Path) -> bool:
    with bounded(place):
        return len(bytes([case]) * (300 << 20)) > 0


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (leaves_a_file, "files left: ['left0']"),
        (leaves_a_file_in_the_current_folder, "files left: ['here/left0']"),
        (raises_an_error_of_its_own, "ZeroDivisionError"),
        pytest.param(
            needs_memory,
            "MiB",
            marks=[
                pytest.mark.alone,
                pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
            ],
        ),
    ],
)
def test_crashes_are_found_and_shown_with_their_smallest_example(
    monkeypatch: pytest.MonkeyPatch, check: Any, says: str
) -> None:
    monkeypatch.setitem(PROPERTIES, "broken", Property(st.integers(0, 9), check, 1))
    (crash,) = fuzz.fuzz("broken", 50, 0)["crashes"]
    assert says in crash
    assert f"case={7 if check is raises_an_error_of_its_own else 0}," in crash


def test_the_command_reports_in_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(LONG / "fuzz.py"), "--cases", "40", "--json", "--only", "names"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(LONG.parent.parent)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["cases"] >= 40 and report["crashes"] == 0 and report["seed"] == 0
    assert report["properties"]["names"]["cases"] == report["cases"]
    assert list(tmp_path.iterdir()) == []
