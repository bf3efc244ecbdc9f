"""A Hub on 127.0.0.1 that the real huggingface_hub, datasets and transformers clients talk to.

The clients read their settings when they are imported, so a test runs them in a subprocess:

    with LoopbackHub() as hub:
        sha = hub.add("dataset", "org/name", {"data/train.jsonl": b"..."})
        subprocess.run([sys.executable, "-c", code], env=hub.env(tmp_path))
        assert not hub.foreign  # no other host was asked for anything

or, shorter, ``run(hub, tmp_path, code)``. To try a command against it by hand:

    PYTHONPATH=tests python -m hub_server --port 8000

``core`` has the server, ``faults`` what can go wrong; the other modules have the endpoints.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from hub_server import (
    collections,  # noqa: F401
    repos,  # noqa: F401
    writing,  # noqa: F401
)
from hub_server.core import READ_TOKEN, TOKEN, LoopbackHub
from hub_server.data import Repo, git_blob_id, is_large, sha256
from hub_server.messages import Request, Response, as_json, error, failing, hang_up, too_many

__all__ = [
    "READ_TOKEN",
    "ROOT",
    "TOKEN",
    "LoopbackHub",
    "Repo",
    "Request",
    "Response",
    "as_json",
    "error",
    "failing",
    "git_blob_id",
    "hang_up",
    "is_large",
    "run",
    "sha256",
    "too_many",
]

ROOT = Path(__file__).parents[2]

# Fails on any socket that leaves this machine; the proxy settings of the loopback Hub should make
# sure that none is ever asked for.
PRELUDE = """
import json, sys
def only_loopback(event, args):
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        raise RuntimeError(f"{event} to {host}")
sys.addaudithook(only_loopback)
"""


def run(hub: LoopbackHub, home: Path, code: str, *args: str, xet: bool = False, **env: str) -> list[Any]:
    """Run ``code`` as a client of ``hub``; what it prints is JSON, line by line."""
    script = PRELUDE + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        env=hub.env(home, xet=xet, **{"FASTZOO_RETRY_SECONDS": "0.01", **env}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
