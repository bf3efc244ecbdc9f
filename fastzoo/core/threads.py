"""Threads for pieces of work that are independent: computing with torch, and requests to servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_daemons(
    jobs: Sequence[Job],
    work: Callable[[Job], Result],
    then: Callable[[Result], None],
    *,
    workers: int,
    stop: threading.Event,
    grace: float = 0.0,
) -> None:
    """Do jobs, in their order, in several threads, and call ``then`` in this one with each result as it is done.

    The first job that raises ends the others, and its error is raised here. The threads are daemons
    and not waited for, so that a server that hangs does not hold up Ctrl-C.

    Args:
        stop: set at the end, for work that can end early.
        grace: seconds that the threads may take to end.
    """
    waiting = iter(tuple(jobs))  # a tuple's iterator gives each job to one thread only
    done: SimpleQueue[Future[Result]] = SimpleQueue()

    def serve() -> None:
        for job in waiting:
            if stop.is_set():
                return
            outcome: Future[Result] = Future()
            try:
                outcome.set_result(work(job))
            except BaseException as error:
                outcome.set_exception(error)
            done.put(outcome)  # before ``stop`` ends other jobs in turn
            if outcome.exception() is not None:
                stop.set()

    threads = [threading.Thread(target=serve, daemon=True) for _ in jobs[:workers]]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            then(done.get().result())
    finally:
        stop.set()
        until = time.monotonic() + grace
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


# With torch, handing whole pieces of work to threads, each of which computes alone, beats dividing every
# operation among all threads: none waits for another before its piece is done, and small operations are
# done before a second thread has woken up.


@cache
def workers(count: int, threads: int) -> ThreadPoolExecutor:
    """``count`` threads, in each of which ``torch.get_num_threads()`` is its share of ``threads``."""
    import torch

    started = threading.Barrier(count)

    def start() -> None:
        torch.get_num_threads()  # torch takes over the process's number at a thread's first use
        torch.set_num_threads(max(1, threads // count))

    pool = ThreadPoolExecutor(count, thread_name_prefix="fastzoo", initializer=start)
    for future in [pool.submit(started.wait) for _ in range(count)]:
        future.result()
    torch.set_num_threads(threads)  # of this thread, and of all that start from now on
    return pool


_LOCK = threading.Lock()

_counts: list[int] = []
"""torch's number of threads when each block of ``one_thread`` that is open began."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes in the calling thread alone; afterwards as before. Blocks of several
    threads may overlap."""
    import torch

    with _LOCK:
        _counts.append(_counts[0] if _counts else torch.get_num_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            torch.set_num_threads(_counts.pop())
