"""Generation that somebody watches, token by token, and may turn away from."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fastzoo.steering.generate import Step
from fastzoo.steering.sweep import Watch

Result = TypeVar("Result")


class _Stop(Exception):
    """Ends a generation that nobody listens to."""


class Live(Generic[Result]):
    """Work that tells a watcher of its tokens, in a thread of its own.

    Args:
        work: what is done; ``Sweep.cells`` and the like.
    """

    result: Result
    """What came of it, once ``steps`` is through."""

    def __init__(self, work: Callable[[Watch], Result]) -> None:
        self._work = work

    def steps(self) -> Iterator[Step]:
        """Does the work, yielding (row, token) of each step. Closed early, it ends the work after the token that is being
        computed, and returns once the model is as before. Raises what the work raises."""
        steps: queue.SimpleQueue[Step | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()

        def watch(step: Step) -> None:
            if stop.is_set():
                raise _Stop
            steps.put(step)

        def work() -> None:
            try:
                self.result = self._work(watch)
                steps.put(None)
            except BaseException as error:
                steps.put(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        try:
            while isinstance(step := steps.get(), list):
                yield step
        finally:
            stop.set()
            thread.join()
        if step is not None:
            raise step
