"""Greedy deduplication in order, on one machine: one table of n-gram hashes, in 16 parts that grow one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fastzoo.core.errors import DataError
from fastzoo.data.dedup.memory import Words, free_memory
from fastzoo.data.dedup.ngrams import Hashes, TextBatch, hash_ngrams

FULL = 0.8
"""A part of the table grows when more of its places are taken."""

GROWTH = 1.4
"""By how much: a large part is never less than 0.57 full, so an n-gram of 64 bits takes at most 14 bytes, and 0.7 more for
the spare part that growing takes."""

SMALLEST = 1 << 10

SMALL, JUMP = 1 << 20, 4
"""Parts of fewer places become ``JUMP`` times as large instead, up to this: together they have 128 MB."""

AHEAD = 2
"""Chunks that are hashed while an earlier one is looked up."""


class Deduplicator:
    """Algorithm 1: a sample is kept if none of its n-grams is one of a sample kept before.

    Args:
        n, unit: n-grams of so many ``words`` or ``characters`` within a turn.
        bits: 64 or 128, of an n-gram's hash.
        short: samples without any n-gram: ``keep`` all, or only ``unique`` ones.
        memory: bytes that the table may take; None: what is free when it grows.
    """

    def __init__(
        self, n: int = 20, unit: str = "words", bits: int = 64, short: str = "keep", memory: int | None = None
    ) -> None:
        from fastzoo.data.dedup.kernels import SHARD_BITS

        self.n, self.unit, self.bits, self.memory = n, unit, bits, memory
        self._whole = short == "unique"
        self._low = [Words(SMALLEST) for _ in range(1 << SHARD_BITS)]
        self._high = [Words(SMALLEST if bits == 128 else 0) for _ in self._low]
        self._spare = (Words(0), Words(0))
        """Where a part's hashes are while it grows."""
        self._used = np.zeros(len(self._low), np.int64)
        self._looked_up = 0.0
        self._threads = ThreadPoolExecutor(AHEAD)

    @property
    def ngrams(self) -> int:
        """How many different ones the table holds."""
        return int(self._used.sum())

    @property
    def nbytes(self) -> int:
        """Of the table, with what it needs to grow."""
        return sum(words.array.nbytes for words in (*self._low, *self._high, *self._spare))

    def expected_false_drops(self) -> float:
        """How many samples so far are expected to have been dropped because two different n-grams have one hash.

        An upper bound: each lookup of an n-gram that is not there finds one by chance with probability (held) / 2 ** bits.
        """
        return self._looked_up / 2.0**self.bits

    def kept(self, batch: TextBatch) -> np.ndarray:
        """(S,) bool: which samples are kept, the batch coming after all before it.

        Raises DataError: the table would need more memory than there is; nothing of the chunk at hand was added.
        """
        return self._go(batch, look=True, add=True)

    def seen(self, batch: TextBatch) -> np.ndarray:
        """(S,) bool: which samples share an n-gram with what was added. Adds nothing."""
        return ~self._go(batch, look=True, add=False)

    def add(self, batch: TextBatch) -> None:
        """Add the n-grams of all samples. Raises DataError, as ``kept`` does."""
        self._go(batch, look=False, add=True)

    def _hashed(self, batch: TextBatch) -> Iterator[Hashes]:
        """The hashes of chunks of a batch; the next ones are computed by other threads meanwhile."""
        waiting: list[Future[Hashes]] = []
        for chunk in batch.chunks():
            waiting.append(
                self._threads.submit(hash_ngrams, chunk, self.n, self.unit, self.bits, whole=self._whole)
            )
            if len(waiting) > AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()

    def _go(self, batch: TextBatch, look: bool, add: bool) -> np.ndarray:
        """(S,) bool: which samples the table had no hash of."""
        from fastzoo.data.dedup.kernels import first_come

        masks = [np.zeros(0, bool)]
        for hashes in self._hashed(batch):
            if add:
                self._make_room(hashes)
            hit = np.empty(len(hashes.ends), bool)
            more = hashes.high if self.bits == 128 else hashes.low
            first_come(hashes.low, more, hashes.ends, self._table(), self._used, look, add, hit)
            self._looked_up += look * float(len(hashes.low)) * self.ngrams
            masks.append(~hit)
        return np.concatenate(masks)

    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the parts are, and how large."""
        keys = [part.array.ctypes.data for part in self._low]
        high = [part.array.ctypes.data if self.bits == 128 else 0 for part in self._high]
        return np.array(keys), np.array(high), np.array([len(part.array) for part in self._low])

    def _make_room(self, hashes: Hashes) -> None:
        """Let parts grow until they have room for all hashes. Raises DataError: before the first one grows."""
        from fastzoo.data.dedup.kernels import count_parts, rehash

        wanted = self._used.copy()
        count_parts(hashes.low, wanted)
        sizes = [self._size_for(k, count) for k, count in enumerate(wanted.tolist())]
        growing = [(k, size) for k, size in enumerate(sizes) if size > len(self._low[k].array)]
        if growing:
            more = sum(size - len(self._low[k].array) for k, size in growing)
            spare = max(len(self._low[k].array) for k, _ in growing) - len(self._spare[0].array)
            self._refuse((more + max(0, spare)) * self.bits // 8)
        for k, size in growing:
            old = len(self._low[k].array)
            for part, spared in zip((self._low[k], self._high[k]), self._spare, strict=True):
                if len(part.array):
                    if len(spared.array) < old:
                        spared.grow(old)
                    spared.array[:old] = part.array
                    part.grow(size)
            rehash(*(words.array for words in self._spare), old, self._low[k].array, self._high[k].array)

    def _size_for(self, k: int, wanted: int) -> int:
        """How many places part ``k`` needs for so many hashes."""
        size = len(self._low[k].array)
        while wanted > FULL * size:
            size = min(size * JUMP, SMALL) if size < SMALL else int(size * GROWTH) + 1
        return size

    def _refuse(self, added: int) -> None:
        free = free_memory() if self.memory is None else self.memory - self.nbytes
        if added > free:
            advice = "64-bit hashes take half" if self.bits == 128 else "fewer sources at once take less"
            raise DataError(
                f"deduplication holds {self.ngrams} n-grams in {self.nbytes / 1e6:.0f} MB and needs {added / 1e6:.1f} MB "
                f"more, but {max(0, free) / 1e6:.1f} MB are left; {advice}, and several machines share the table "
                "(fastzoo.data.dedup.rounds)"
            )


def memory_for(ngrams: int, bits: int) -> int:
    """Bytes of a table of so many different n-grams, at most, also while it grows."""
    from fastzoo.data.dedup.kernels import SHARD_BITS

    parts = 1 << SHARD_BITS
    each = max(SMALLEST, ngrams / parts / FULL)  # places; those of a hash's parts differ by little
    grown = max(min(each * JUMP, SMALL), each * GROWTH)
    return int((parts * grown + each) * 1.01 + parts) * bits // 8
