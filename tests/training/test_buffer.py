"""The mixing buffer: every row once, columns aligned, really mixed, reproducible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastzoo.core.errors import InputError
from fastzoo.lm.activations import Columns
from fastzoo.training.buffer import MixingBuffer


def source(chunks: Sequence[int], pulled: list[int] | None = None) -> Iterator[Columns]:
    """Rows numbered 0, 1, 2, ... in chunks; columns of different shape and type that agree."""
    start = 0
    for size in chunks:
        row = torch.arange(start, start + size)
        start += size
        if pulled is not None:
            pulled.append(size)
        yield {
            "L3": torch.stack([row.float(), row.float() * 10], 1),
            "L7": (row.float()[:, None, None] + torch.zeros(1, 2, 2)).contiguous(),
            "position": row.to(torch.int32),
            "special": row % 3 == 0,
        }


def rows_of(batches: Sequence[Columns]) -> list[int]:
    return [int(r) for batch in batches for r in batch["position"]]


@given(
    batch=st.integers(1, 9),
    extra=st.integers(0, 40),
    chunks=st.lists(st.integers(0, 33), max_size=25),
    seed=st.integers(0, 3),
)
@example(batch=4, extra=0, chunks=[8], seed=0)
@example(batch=4, extra=0, chunks=[16], seed=0)
@example(batch=4, extra=1, chunks=[9, 9], seed=0)
@example(batch=1, extra=0, chunks=[1], seed=0)
@example(batch=3, extra=2, chunks=[], seed=0)
@example(batch=3, extra=2, chunks=[0], seed=0)
def test_every_row_is_served_exactly_once_with_its_own_columns(
    batch: int, extra: int, chunks: list[int], seed: int
) -> None:
    total = sum(chunks)
    batches = list(MixingBuffer(source(chunks), 2 * batch + extra, batch, seed))
    assert sorted(rows_of(batches)) == list(range(total))
    sizes = [len(b["position"]) for b in batches]
    # Only the very last batch may be short, and none is empty.
    assert sizes == [batch] * (total // batch) + ([total % batch] if total % batch else [])
    for served in batches:
        row = served["position"]
        assert torch.equal(served["L3"], torch.stack([row.float(), row.float() * 10], 1))
        assert torch.equal(served["L7"], row.float()[:, None, None].expand(-1, 2, 2))
        assert torch.equal(served["special"], row % 3 == 0)


def test_dtypes_and_shapes_of_columns_survive() -> None:
    batch = next(iter(MixingBuffer(source([50]), 20, 5, 0)))
    assert {name: (column.dtype, tuple(column.shape)) for name, column in batch.items()} == {
        "L3": (torch.float32, (5, 2)),
        "L7": (torch.float32, (5, 2, 2)),
        "position": (torch.int32, (5,)),
        "special": (torch.bool, (5,)),
    }


def test_halves_are_refilled_and_mixed_with_what_was_left() -> None:
    capacity, batch = 400, 20
    half = capacity // 2
    pulled: list[int] = []
    buffer = MixingBuffer(source([10] * 400, pulled), capacity, batch, 1)
    newest = []
    for number, served in enumerate(buffer):
        rows = served["position"]
        halves = number // (half // batch)  # complete halves served before this batch
        available = capacity + halves * half
        if available > 4000:
            break
        # Nothing is read ahead, and nothing is served before it was read.
        assert sum(pulled) == available
        assert int(rows.max()) < available
        if halves:
            fresh = (rows >= available - half).float().mean().item()
            newest.append(fresh)
            assert 0 < fresh < 1, "a batch from one half only"
    # After a refill half of what is held is new, so half of every batch is, on average.
    assert len(newest) > 100
    assert sum(newest) / len(newest) == pytest.approx(0.5, abs=0.02)


def test_rows_wait_for_several_refills() -> None:
    """What was left of a half is shuffled in again, so some rows of the first fill are served late."""
    served = rows_of(list(MixingBuffer(source([4000]), 400, 20, 0)))
    delay = [place - row for place, row in enumerate(served)]
    assert max(delay) > 400
    # The order is nothing like the source's.
    assert sum(abs(a - b) == 1 for a, b in pairwise(served)) < 100


def test_the_buffer_is_refilled_in_place() -> None:
    buffer = MixingBuffer(source([10] * 100), 40, 5, 0)
    storage = buffer.fill()["L3"].data_ptr()
    served = [batch for _, batch in zip(range(60), buffer, strict=False)]
    assert buffer.fill()["L3"].data_ptr() == storage
    assert len(set(rows_of(served))) == 300  # batches are copies: refilling did not change them


def test_fill_shows_the_first_rows_unshuffled_and_takes_nothing_away() -> None:
    buffer = MixingBuffer(source([7] * 20), 30, 5, 0)
    assert buffer.fill()["position"].tolist() == list(range(30))
    assert buffer.fill()["position"].tolist() == list(range(30))
    assert sorted(rows_of(list(buffer))) == list(range(140))


def test_fill_of_a_short_source_holds_only_what_there_is() -> None:
    assert MixingBuffer(source([7, 4]), 30, 5, 0).fill()["position"].tolist() == list(range(11))


def test_order_depends_on_the_seed_and_on_nothing_else() -> None:
    def order(seed: int, chunks: list[int]) -> list[int]:
        return rows_of(list(MixingBuffer(source(chunks), 64, 8, seed)))

    torch.manual_seed(0)
    one = order(5, [100] * 10)
    torch.manual_seed(1)
    assert order(5, [100] * 10) == one
    assert order(5, [1] * 1000) == one  # however the source cuts its rows
    assert order(6, [100] * 10) != one


def test_a_buffer_below_two_batches_is_refused() -> None:
    with pytest.raises(InputError, match="15 tokens holds fewer than two batches of 8"):
        MixingBuffer(source([10]), 15, 8, 0)
    assert rows_of(list(MixingBuffer(source([16]), 16, 8, 0)))
    with pytest.raises(InputError):
        MixingBuffer(source([10]), 15, 0, 0)


def test_a_used_up_buffer_serves_nothing_more() -> None:
    buffer = MixingBuffer(source([30]), 20, 5, 0)
    assert len(list(buffer)) == 6
    assert list(buffer) == []


# --- saving --------------------------------------------------------------------------------------


class Ended(Exception):
    """What a test ends a refill with."""


def counted(chunks: Sequence[int], skip: int, given: list[int]) -> Iterator[Columns]:
    """``source`` from its chunk ``skip`` on; ``given`` holds how many chunks it is after."""
    for number, columns in enumerate(source(chunks)):
        if number >= skip:
            given[0] = number + 1
            yield columns


def buffer_of(
    chunks: Sequence[int], capacity: int, batch: int, skip: int = 0, idle: int | None = None
) -> MixingBuffer:
    """Its position is the number of chunks given; ``idle`` calls within refills are let pass."""
    given, calls = [skip], [0]

    def end() -> None:
        calls[0] += 1
        if idle is not None and calls[0] > idle:
            raise Ended

    return MixingBuffer(
        counted(chunks, skip, given), capacity, batch, seed=3, position=lambda: given[0], idle=end
    )


def another(buffer: MixingBuffer, chunks: Sequence[int]) -> MixingBuffer:
    """What a new process makes of this one's state."""
    state = buffer.state()
    columns = {name: [p.clone() for p in buffer.unserved(name)] for name in source_columns()}
    made = buffer_of(chunks, buffer.capacity, buffer.batch_size, skip=state.position)
    made.restore(state, torch.device("cpu"))
    for name, pieces in columns.items():
        made.put_back(name, pieces)
    return made


def source_columns() -> list[str]:
    return list(next(source([1])))


def equal(one: Sequence[Columns], other: Sequence[Columns]) -> bool:
    return len(one) == len(other) and all(
        left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
        for left, right in zip(one, other, strict=True)
    )


sizes = {
    "batch": st.integers(1, 7),
    "extra": st.integers(0, 20),
    "chunks": st.lists(st.integers(1, 25), min_size=1, max_size=12),
}


@settings(max_examples=30)
@given(**sizes)
@example(batch=4, extra=0, chunks=[8])
@example(batch=4, extra=0, chunks=[16])
@example(batch=4, extra=1, chunks=[9, 9, 3])
@example(batch=1, extra=0, chunks=[1])
def test_from_every_batch_on_another_buffer_serves_the_same(
    batch: int, extra: int, chunks: list[int]
) -> None:
    capacity = 2 * batch + extra
    served = list(buffer_of(chunks, capacity, batch))
    buffer = buffer_of(chunks, capacity, batch)
    for number, _ in enumerate(buffer, start=1):
        other = another(buffer, chunks)
        assert other.half_served == buffer.half_served
        if number % 2:  # and of that one yet another
            for _ in zip(range(2), other, strict=False):
                number += 1
            other = another(other, chunks)
        assert equal(list(other), served[number:])


@given(**sizes, calls=st.integers(0, 30))
@example(batch=4, extra=0, chunks=[8, 1, 1, 1, 1, 8], calls=3)
@example(batch=2, extra=1, chunks=[8, 3, 3], calls=2)
def test_in_the_midst_of_a_refill_the_state_is_the_one_before_it(
    batch: int, extra: int, chunks: list[int], calls: int
) -> None:
    capacity = 2 * batch + extra
    served = list(buffer_of(chunks, capacity, batch))
    buffer = buffer_of(chunks, capacity, batch, idle=calls)
    number = 0
    with suppress(Ended):
        for _ in buffer:
            number += 1
    if number:
        assert equal(list(another(buffer, chunks)), served[number:])


def test_rows_that_are_not_as_many_as_the_state_says_are_refused() -> None:
    buffer = buffer_of([30], 20, 5)
    next(iter(buffer))
    other = buffer_of([30], 20, 5, skip=1)
    other.restore(buffer.state(), torch.device("cpu"))
    with pytest.raises(ValueError, match="position: 10 rows"):
        other.put_back("position", [torch.arange(10)])
