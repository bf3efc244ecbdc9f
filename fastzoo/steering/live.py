"""Generation that somebody watches, token by token, and may turn away from."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Step = TypeVar("Step")
Result = TypeVar("Result")


class _Stop(Exception):
    """Ends a generation that nobody listens to."""


class Live(Generic[Step, Result]):
    """Work that tells a watcher of each step, in a thread of its own with the context of who watches.

    Args:
        work: what is done; ``Sweep.cells`` and the like.
    """

    result: Result
    """What came of it, once ``steps`` is through."""

    def __init__(self, work: Callable[[Callable[[Step], None]], Result]) -> None:
        self._work = work

    def steps(self) -> Iterator[Step]:
        """Does the work, yielding each step as it is told. Closed early, it ends the work after the token that is being
        computed, and returns once the model is as before. Raises what the work raises."""
        steps: queue.SimpleQueue[tuple[Step] | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()

        def watch(step: Step) -> None:
            if stop.is_set():
                raise _Stop
            steps.put((step,))

        def work() -> None:
            try:
                self.result = self._work(watch)
                steps.put(None)
            except BaseException as error:
                steps.put(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        try:
            while isinstance(told := steps.get(), tuple):
                yield told[0]
        finally:
            stop.set()
            thread.join()
        if told is not None:
            raise told
