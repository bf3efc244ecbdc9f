"""The long test of publishing, in short: faults, kills, and nothing lost or doubled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "long" / "push_zoo.py"


@pytest.mark.parametrize("mode", [(), ("--xet",)], ids=["lfs", "xet"])
def test_a_disturbed_push_ends_as_an_undisturbed_one(mode: tuple[str, ...]) -> None:
    asked = ("--saes", "8", "--faults", "7", "--kills", "2", "--json", *mode)
    done = subprocess.run([sys.executable, str(SCRIPT), *asked], capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["published"] == 8 and report["killed"] == 2 and report["faults_met"] >= 8
    for key in ("missing", "duplicates", "commits_second_push", "not_pulled", "wrong_rows"):
        assert report[key] == 0, report
