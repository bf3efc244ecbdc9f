"""Requests no faster than the Hub allows: it says in each answer how many are left, and until when.

huggingface_hub waits for nobody where it writes: it raises at the first 429. Who writes much
therefore pauses before the last requests are used up (see ``paced``) and tries again what failed
all the same (``fastzoo.retries``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastzoo.ranks import nap
from fastzoo.retries import LONGEST_RETRY_AFTER

RESERVE = 3
"""Requests that are left to others with the same token."""
SILENCE = 300.0
"""Seconds without a byte after which a connection counts as dropped; huggingface_hub has no limit."""


class Pace:
    """What the Hub's answers said is left, per kind of request."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[int, float]] = {}

    def before(self, request: Any) -> None:
        """Wait until the next window where this one's requests are used up, five minutes at most."""
        limits = request.extensions.setdefault("timeout", {})
        for kind in ("connect", "read", "write", "pool"):
            if limits.get(kind) is None:
                limits[kind] = SILENCE
        # The Hub counts reading of files apart from everything else.
        left, until = self._left.get(
            "resolvers" if "/resolve/" in request.url.path else "api", (0, 0)
        )
        seconds = min(until - time.monotonic(), LONGEST_RETRY_AFTER)
        if left <= RESERVE and seconds > 0:
            print(f"the Hub's rate limit is reached; waiting {seconds:.0f} s", file=sys.stderr)
            nap(seconds)

    def after(self, response: Any) -> None:
        """Note what an answer says."""
        from huggingface_hub.utils import parse_ratelimit_headers

        if found := parse_ratelimit_headers(response.headers):
            until = time.monotonic() + found.reset_in_seconds
            self._left[found.resource_type] = (found.remaining, until)


@contextmanager
def paced() -> Iterator[None]:
    """Let huggingface_hub's requests of this process keep pace."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    pace = Pace()

    def factory() -> Any:
        client = default_client_factory()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], pace.before],
            "response": [*hooks["response"], pace.after],
        }
        return client

    set_client_factory(factory)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
