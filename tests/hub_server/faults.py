"""What can go wrong between the loopback Hub and its clients.

A fault is a function from a ``Request`` to the ``Response`` that is sent instead. ``hang_up``,
``failing(status)`` and ``too_many(seconds)`` do nothing else; ``hub.lose``, ``hub.cut`` and
``hub.flip`` let the endpoint act and spoil its answer.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from hub_server.messages import Fault, Request, Response, failing, hang_up, rate_headers, too_many


class Faults:
    """The part of the loopback Hub that disturbs it.

    Attributes:
        faults: functions from Request to Response or None, asked in turn before the endpoints.
    """

    faults: list[Callable[[Request], Response | None]]
    lock: threading.RLock

    def undisturbed(self, request: Request) -> Response:
        """The answer without any fault."""
        raise NotImplementedError

    def fail(
        self,
        pattern: str,
        how: Fault,
        *,
        after: int = 0,
        times: int | None = None,
        method: str | None = "GET",
    ) -> list[Request]:
        """Add the fault ``how``; it befalls requests in which ``pattern`` is found (as ``asked``).

        Only those of ``method`` (None: any). The first ``after`` of these are spared, and all once
        ``times`` were met. Returns the list of those that were met, which grows.
        """
        spared: list[Request] = []
        met: list[Request] = []

        def fault(request: Request) -> Response | None:
            if not _meets(request, pattern, method):
                return None
            with self.lock:
                if len(spared) < after:
                    spared.append(request)
                    return None
                if times is not None and len(met) >= times:
                    return None
                met.append(request)
            return how(request)

        self.faults.append(fault)
        return met

    def every(self, n: int, hows: Sequence[Fault] | None = None, pattern: str = "") -> list[Request]:
        """Every n-th request in which ``pattern`` is found meets the next of ``hows``, in turn.

        ``hows`` is by default ``all_faults()``. Returns the list of those that were met.
        """
        hows = self.all_faults() if hows is None else hows
        count = [0]
        met: list[Request] = []

        def fault(request: Request) -> Response | None:
            if not _meets(request, pattern, None):
                return None
            with self.lock:
                count[0] += 1
                if count[0] % n:
                    return None
                how = hows[len(met) % len(hows)]
                met.append(request)
            return how(request)

        self.faults.append(fault)
        return met

    def all_faults(self, seconds: int = 0) -> list[Fault]:
        """One of each: refused for ``seconds``, two server errors, dropped before and after the
        endpoint acted, and cut in the middle of the answer."""
        return [too_many(seconds), failing(500), hang_up, self.lose, failing(503), self.cut]

    def slow(self, seconds: float, pattern: str = "", method: str | None = None) -> None:
        """Let requests in which ``pattern`` is found wait; this counts as no fault."""

        def fault(request: Request) -> None:
            if _meets(request, pattern, method):
                time.sleep(seconds)

        self.faults.append(fault)

    def corrupt(self, pattern: str, *, times: int | None = None) -> list[Request]:
        """Answer GET requests in which ``pattern`` is found with wrong bytes of the same size."""
        return self.fail(pattern, self.flip, times=times)

    def cut(self, request: Request) -> Response:
        """The fault of a connection that is closed in the middle of the body.

        An answer without a body is lost.
        """
        response = self.undisturbed(request)
        if not response.body or request.method == "HEAD":
            return Response(0)
        return replace(response, sent=len(response.body) // 2)

    def lose(self, request: Request) -> Response:
        """The fault of an answer that is lost although the endpoint did what it was asked."""
        self.undisturbed(request)
        return Response(0)

    def flip(self, request: Request) -> Response:
        """The fault of a wrong byte in the middle of the body."""
        response = self.undisturbed(request)
        middle = len(response.body) // 2
        flipped = bytes([byte ^ 1 for byte in response.body[middle : middle + 1]])
        body = response.body[:middle] + flipped + response.body[middle + 1 :]
        return replace(response, body=body)


def _meets(request: Request, pattern: str, method: str | None) -> bool:
    return method in (None, request.method) and re.search(pattern, str(request)) is not None


class RateLimit:
    """At most ``requests`` per token in each window of ``window`` seconds."""

    def __init__(self, requests: int, window: int):
        self.requests, self.window = requests, window
        self._counted: dict[str | None, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def count(self, token: str | None) -> tuple[bool, dict[str, str]]:
        """Count one request: whether it is within the limit, and the headers that say so."""
        now = time.monotonic()
        with self._lock:
            start, counted = self._counted.get(token, (now, 0))
            if now - start >= self.window:
                start, counted = now, 0
            self._counted[token] = (start, counted + 1)
        remaining = max(self.requests - counted - 1, 0)
        seconds = math.ceil(start + self.window - now)
        headers = rate_headers(remaining, seconds, self.requests, self.window)
        return counted < self.requests, headers
