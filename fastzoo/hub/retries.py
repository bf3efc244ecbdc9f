"""Trying again where a connection or a server failed, and keeping to the Hub's rate limit.

Failures that can pass (a dropped connection, a timeout, 5xx, 429) are tried again after 1, 2, 4, ...
seconds, at most a minute each time; every other one is left to the caller at once. huggingface_hub
tries again by itself in some places, but its pauses do not end on Ctrl-C, and it logs several lines.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import SSLCertVerificationError
from typing import Any, TypeVar

from fastzoo.core.signals import label, nap
from fastzoo.core.text import one_line
from fastzoo.hub.client import status_of

TRIES = 12
"""Tries without any progress before giving up: some six minutes, longer than most outages."""

TRIES_OF_LISTS = 8
"""The same for listings: huggingface_hub itself tries each page six times, which takes 23 seconds."""

FIRST_PAUSE = float(os.environ.get("FASTZOO_RETRY_SECONDS", "1"))
"""Seconds before the first further try; all other pauses are in proportion. Tests make it short."""

LONGEST_PAUSE = 60 * FIRST_PAUSE

LONGEST_RETRY_AFTER = 300.0
"""Seconds: the window of the Hub's rate limit. A server that asks for more is asked sooner."""

RESERVE = 3
"""Requests that are left to others with the same token."""

SILENCE = 300.0
"""Seconds without a byte after which a connection counts as dropped; huggingface_hub has no limit."""

Result = TypeVar("Result")


def with_retries(
    call: Callable[[], Result], what: str, tries: int = TRIES, longest: float = math.inf
) -> Result:
    """``call()``, again after failures that can pass; raises the last of ``tries``, and one that asks for a pause
    above ``longest`` seconds."""
    failed = 0
    while True:
        try:
            return call()
        except Exception as error:
            failed += 1
            if failed == tries or not is_transient(error) or _pause(error, failed) > longest:
                raise
            wait(error, what, failed, tries)


def wait(error: BaseException, what: str, failed: int, tries: int = TRIES) -> None:
    """Say on stderr that ``what`` failed for the ``failed``-th time in a row, and pause."""
    seconds = _pause(error, failed)
    again = f"trying again in {seconds:g} s ({failed} of {tries - 1})"
    print(f"{label()}{what}: {reason(error)}; {again}", file=sys.stderr, flush=True)
    nap(seconds)


def is_transient(error: BaseException) -> bool:
    """Whether an error comes from a connection that failed or a server that is down or busy."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    final = (OfflineModeIsEnabled, SSLCertVerificationError)
    if any(isinstance(cause, final) for cause in _causes(error)):
        return False
    failure = _failure(error)
    status = status_of(failure)
    return failure is not None and (status is None or status in (408, 429) or status >= 500)


def reason(error: BaseException) -> str:
    """What went wrong, in a few words."""
    failure = _failure(error) or error
    if (status := status_of(failure)) is not None:
        return f"the server answered {status}"
    while failure.__cause__ is not None:
        failure = failure.__cause__
    return one_line(failure, 150).rstrip(".") or type(failure).__name__


def _failure(error: BaseException) -> BaseException | None:
    """The answer or failed connection that an error comes from."""
    from huggingface_hub.errors import HTTPError

    # datasets and huggingface_hub raise ConnectionErrors of their own; what these come from says more.
    kinds = ((HTTPError, TimeoutError), ConnectionError)
    return next((cause for kind in kinds for cause in _causes(error) if isinstance(cause, kind)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised for; datasets hides some of that ("from None")."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _pause(error: BaseException, failed: int) -> float:
    """Seconds to the next try: doubled with each failure, or what the server asks for if longer."""
    from huggingface_hub.utils import parse_ratelimit_headers

    seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failed - 1))
    headers = getattr(getattr(_failure(error), "response", None), "headers", {})
    limit, asked = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if limit and limit.remaining == 0:
        asked = str(limit.reset_in_seconds)
    return max(seconds, min(float(asked), LONGEST_RETRY_AFTER)) if asked.isdecimal() else seconds


class RateLimit:
    """What the Hub's answers say is left, per kind of request, and until when."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[int, float]] = {}

    def before(self, request: Any) -> None:
        """Wait for the next window if this one's requests are used up, five minutes at most."""
        limits = request.extensions.setdefault("timeout", {})
        limits |= {kind: limits.get(kind) or SILENCE for kind in ("connect", "read", "write", "pool")}
        # The Hub counts reading of files apart from everything else.
        kind = "resolvers" if "/resolve/" in request.url.path else "api"
        left, until = self._left.get(kind, (0, 0))
        seconds = min(until - time.monotonic(), LONGEST_RETRY_AFTER)
        if left <= RESERVE and seconds > 0:
            print(f"the Hub's rate limit is reached; waiting {seconds:.0f} s", file=sys.stderr)
            nap(seconds)

    def after(self, response: Any) -> None:
        """Note what an answer says."""
        from huggingface_hub.utils import parse_ratelimit_headers

        if found := parse_ratelimit_headers(response.headers):
            self._left[found.resource_type] = found.remaining, time.monotonic() + found.reset_in_seconds


@contextmanager
def rate_limited() -> Iterator[None]:
    """Let huggingface_hub's requests of this process keep to the rate limit."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import get_session

    client, hooks, limit = type(get_session()), get_session().event_hooks, RateLimit()

    def use(hooks: dict[str, list[Any]]) -> None:
        set_client_factory(lambda: client(event_hooks=hooks, follow_redirects=True, timeout=None))

    use({"request": [*hooks["request"], limit.before], "response": [*hooks["response"], limit.after]})
    try:
        yield
    finally:
        use(hooks)
