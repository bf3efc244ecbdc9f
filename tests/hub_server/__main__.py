"""An empty Hub on 127.0.0.1, to try commands against by hand."""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path

from hub_server import LoopbackHub


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hub on 127.0.0.1, empty, until Ctrl-C.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--xet", action="store_true", help="large files by Xet instead of LFS")
    asked = parser.parse_args()
    hub = LoopbackHub().start(asked.port)
    with tempfile.TemporaryDirectory() as home:
        for name, value in hub.env(Path(home), xet=asked.xet).items():
            if name.startswith("HF_"):
                print(f"export {name}={value}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            hub.stop()


if __name__ == "__main__":
    main()
