"""CPU threads for work that is independent: packs of tokens, SAEs.

Handing whole pieces of work to threads, each of which computes alone, beats dividing every operation
among all threads: none waits for another before every piece is done. And operations that are small enough are
done before a second thread has woken up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch


@cache
def workers(count: int, threads: int) -> ThreadPoolExecutor:
    """``count`` threads that share torch's ``threads`` among them.

    In each of them ``torch.get_num_threads()`` is its share.
    """
    started = threading.Barrier(count)

    def start() -> None:
        torch.get_num_threads()  # torch takes over the process's number at a thread's first use
        torch.set_num_threads(max(1, threads // count))

    pool = ThreadPoolExecutor(count, thread_name_prefix="fastzoo", initializer=start)
    for future in [pool.submit(started.wait) for _ in range(count)]:
        future.result()
    torch.set_num_threads(threads)  # of this thread, and of all that start from now on
    return pool


_ALONE = threading.Lock()

_alone = {"blocks": 0, "threads": 1}


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes in the calling thread alone; afterwards as before. Blocks of several
    threads may overlap."""
    with _ALONE:
        if not _alone["blocks"]:
            _alone["threads"] = torch.get_num_threads()
        _alone["blocks"] += 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _ALONE:
            _alone["blocks"] -= 1
        torch.set_num_threads(_alone["threads"])
