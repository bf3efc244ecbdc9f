"""The compiled loops of deduplication in rounds: hashes by partition, samples by hash, votes, and the last ones in order."""

from __future__ import annotations

import numpy as np
from numba import int64, uint64
from numpy import ndarray

from fastzoo.data.dedup.kernels import kernel, mix


@kernel
def by_partition(low: ndarray, order: ndarray, starts: ndarray) -> None:
    """A stable order of hashes by partition: those of partition r are ``order[starts[r] : starts[r + 1]]``."""
    count = uint64(len(starts) - 1)
    place = np.zeros(len(starts), np.int64)
    for j in range(len(low)):
        place[int64(((low[j] >> uint64(32)) * count) >> uint64(32))] += 1
    total = 0
    for k in range(len(starts)):
        starts[k] = total
        total += place[k]
        place[k] = starts[k]
    for j in range(len(low)):
        k = int64(((low[j] >> uint64(32)) * count) >> uint64(32))
        order[place[k]] = j
        place[k] += 1


@kernel
def gather_groups(low: ndarray, more: ndarray, sample: ndarray, starts: ndarray, members: ndarray) -> int:
    """The samples of each hash that several have; return how many such hashes there are.

    Hashes are sorted, and the samples of each. Group g has ``members[starts[g] : starts[g + 1]]``.
    """
    count, end, j = 0, 0, 0
    while j < len(low):
        begin, first = end, j
        while j < len(low) and low[j] == low[first] and (len(more) == 0 or more[j] == more[first]):
            if end == begin or members[end - 1] != sample[j]:
                members[end] = sample[j]
                end += 1
            j += 1
        if end - begin < 2:
            end = begin
        else:
            count += 1
            starts[count] = end
    return count


@kernel
def vote(starts: ndarray, members: ndarray, status: ndarray, blocked: ndarray, dropped: ndarray) -> int:
    """Who waits and who is dropped, by groups whose samples are undecided (0), kept (1) or dropped (2); written in place.

    A kept sample drops all others of its groups, which also no longer block anybody. A sample waits if an earlier one
    of its group is undecided. Groups in which two or more are undecided are moved to the front; return how many.
    """
    for g in range(len(starts) - 1):
        held = False
        for j in range(starts[g], starts[g + 1]):
            held |= status[members[j]] == 1
        if held:
            for j in range(starts[g], starts[g + 1]):
                if status[members[j]] != 1:
                    dropped[members[j]] |= status[members[j]] == 0
                    status[members[j]] = 2
    count, end = 0, 0
    begin = starts[0]
    for g in range(len(starts) - 1):
        first, stop = end, starts[g + 1]
        held = False
        for j in range(begin, stop):
            held |= status[members[j]] == 1
            if status[members[j]] == 0:
                members[end] = members[j]
                end += 1
        begin = stop
        if held or end - first < 2:
            end = first
            continue
        for j in range(first + 1, end):
            blocked[members[j]] = True
        count += 1
        starts[count] = end
    return count


@kernel
def distinct_groups(starts: ndarray, members: ndarray, table: ndarray) -> int:
    """Move one of all groups of the same samples to the front; return how many there are.

    ``table`` is zeros, a power of two of them and more than twice as many as groups.
    """
    count, begin = 0, starts[0]
    for g in range(len(starts) - 1):
        stop = starts[g + 1]
        h = uint64(stop - begin)
        for j in range(begin, stop):
            h = mix(h, uint64(members[j]))
        i = int64(h & uint64(len(table) - 1))
        while table[i] != 0:
            a, b = starts[table[i] - 1], starts[table[i]]
            same = b - a == stop - begin
            j = 0
            while same and j < b - a:
                same = members[a + j] == members[begin + j]
                j += 1
            if same:
                break
            i = (i + 1) & (len(table) - 1)
        if table[i] == 0:
            end = starts[count]
            for j in range(begin, stop):
                members[end + j - begin] = members[j]
            count += 1
            starts[count] = end + stop - begin
            table[i] = count
        begin = stop
    return count


@kernel
def finish(sample: ndarray, group: ndarray, taken: ndarray, status: ndarray) -> None:
    """Algorithm 1 for what is undecided: ``sample`` in order, with a group that it is in; ``taken``: groups of kept samples."""
    j = 0
    while j < len(sample):
        begin, s = j, sample[j]
        free = True
        while j < len(sample) and sample[j] == s:
            free &= not taken[group[j]]
            j += 1
        if status[s] == 0:
            status[s] = 1 if free else 2
        if status[s] == 1:
            for k in range(begin, j):
                taken[group[k]] = True
