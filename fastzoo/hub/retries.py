"""Trying again where the connection to the Hub failed, and only there.

A failure that passes by itself (a dropped connection, a timeout, 5xx, 429) is tried again after
1, 2, 4, ... seconds, at most a minute each time; every other one is left to the caller at once.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ssl import SSLCertVerificationError
from typing import Any, TypeVar

from fastzoo.core.processes import label, nap
from fastzoo.core.text import one_line

TRIES = 12
"""Tries without any progress before giving up: some six minutes, longer than most outages."""

TRIES_OF_LISTS = 8
"""The same for listings: huggingface_hub itself tries each page six times, which takes 23 seconds."""

FIRST_PAUSE = float(os.environ.get("FASTZOO_RETRY_SECONDS", "1"))
"""Seconds before the first further try; all other pauses are in proportion. Tests make it short."""

LONGEST_PAUSE = 60 * FIRST_PAUSE

LONGEST_RETRY_AFTER = 300.0
"""As long as the Hub counts requests for its rate limit; a server that names more is asked sooner."""

Result = TypeVar("Result")


def patiently(
    call: Callable[[], Result], what: str, tries: int = TRIES, longest: float = math.inf
) -> Result:
    """``call()``, again after failures that pass by themselves.

    The last of ``tries`` failures is raised, and one that asks for a pause above ``longest`` seconds.
    """
    failed = 0
    while True:
        try:
            return call()
        except Exception as error:
            failed += 1
            if failed == tries or not passes_by_itself(error) or _pause(error, failed) > longest:
                raise
            wait(error, what, failed, tries)


def wait(error: BaseException, what: str, failed: int, tries: int = TRIES) -> None:
    """Say on stderr that ``what`` failed for the ``failed``-th time in a row, and pause."""
    seconds = _pause(error, failed)
    print(
        f"{label()}{what}: {reason(error)}; trying again in {seconds:g} s ({failed} of {tries - 1})",
        file=sys.stderr,
        flush=True,
    )
    nap(seconds)


def passes_by_itself(error: BaseException) -> bool:
    """Whether an error comes from a connection that failed or a server that is down or busy."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    final = (OfflineModeIsEnabled, SSLCertVerificationError)
    if any(isinstance(cause, final) for cause in _causes(error)):
        return False
    failure = _failure(error)
    status = _status(failure)
    return failure is not None and (status is None or status in (408, 429) or status >= 500)


def reason(error: BaseException) -> str:
    """What went wrong, in a few words."""
    failure = _failure(error) or error
    if (status := _status(failure)) is not None:
        return f"the server answered {status}"
    while failure.__cause__ is not None:
        failure = failure.__cause__
    return one_line(failure, 150).rstrip(".") or type(failure).__name__


def _failure(error: BaseException) -> BaseException | None:
    """The answer or failed connection that an error comes from."""
    from huggingface_hub.errors import HTTPError

    # datasets and huggingface_hub raise ConnectionErrors of their own; what these come from says more.
    for kinds in ((HTTPError, TimeoutError), (ConnectionError,)):
        for cause in _causes(error):
            if isinstance(cause, kinds):
                return cause
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised for; datasets hides some of that ("from None")."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _pause(error: BaseException, failed: int) -> float:
    """Seconds to the next try: doubled with each failure, or what the server asks for if longer."""
    seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failed - 1))
    response = getattr(_failure(error), "response", None)
    headers: Mapping[str, str] = getattr(response, "headers", {})
    # The Hub itself asks by, for example, RateLimit: "api";r=0;t=55
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    asked = limit[1] if limit else headers.get("Retry-After", "")
    return max(seconds, min(float(asked), LONGEST_RETRY_AFTER)) if asked.isdecimal() else seconds


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
