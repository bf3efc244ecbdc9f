"""Greedy deduplication in order, on one machine: one table of n-gram hashes, in 16 parts that grow one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastzoo.core.errors import DataError
from fastzoo.core.files import machine_memory
from fastzoo.data.dedup.ngrams import Hashes, TextBatch, hash_ngrams

FULL = 0.7
"""A part of the table grows when more of its places are taken."""

GROWTH = 1.25
"""By how much: a part is never less than 0.56 full, so an n-gram of 64 bits takes at most 14.3 bytes."""

SMALLEST = 1 << 10

SMALL, JUMP = 1 << 20, 8
"""Parts of fewer places become ``JUMP`` times as large instead: together they have 128 MB."""

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
        self._low = [np.zeros(SMALLEST, np.uint64) for _ in range(1 << SHARD_BITS)]
        self._high = [self._wide(SMALLEST) for _ in self._low]
        self._used = np.zeros(len(self._low), np.int64)
        self._looked_up = 0.0
        self._threads = ThreadPoolExecutor(AHEAD)

    def _wide(self, size: int) -> np.ndarray:
        return np.zeros(size if self.bits == 128 else 0, np.uint64)

    @property
    def ngrams(self) -> int:
        """How many different ones the table holds."""
        return int(self._used.sum())

    @property
    def nbytes(self) -> int:
        """Of the table."""
        return sum(part.nbytes for part in (*self._low, *self._high))

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
        keys = [part.ctypes.data for part in self._low]
        high = [part.ctypes.data if self.bits == 128 else 0 for part in self._high]
        return np.array(keys), np.array(high), np.array([len(part) for part in self._low])

    def _make_room(self, hashes: Hashes) -> None:
        """Let parts grow until they have room for all hashes. Raises DataError: before the first one grows."""
        from fastzoo.data.dedup.kernels import count_parts, rehash

        wanted = self._used.copy()
        count_parts(hashes.low, wanted)
        sizes = [self._size_for(k, count) for k, count in enumerate(wanted.tolist())]
        growing = [k for k, size in enumerate(sizes) if size > len(self._low[k])]
        if growing:
            more = sum(sizes[k] - len(self._low[k]) for k in growing)
            self._refuse((more + max(len(self._low[k]) for k in growing)) * self.bits // 8)
        for k in growing:
            low, high = np.zeros(sizes[k], np.uint64), self._wide(sizes[k])
            rehash(self._low[k], self._high[k], low, high)
            self._low[k], self._high[k] = low, high

    def _size_for(self, k: int, wanted: int) -> int:
        """How many places part ``k`` needs for so many hashes."""
        size = len(self._low[k])
        while wanted > FULL * size:
            size = int(size * (JUMP if size < SMALL else GROWTH)) + 1
        return size

    def _refuse(self, added: int) -> None:
        free = free_memory() if self.memory is None else self.memory - self.nbytes
        if added > free:
            advice = "64-bit hashes take half" if self.bits == 128 else "fewer sources at once take less"
            raise DataError(
                f"deduplication holds {self.ngrams} n-grams in {self.nbytes / 1e9:.2f} GB and needs {added / 1e6:.1f} MB "
                f"more, but {max(0, free) / 1e6:.1f} MB are left; {advice}, and several machines share the table "
                "(fastzoo.data.dedup.rounds)"
            )


def memory_for(ngrams: int, bits: int) -> int:
    """Bytes of a table of so many different n-grams, at most, also while it grows."""
    from fastzoo.data.dedup.kernels import SHARD_BITS

    parts = 1 << SHARD_BITS
    each = max(SMALLEST, ngrams / parts / FULL)  # places; those of a hash's parts differ by little
    grown = each * (JUMP if each < SMALL else GROWTH)
    return int((parts + 1) * 1.01 * (grown + 1)) * bits // 8


def free_memory() -> int:
    """Bytes that this process can still take without swapping, by the machine and the control groups it is in."""
    limits = [machine_memory()]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    for group in _control_groups():
        for most, used, idle in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                left = int((group / most).read_text()) - int((group / used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                limits.append(left + int(stat.get(idle, 0)))  # files in memory make way
            except (OSError, ValueError):  # not limited ("max"), or no such group
                pass
    return max(0, min(limits))


def _control_groups() -> list[Path]:
    """Folders of this process's groups and of those that they are in, in which memory may be limited."""
    root = Path("/sys/fs/cgroup")
    found = [root, root / "memory"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds == "" or "memory" in kinds.split(","):
            top = root / "memory" if kinds else root
            own = Path(name.lstrip("/"))
            found += [top / part for part in (own, *own.parents)]
    return list(dict.fromkeys(found))
