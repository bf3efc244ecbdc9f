"""CPU threads for work that is independent: packs of tokens, SAEs.

Handing whole pieces of work to threads, each of which computes alone, beats dividing every operation
among all threads: none waits for another before every piece is done.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
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
