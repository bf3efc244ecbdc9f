"""What runs the language model. On ZeroGPU these run in a process of their own, which is forked for each call and gets
the arguments by pickling: so they take plain data, and find the engine where the page left it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine import Engine, Push, Turn

from fastzoo.steering.outcome import Outcome

try:
    from spaces import GPU as on_gpu
except ImportError:

    def on_gpu(function: Any) -> Any:
        """Elsewhere a function runs where it is called."""
        return function


MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""For events that call these: one visitor after the other, which is as fast on one device, and exact."""

_shown: list[Engine] = []


def show(engine: Engine) -> None:
    """Let the functions here use this engine, of the page that is being built."""
    _shown[:] = [engine]


@on_gpu
def answers(push: Push, before: list[Turn], question: str) -> Iterator[dict[str, Any]]:
    yield from _shown[0].answers(push, before, question)


@on_gpu
def sweep(push: Push, questions: list[str], alphas: list[float]) -> Iterator[tuple[int, Outcome | None]]:
    yield from _shown[0].sweep(push, questions, alphas)


@on_gpu
def read_dialogue(name: str, turns: list[dict[str, str]], asked: Any = None) -> dict[str, Any]:
    found: dict[str, Any] = _shown[0].read_dialogue(name, turns, asked=asked)
    return found
