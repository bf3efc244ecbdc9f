"""Someone who publishes SAEs on the loopback Hub by the real command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forked import run_python
from hub_server import ROOT, LoopbackHub

from fastzoo.publish.collection import TITLE
from fastzoo.saes.names import SAEName, parse_name

NAMES = tuple(
    parse_name(f"qwen2.5-0.5b-L{layer}-8x-{kind}") for layer in (4, 12) for kind in ("standard", "jumprelu")
)

PUSH = "from fastzoo.cli.main import main; main()"


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
        env = self.hub.env(self.where / self.home, **more)
        done = run_python(PUSH, *command, env=env, cwd=self.where)
        self.stderr = done.stderr
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else {}

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
