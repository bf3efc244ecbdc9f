"""Someone who publishes SAEs on the loopback Hub by the real command."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from loopback_hub import ROOT, LoopbackHub

from fastzoo.collection import TITLE
from fastzoo.names import SAEName, parse_name

NAMES = tuple(
    parse_name(f"qwen2.5-0.5b-L{layer}-8x-{kind}")
    for layer in (4, 12)
    for kind in ("standard", "jumprelu")
)

# Forks a process for each line it reads, which is then as one that was started with that environment
# in that folder, but for torch: importing it is half of what a short push takes. Answers with the
# exit code. Nothing that reads the Hub's settings may be imported before the fork.
FORK = """
import json, os, signal, sys
import torch
for line in sys.stdin:
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(300)  # no push takes that long
asked = json.loads(line)
os.environ.clear()
os.environ.update(asked["env"])
os.chdir(asked["cwd"])
for number, name in enumerate(("/dev/null", "stdout", "stderr")):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC * (number > 0)), number)
sys.argv = ["fastzoo", *asked["arguments"]]
from fastzoo.cli import main
main()
"""


@cache
def forker() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORK],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)
    return process


class Person:
    """Someone at a machine of their own (``home``), with a zoo to publish."""

    def __init__(self, hub: LoopbackHub, where: Path) -> None:
        self.hub, self.where, self.home, self.stderr = hub, where, "home", ""

    def push(self, *arguments: str, code: int = 0, **env: str) -> dict[str, Any]:
        """``fastzoo push``; what it prints as JSON, if it is to end well."""
        command = ["push", *(arguments or ["zoo"]), "--json"]
        if "--namespace" not in arguments:
            command += ["--namespace", "org"]
        more = {"PYTHONPATH": str(ROOT), "FASTZOO_RETRY_SECONDS": "0.01", **env}
        asked = {
            "arguments": command,
            "cwd": str(self.where),
            "env": self.hub.env(self.where / self.home, **more),
        }
        forked = forker()
        assert forked.stdin and forked.stdout
        forked.stdin.write(json.dumps(asked) + "\n")
        forked.stdin.flush()
        left = int(forked.stdout.readline())
        out, self.stderr = ((self.where / name).read_text() for name in ("stdout", "stderr"))
        assert left == code, self.stderr
        return json.loads(out) if out else {}

    def commits(self, kind: str | None = None, name: str | None = None) -> int:
        return len(self.hub.commits(kind, f"org/{name}" if name else None))

    def held(self, kind: str, name: str) -> dict[str, bytes]:
        repo = self.hub.repos[kind, f"org/{name}"]
        return repo.commits[repo.branches["main"]]

    def items(self, title: str = TITLE) -> list[tuple[str, str]]:
        (found,) = (c for c in self.hub.collections.values() if c.title == title)
        return [(item.type, item.id) for item in found.items]

    def edit(self, name: SAEName, old: str, new: str) -> None:
        """Change a card in the Hub's own editor."""
        files = self.held("model", str(name))
        card = files["README.md"].decode()
        assert old in card
        files = {**files, "README.md": card.replace(old, new).encode()}
        self.hub.add("model", f"org/{name}", files)
