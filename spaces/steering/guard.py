"""What a request may hold, looked at before Gradio reads it.

Gradio fetches whatever a request calls a file, a path of this machine or an address of another, before any function is
called. No part of this page takes a file, so such requests are refused, as are those that are far too large.
"""

from __future__ import annotations

import json
from typing import Any

LARGEST = 1 << 18
"""Bytes of a request."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        if scope["path"].rstrip("/").endswith("/upload"):
            await refuse(send, 403, "this page takes no files")
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the visitor has left
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > LARGEST:
                await refuse(send, 413, f"a request has at most {LARGEST} bytes")
                return
        if names_a_file(body):
            await refuse(send, 400, "this page takes no files")
            return
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


def names_a_file(body: bytes) -> bool:
    """Whether a JSON body holds what Gradio takes for a file. What is no JSON, Gradio refuses itself."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return b"FileData" in body
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if ("path" in value and ("meta" in value or "url" in value)) or "gradio.FileData" in map(
                str, value.values()
            ):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


async def refuse(send: Any, status: int, said: str) -> None:
    body = json.dumps({"detail": said, "error": said}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
