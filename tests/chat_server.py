"""A server on the loopback that speaks the OpenAI chat protocol, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, str, dict[str, str]]
"""Status, body and headers."""

HANGS = 0
"""A status that is never sent."""


def completion(content: Any) -> Answer:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return 200, json.dumps(body | {"usage": usage}), {"Content-Type": "application/json"}


def score(value: Any) -> Answer:
    return completion(json.dumps({"reason": "because", "score": value}))


class Server(ThreadingHTTPServer):
    """Keeps what it was asked; ``answer`` says what it answers to a prompt."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Callable[[str], Answer] = lambda prompt: score(1)
        self.lock = threading.Lock()
        self.going_down = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(request | {"path": self.path})
            server.keys.append(self.headers["Authorization"])
            status, body, headers = server.answer(request["messages"][-1]["content"])
        if status == HANGS:
            server.going_down.wait(60)
            return
        data = body.encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def running_server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.going_down.set()
    server.shutdown()
    server.server_close()
