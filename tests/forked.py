"""Python processes that have torch and pandas already: importing them is most of a short one's time."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).parent.parent
LONGEST = 300
"""Seconds after which a process counts as stuck."""

# Forks a process for each line it reads, and answers with its exit code. Nothing that reads the
# Hub's settings may be imported before the fork.
FORKER = """
import json, os, signal, sys
import pandas, torch
for line in sys.stdin:
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
asked = json.loads(line)
signal.alarm(asked["longest"])
os.environ.clear()
os.environ.update(asked["env"])
os.chdir(asked["cwd"])
for number, name in enumerate((os.devnull, *asked["outputs"])):
    os.dup2(os.open(name, os.O_RDWR), number)
sys.argv = ["-c", *asked["arguments"]]
exec(asked["code"], {"__name__": "__main__"})
"""

_one_at_a_time = Lock()


@cache
def _forker() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKER],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def run_python(
    code: str, *arguments: str, env: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """``python -c code arguments`` with this environment in this folder, and what it printed."""
    forker = _forker()
    assert forker.stdin and forker.stdout
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        asked = {"code": code, "arguments": arguments, "env": dict(env), "cwd": str(cwd)}
        asked |= {"outputs": (out.name, err.name), "longest": LONGEST}
        with _one_at_a_time:
            forker.stdin.write(json.dumps(asked) + "\n")
            forker.stdin.flush()
            left = int(forker.stdout.readline())
        said = [Path(file.name).read_text(encoding="utf-8") for file in (out, err)]
    return subprocess.CompletedProcess([code, *arguments], left, *said)
