"""What the loopback Hub is asked and what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

STORAGE = ("/objects/", "/uploads/", "/cas/")
"""Where the bytes of large files lie; these requests are not counted as calls of the Hub's API."""


@dataclass(eq=False)
class Request:
    """A request; once it is answered, ``status`` and ``fault`` say how.

    Attributes:
        status: the answer's status; 0 where none was sent.
        fault: whether a fault of the loopback Hub befell it (a rate limit's refusal is one).
    """

    method: str
    host: str
    path: str  # percent-encoded, as received
    query: dict[str, list[str]]
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    status: int = 0
    fault: bool = False

    @property
    def token(self) -> str | None:
        """The bearer token; None where there is none."""
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind.lower() == "bearer" else None

    @property
    def is_storage(self) -> bool:
        """Whether it is meant for the object storage and not for the Hub's API."""
        return self.path.startswith(STORAGE)

    def json(self) -> dict[str, Any]:
        """The body; raises Refusal (400) if it is not a JSON object."""
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Refusal(error(400, "BadRequest", "the body is not a JSON object"))
        return value

    def first(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def url(self, path: str, **query: str) -> str:
        """``path`` with this request's query, some of it changed."""
        values = urlencode({**self.query, **query}, doseq=True)
        return f"{path}?{values}" if values else path

    def __str__(self) -> str:
        return f"{self.method} {unquote(self.path)}"


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    """Bytes of the body after which the connection is closed; None where it is not."""


Fault = Callable[[Request], Response]


def as_json(value: Any, status: int = 200, **headers: str) -> Response:
    headers = {"Content-Type": "application/json; charset=utf-8", **headers}
    return Response(status, json.dumps(value).encode(), headers)


def error(status: int, code: str, message: str, sha: str = "", **more: Any) -> Response:
    """A refusal with the headers by which the client tells one from another."""
    text = " ".join(message.split()).encode("ascii", "replace").decode()
    headers = {"X-Error-Code": code, "X-Error-Message": text}
    if sha:
        headers["X-Repo-Commit"] = sha  # lets the client remember that a file does not exist
    response = as_json({"error": message, **more}, status)
    response.headers.update(headers)
    return response


class Refusal(Exception):
    """Raised inside an endpoint to answer with ``response``."""

    def __init__(self, response: Response):
        self.response = response


# --- faults that need no Hub -------------------------------------------------------------------


def hang_up(request: Request) -> Response:
    """The fault of a connection that is closed without an answer, before anything is done."""
    return Response(0)


def failing(status: int) -> Fault:
    """The fault of a server that answers ``status`` and does nothing."""
    return lambda request: error(status, "ServerError", f"the loopback Hub answers {status}")


def too_many(seconds: int = 1) -> Fault:
    """The fault of a refusal (429) that asks to wait for ``seconds``."""

    def fault(request: Request) -> Response:
        response = error(429, "TooManyRequests", "too many requests")
        response.headers |= rate_headers(0, seconds, 1000, 300)
        response.headers["Retry-After"] = str(seconds)
        return response

    return fault


def rate_headers(remaining: int, seconds: int, requests: int, window: int) -> dict[str, str]:
    """The Hub's rate limit headers; times in seconds."""
    return {
        "RateLimit": f'"api";r={remaining};t={seconds}',
        "RateLimit-Policy": f'"fixed window";"api";q={requests};w={window}',
    }
