"""The mixing buffer: fill, shuffle, serve one half in batches, refill that half, repeat.

One permutation, from the buffer's own generator, is shared by everything it holds (all layers and
the token bookkeeping), so every SAE learns from the same tokens in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.lm.activations import Columns

SAVED_AT_ONCE = 1 << 26
"""Bytes of a column that are copied at once when a buffer is saved."""


@dataclass(frozen=True)
class BufferState:
    """A buffer's state without its rows."""

    order: Tensor
    """(N,) int64 on the CPU: slots, in the order in which they are served."""
    served: int
    """How many of these have been served."""
    ending: bool
    """Whether the source is used up, so that all of ``order`` is served."""
    generator: Tensor
    """State of the generator that draws the orders to come."""
    pending: Columns
    """Rows of the source that did not fit yet."""
    position: Any
    """Where the source goes on after those."""


class MixingBuffer:
    """Serves every row of ``source`` exactly once, in shuffled batches.

    After any batch, and in ``idle``, ``state()`` and ``unserved()`` give what another buffer needs to
    serve exactly the rows that this one still would.

    Args:
        source: yields columns of any number of rows, always with the same keys.
        capacity: rows held at once; preallocated on the device of the first columns.
        batch_size: rows per batch; only the very last batch may be smaller.
        position: tells where the source goes on after what it gave last.
        idle: called now and then during a refill.

    Raises InputError if ``capacity`` is smaller than two batches.
    """

    def __init__(
        self,
        source: Iterable[Columns],
        capacity: int,
        batch_size: int,
        seed: int,
        *,
        position: Callable[[], Any] = lambda: None,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        if batch_size < 1 or capacity < 2 * batch_size:
            raise InputError(f"a buffer of {capacity} tokens holds fewer than two batches of {batch_size}")
        self.capacity, self.batch_size = capacity, batch_size
        self.half = max(1, capacity // 2 // batch_size) * batch_size
        self._source, self._position, self._idle = iter(source), position, idle
        self._pending: Columns = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: Columns = {}
        self._filled: int | None = None
        self._order: Tensor | None = None
        self._served, self._ending = 0, False
        # A refill writes to served slots only, so what it began with stands until it is done.
        self._before_refill: tuple[Columns, Any] | None = None

    def fill(self) -> Columns:
        """Fill the empty buffer and return views of the rows it then holds (unshuffled)."""
        if self._filled is None:
            self._filled = self._refill(None, self.capacity)
        return {name: column[: self._filled] for name, column in self._rows.items()}

    def __iter__(self) -> Iterator[Columns]:
        """Yield batches until the source is used up."""
        if self._order is None:
            self.fill()
            assert self._filled is not None
            self._order = self._shuffled(self._filled)
            self._ending = self._filled < self.capacity
        while True:
            end = len(self._order) if self._ending else self.half
            while self._served < end:
                chosen = self._order[self._served : min(end, self._served + self.batch_size)]
                self._served += len(chosen)
                yield {
                    name: column.index_select(0, chosen.to(column.device))
                    for name, column in self._rows.items()
                }
            if self._ending:
                return
            self._before_refill = self._pending, self._position()
            free, left = self._order[: self.half], self._order[self.half :]
            gained = self._refill(free, self.half)
            if gained < self.half:  # the source is used up: only what is left is served
                left = torch.cat([left, free[:gained]])
                self._order, self._ending = left[self._shuffled(len(left))], True
            else:
                self._order = self._shuffled(self.capacity)
            self._served, self._before_refill = 0, None

    @property
    def half_served(self) -> bool:
        """Whether the next batch needs a refill first: the buffer then holds fewest rows to serve."""
        return not self._ending and self._served == self.half

    def _shuffled(self, count: int) -> Tensor:
        """A permutation, drawn on the CPU (so the same for any device), on the rows' device."""
        order = torch.randperm(count, generator=self._generator)
        return order.to(next(iter(self._rows.values())).device) if self._rows else order

    def _refill(self, slots: Tensor | None, count: int) -> int:
        """Write up to ``count`` source rows into ``slots`` (None: the first ones); how many."""
        done = 0
        while done < count:
            self._idle()
            columns = self._pending or next(self._source, {})
            self._pending = {}
            if not columns:
                break
            available = len(next(iter(columns.values())))
            take = min(available, count - done)
            if not self._rows:
                self._allocate(columns)
            for name, column in columns.items():
                target = self._rows[name]
                if slots is None:
                    target[done : done + take] = column[:take]
                else:
                    target[slots[done : done + take].to(target.device)] = column[:take]
            if take < available:
                self._pending = {name: column[take:] for name, column in columns.items()}
            done += take
        return done

    def _allocate(self, like: Columns) -> None:
        try:
            self._rows = {
                name: column.new_empty((self.capacity, *column.shape[1:])) for name, column in like.items()
            }
        except RuntimeError:  # torch's, on any device
            each = sum(column[:1].nbytes for column in like.values())
            size = f"{self.capacity * each / 2**30:.1f} GiB"
            raise InputError(
                f"training.buffer_tokens: {self.capacity} activations take {size}, more than there is; give fewer"
            ) from None

    def state(self) -> BufferState:
        """The state now; during a refill, the state before it."""
        assert self._order is not None, "nothing was served yet"
        pending, position = self._before_refill or (self._pending, self._position())
        return BufferState(
            self._order.cpu(), self._served, self._ending, self._generator.get_state(), pending, position
        )

    def unserved(self, name: str) -> Iterator[Tensor]:
        """The rows of a column that are still to be served, in that order, in pieces on the CPU."""
        assert self._order is not None, "nothing was served yet"
        if name not in self._rows:
            return
        column = self._rows[name]
        rows = max(1, SAVED_AT_ONCE // max(1, column[:1].nbytes))
        for start in range(self._served, len(self._order), rows):
            slots = self._order[start : start + rows]
            yield column.index_select(0, slots.to(column.device)).cpu()

    def restore(self, state: BufferState, device: torch.device) -> None:
        """Become the buffer that ``state`` was taken from; ``put_back`` then fills its rows."""
        self._order = state.order.to(device)
        self._filled, self._served, self._ending = len(state.order), state.served, state.ending
        self._generator.set_state(state.generator)
        self._pending = {name: column.to(device) for name, column in state.pending.items()}

    def put_back(self, name: str, pieces: Iterable[Tensor]) -> None:
        """Fill a column with the pieces of ``unserved``, after ``restore``.

        Raises ValueError if they have not as many rows as are still to be served.
        """
        assert self._order is not None
        done = self._served
        for piece in pieces:
            here = piece.to(self._order.device)
            if name not in self._rows:
                self._rows[name] = here.new_empty((self.capacity, *here.shape[1:]))
            self._rows[name][self._order[done : done + len(here)]] = here
            done += len(here)
        if done != len(self._order):
            raise ValueError(f"{name}: {done - self._served} rows")
