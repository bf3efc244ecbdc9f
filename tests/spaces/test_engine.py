"""Who goes first, and in how many threads: what makes an answer the same whoever else is there."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from space_pages import FOLDER, NAME


@pytest.fixture(scope="module")
def engine(saes: Path) -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        from engine import Engine

        yield Engine({NAME: str(saes / "runs" / "small" / NAME)})
    finally:
        torch.set_num_threads(before)
        sys.path.remove(str(FOLDER))


def last(engine: Any) -> dict[str, Any]:
    from engine import Push

    *_, found = engine.answers(Push(NAME, 3, 30.0, max_new_tokens=8), [], "Where is Paris?")
    return dict(found)


def test_an_answer_does_not_depend_on_the_threads_of_whoever_asks(engine: Any) -> None:
    found: list[Any] = []

    def ask() -> None:
        torch.set_num_threads(1)  # as a thread is left that first used torch beside a generation
        found.append(last(engine))
        found.append(torch.get_num_threads())

    expected = last(engine)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [expected, 2]


def test_the_reading_of_dialogues_lets_visitors_go_first(engine: Any) -> None:
    order: list[str] = []

    def use(name: str, can_wait: bool) -> None:
        with engine._model(can_wait=can_wait):
            order.append(name)
            time.sleep(0.05)

    with engine._model():
        threads = [
            threading.Thread(target=use, args=(name, name == "reading")) for name in ("reading", "a", "b")
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert order[-1] == "reading" and set(order) == {"reading", "a", "b"}
