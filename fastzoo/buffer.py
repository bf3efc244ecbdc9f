"""The mixing buffer: fill, shuffle, serve one half in batches, refill that half, repeat.

One permutation, from the buffer's own generator, is shared by everything it holds (all layers and
the token bookkeeping), so every SAE learns from the same tokens in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastzoo.errors import InputError

Columns = dict[str, Tensor]
"""Tensors with the same number of rows, one row per token."""


class MixingBuffer:
    """Serves every row of ``source`` exactly once, in shuffled batches.

    Args:
        source: yields columns of any number of rows, always with the same keys.
        capacity: rows held at once; preallocated on the device of the first columns.
        batch_size: rows per batch; only the very last batch may be smaller.

    Raises:
        InputError: ``capacity`` is smaller than two batches.
    """

    def __init__(
        self, source: Iterable[Columns], capacity: int, batch_size: int, seed: int
    ) -> None:
        if batch_size < 1 or capacity < 2 * batch_size:
            raise InputError(
                f"a buffer of {capacity} tokens holds fewer than two batches of {batch_size}"
            )
        self.capacity, self.batch_size = capacity, batch_size
        self._source = iter(source)
        self._pending: Columns | None = None  # rows of the source that did not fit yet
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: Columns = {}
        self._filled = 0

    def fill(self) -> Columns:
        """Fill the empty buffer and return views of the rows it then holds (unshuffled)."""
        if not self._rows:
            self._filled = self._refill(None, self.capacity)
        return {name: column[: self._filled] for name, column in self._rows.items()}

    def __iter__(self) -> Iterator[Columns]:
        """Yield batches until the source is used up."""
        self.fill()
        order = self._shuffled(self._filled)
        half = max(1, self.capacity // 2 // self.batch_size) * self.batch_size
        while self._filled == self.capacity:
            yield from self._serve(order[:half])
            free = order[:half]
            gained = self._refill(free, half)
            if gained < half:  # the source is used up: what is left is what remains to be served
                left = torch.cat([order[half:], free[:gained]])
                order = left[self._shuffled(len(left))]
                break
            order = self._shuffled(self.capacity)
        yield from self._serve(order)
        self._filled = 0

    def _shuffled(self, count: int) -> Tensor:
        """A permutation, drawn on the CPU (the same for any device) and moved where the rows are."""
        order = torch.randperm(count, generator=self._generator)
        return order.to(next(iter(self._rows.values())).device) if self._rows else order

    def _serve(self, rows: Tensor) -> Iterator[Columns]:
        for chosen in rows.split(self.batch_size) if len(rows) else ():
            yield {
                name: column.index_select(0, chosen.to(column.device))
                for name, column in self._rows.items()
            }

    def _refill(self, slots: Tensor | None, count: int) -> int:
        """Write up to ``count`` source rows into ``slots`` (None: the first ones); how many."""
        done = 0
        while done < count:
            columns = self._pending or next(self._source, None)
            self._pending = None
            if columns is None:
                break
            available = len(next(iter(columns.values())))
            take = min(available, count - done)
            if not self._rows:
                self._rows = {
                    name: column.new_empty((self.capacity, *column.shape[1:]))
                    for name, column in columns.items()
                }
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
