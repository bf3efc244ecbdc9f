"""What each machine does in deduplication by rounds: hash a part, group a partition, vote. Steps of datatrove's pipelines.

A step is called with the number of its task. It reads and writes NumPy files below one folder, each in place whole or
not at all, so that a task that was killed is run again:

    hashed/P.{low,high,row,starts}.npy   hashes of part P by partition, the row of each, where partitions begin
    hashed/P.rows.npy                    how many rows and hashes the part has
    first.npy                            the number of each part's first sample
    groups/K/R.{starts,members}.npy      partition R after round K: samples that share an n-gram, if more than one is undecided
    votes/K/R.{blocked,dropped}.npy      samples that have to wait in round K, and those that a kept one drops
    verdicts/K.{kept,dropped}.npy        what round K decided

Sets of samples are lists of their numbers or, where that is smaller, a bit for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastzoo.core.errors import DataError
from fastzoo.core.files import partial_of
from fastzoo.core.text import one_line
from fastzoo.data.dedup.ngrams import TextBatch, hash_ngrams

UNDECIDED, KEPT, DROPPED = 0, 1, 2
"""What a sample can be."""


def save(path: Path, array: np.ndarray) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_of(path)
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    temporary.replace(path)


def load(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Read such a file; ``mapped``: only what is looked at."""
    found: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return found


def save_set(path: Path, which: np.ndarray) -> None:
    """Write which samples are in a set, (S,) bool."""
    (numbers,) = np.nonzero(which)
    numbers = numbers.astype(np.uint32 if len(which) <= 1 << 32 else np.uint64)
    bits = np.packbits(which)
    save(path, bits if bits.nbytes < numbers.nbytes else numbers)


def load_set(path: Path, samples: int) -> np.ndarray:
    """(S,) bool."""
    found = load(path)
    if found.dtype == np.uint8:
        return np.unpackbits(found, count=samples).astype(bool)
    which = np.zeros(samples, bool)
    which[found] = True
    return which


@dataclass(frozen=True)
class HashPart:
    """Task P: the hashes of part P, sorted by the partition that will group them."""

    folder: Path
    parts: tuple[Path, ...] = field(repr=False)
    partitions: int
    column: str
    n: int
    unit: str
    bits: int
    short: str

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        from fastzoo.data.dedup.group_kernels import by_partition

        lows, highs, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
        first = 0
        for batch in read_turns(self.parts[rank], self.column):
            for chunk in batch.chunks():
                found = hash_ngrams(chunk, self.n, self.unit, self.bits, whole=self.short == "unique")
                lengths = np.diff(found.ends, prepend=0)
                lows.append(found.low)
                highs.append(found.high if self.bits == 128 else found.high[:0])
                rows.append(np.repeat(np.arange(first, first + len(chunk), dtype=np.uint32), lengths))
                first += len(chunk)
        low, row = np.concatenate(lows), np.concatenate(rows)
        del lows, rows
        order, starts = np.empty(len(low), np.int64), np.empty(self.partitions + 1, np.int64)
        by_partition(low, order, starts)
        name = f"{rank:05d}"
        save(self.folder / "hashed" / f"{name}.low.npy", low[order])
        save(self.folder / "hashed" / f"{name}.row.npy", row[order])
        if self.bits == 128:
            save(self.folder / "hashed" / f"{name}.high.npy", np.concatenate(highs)[order])
        save(self.folder / "hashed" / f"{name}.starts.npy", starts)
        save(self.folder / "hashed" / f"{name}.rows.npy", np.array([first, len(low)], np.int64))


def read_turns(path: Path, column: str) -> Iterator[TextBatch]:
    """The turns of an Arrow IPC file, record batch after record batch. Raises DataError."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            kind = reader.schema.field(column).type
            if not any(f(kind) for f in (pa.types.is_list, pa.types.is_large_list)):
                raise DataError(f"'{path}': column '{column}' is {kind}, not a list of strings")
            for k in range(reader.num_record_batches):
                yield TextBatch.of_arrow(reader.get_batch(k).column(column))
    except KeyError:
        raise DataError(f"'{path}': no column '{column}'") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read as an Arrow file: {one_line(error, 200)}") from None


@dataclass(frozen=True)
class Group:
    """Task R, round 1: of all hashes in partition R those that several samples have, and who has to wait for another."""

    folder: Path
    bits: int

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        from fastzoo.data.dedup.group_kernels import gather_groups

        first = load(self.folder / "first.npy")
        low, high, sample = self._partition(rank, first)
        # Most n-grams are of one sample: they go before anything is sorted by two keys.
        values = np.sort(low)
        shared = np.unique(values[1:][values[1:] == values[:-1]])
        del values
        here = np.searchsorted(shared, low)
        mask = (shared[np.minimum(here, len(shared) - 1)] == low) if len(shared) else np.zeros(len(low), bool)
        del here
        low, sample = low[mask], sample[mask]
        high = high[mask] if self.bits == 128 else high
        order = np.lexsort((high, low)) if self.bits == 128 else np.argsort(low, kind="stable")
        starts, members = np.zeros(len(low) // 2 + 1, np.int64), np.empty(len(low), sample.dtype)
        count = gather_groups(
            low[order], high[order] if self.bits == 128 else high, sample[order], starts, members
        )
        cast_votes(self.folder, 1, rank, starts[: count + 1], members, np.zeros(first[-1], np.uint8))

    def _partition(self, rank: int, first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Low and high bits and samples of all its hashes, the samples in order."""
        kind = np.uint32 if first[-1] <= 1 << 32 else np.uint64
        lows, highs, samples = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], [np.zeros(0, kind)]
        for part in range(len(first) - 1):
            begin, end = load(self.folder / "hashed" / f"{part:05d}.starts.npy", mapped=True)[rank : rank + 2]
            place = self.folder / "hashed"
            lows.append(np.array(load(place / f"{part:05d}.low.npy", mapped=True)[begin:end]))
            if self.bits == 128:
                highs.append(np.array(load(place / f"{part:05d}.high.npy", mapped=True)[begin:end]))
            rows = load(place / f"{part:05d}.row.npy", mapped=True)[begin:end]
            samples.append(rows + kind(first[part]))
        return np.concatenate(lows), np.concatenate(highs), np.concatenate(samples).astype(kind)


@dataclass(frozen=True)
class Vote:
    """Task R, round ``number`` from the second on: what the last verdicts mean for the groups of partition R."""

    folder: Path
    number: int

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        samples = int(load(self.folder / "first.npy")[-1])
        status = np.zeros(samples, np.uint8)
        for verdict, value in (("kept", KEPT), ("dropped", DROPPED)):
            status[load_set(self.folder / "verdicts" / f"{self.number - 1}.{verdict}.npy", samples)] = value
        starts, members = load_groups(self.folder, self.number - 1, rank)
        cast_votes(self.folder, self.number, rank, starts, members, status)


def load_groups(folder: Path, number: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each group's samples begin, and the samples."""
    place = folder / "groups" / str(number)
    return load(place / f"{rank:05d}.starts.npy"), load(place / f"{rank:05d}.members.npy")


def cast_votes(
    folder: Path, number: int, rank: int, starts: np.ndarray, members: np.ndarray, status: np.ndarray
) -> None:
    """Write who waits and who is dropped, and the groups in which that is not settled yet."""
    from fastzoo.data.dedup.group_kernels import distinct_groups, vote

    blocked, dropped = np.zeros(len(status), bool), np.zeros(len(status), bool)
    count = vote(starts, members, status, blocked, dropped)
    size = 1 << (2 * count + 1).bit_length()
    count = distinct_groups(starts[: count + 1], members, np.zeros(size, np.int64))
    save(folder / "groups" / str(number) / f"{rank:05d}.starts.npy", starts[: count + 1])
    save(folder / "groups" / str(number) / f"{rank:05d}.members.npy", members[: starts[count]])
    save_set(folder / "votes" / str(number) / f"{rank:05d}.blocked.npy", blocked)
    save_set(folder / "votes" / str(number) / f"{rank:05d}.dropped.npy", dropped)
