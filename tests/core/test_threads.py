"""Jobs done by several daemon threads."""

from __future__ import annotations

import threading
import time

import pytest

from fastzoo.core.threads import run_daemons


def test_every_result_comes_once_and_to_the_caller() -> None:
    found: list[tuple[int, int]] = []
    stop = threading.Event()
    run_daemons(
        range(50),
        lambda job: job * job,
        lambda result: found.append((result, threading.get_ident())),
        workers=4,
        stop=stop,
    )
    assert sorted(result for result, _ in found) == [i * i for i in range(50)]
    assert {thread for _, thread in found} == {threading.get_ident()} and stop.is_set()
    run_daemons([], lambda job: job, found.append, workers=4, stop=threading.Event())


def test_the_first_failure_ends_the_others_and_waits_for_none() -> None:
    begun: list[int] = []
    hang = threading.Event()

    def work(job: int) -> None:
        begun.append(job)
        if job == 2:
            raise KeyError("broken")
        if job == 1:
            hang.wait(20)

    before = time.monotonic()
    with pytest.raises(KeyError, match="broken"):
        run_daemons(range(100), work, lambda _: None, workers=2, stop=threading.Event())
    assert time.monotonic() - before < 5 and max(begun) <= 3
    hang.set()
