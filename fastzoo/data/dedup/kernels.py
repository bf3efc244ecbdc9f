"""The compiled loops of deduplication: words in bytes, hashes of n-grams, tables of hashes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import int64, types, uint64
from numba.core import cgutils
from numba.extending import intrinsic
from numpy import ndarray

K1, K2, K3 = uint64(0x9E3779B97F4A7C15), uint64(0xBF58476D1CE4E5B9), uint64(0x94D049BB133111EB)
"""Odd constants of SplitMix64."""

LANES = (uint64(0x243F6A8885A308D3), uint64(0x13198A2E03707344))
"""Where the two halves of a 128-bit hash begin (digits of pi); 64 bits use the first."""

SHARD_BITS = 4
"""So many top bits of a hash are the number of the table's part that it belongs to."""

FAR = 1024
"""Hashes whose places are fetched ahead, at most."""

LITTLE = sys.byteorder == "little"

EMPTY = uint64(0)
"""A free place in a table; no hash is 0."""


def _kernel(function: Callable[..., Any]) -> Any:
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)


def _loaded(context: Any, address: Any) -> Any:
    """The 64-bit word at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.uint64(types.int64), generate


def _stored(context: Any, address: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


def _fetched(context: Any, address: Any) -> Any:
    """Let the processor fetch what is at an address without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        how = [ir.Constant(number, n) for n in (1, 3, 1)]  # to write, near, data
        builder.call(fetch, [builder.inttoptr(arguments[0], pointer), *how])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _count_trailing_zeros(context: Any, word: Any) -> Any:
    """Place of the lowest bit that is set, an instruction of its own; undefined for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


_load: Any = intrinsic(_loaded)
_store: Any = intrinsic(_stored)
_fetch: Any = intrinsic(_fetched)
_lowest_bit: Any = intrinsic(_count_trailing_zeros)


@_kernel
def mix(a: Any, b: Any) -> Any:
    """A hash of two 64-bit words in this order; with one of them fixed, no two values of the other collide."""
    x = uint64(a)
    x = (x ^ (x >> uint64(32))) * K1
    x = (x ^ uint64(b)) * K2
    x = (x ^ (x >> uint64(29))) * K3
    return x ^ (x >> uint64(32))


@_kernel
def join(a: Any, b: Any) -> Any:
    """A hash of two hashes in this order, to be mixed in the end; with one fixed, no two values of the other collide."""
    return (uint64(a) + ((uint64(b) << uint64(29)) | (uint64(b) >> uint64(35)))) * K1


@_kernel
def space_at(data: ndarray, i: int, stop: int) -> int:
    """How many bytes the white space at ``i`` has, 0 if there is none: exactly what ``str.split()`` splits at."""
    a = data[i]
    if a <= 32:
        return 1 if a == 32 or 9 <= a <= 13 or a >= 28 else 0
    if a < 0xC2 or i + 1 >= stop:
        return 0
    b = data[i + 1]
    if a == 0xC2:  # U+0085, U+00A0
        return 2 if b == 0x85 or b == 0xA0 else 0
    if i + 2 >= stop:
        return 0
    c = data[i + 2]
    if a == 0xE2 and b == 0x80:  # U+2000 to U+200A, U+2028, U+2029, U+202F
        return 3 if c <= 0x8A or c == 0xA8 or c == 0xA9 or c == 0xAF else 0
    if (a == 0xE2 and b == 0x81 and c == 0x9F) or (a == 0xE1 and b == 0x9A and c == 0x80):
        return 3  # U+205F, U+1680
    return 3 if a == 0xE3 and b == 0x80 and c == 0x80 else 0  # U+3000


LOWS, HIGHS = uint64(0x0101010101010101), uint64(0x8080808080808080)


@_kernel
def plain_bytes(eight: Any) -> int:
    """How many of eight bytes stand before a space, 8 if there is none; -1 where it takes a closer look.

    That is where other bytes than ASCII are, or control characters come first.
    """
    if eight & HIGHS:
        return -1
    # The highest bit of each byte below 33; beyond the first such byte perhaps of others, too.
    low = (eight - LOWS * uint64(33)) & ~eight & HIGHS
    if low == 0:
        return 8
    bit = _lowest_bit(low) - uint64(7)
    byte = (eight >> bit) & uint64(0xFF)
    return int64(bit >> uint64(3)) if byte == 32 or byte == 10 else -1


@_kernel
def words_of(data: ndarray, start: int, stop: int, characters: bool, lane: Any, out: ndarray) -> int:
    """Write a hash of each word, or each code point, of a turn into ``out``; return how many there are."""
    n = 0
    i = start
    if characters:
        while i < stop:
            h = uint64(data[i])
            i += 1
            while i < stop and (data[i] & 0xC0) == 0x80:
                h = (h << uint64(8)) | uint64(data[i])
                i += 1
            out[n] = mix(lane, h)
            n += 1
        return n
    # Unsigned places: Python's negative ones need not be looked out for.
    at, end, address = uint64(start), uint64(stop), data.ctypes.data
    while at < end:
        byte = data[at]
        if byte <= 32 or byte >= 0xC2:
            width = space_at(data, int64(at), stop)
            if width:
                at += uint64(width)
                continue
        h = uint64(lane)
        while True:
            # Eight bytes at a time, or those before white space, which are marked with how many they are.
            eight, count = uint64(0), -1
            if LITTLE and at + uint64(8) <= end:
                eight = _load(int64(address + at))
                count = plain_bytes(eight)
            if count < 0:
                eight, count = uint64(0), 0
                while count < 8 and at + uint64(count) < end:
                    byte = data[at + uint64(count)]
                    if (byte <= 32 or byte >= 0xC2) and space_at(data, int64(at) + count, stop):
                        break
                    eight |= uint64(byte) << uint64(8 * count)
                    count += 1
            at += uint64(count)
            if count < 8:
                break
            h = mix(h, eight)
        eight &= (uint64(1) << uint64(8 * count)) - uint64(1)
        out[n] = mix(h, eight | (uint64(0x80 + count) << uint64(56)))
        n += 1
    return n


@_kernel
def count_units(data: ndarray, turns: ndarray, characters: bool, out: ndarray) -> None:
    """How many words, or code points, each turn has."""
    for t in range(len(turns) - 1):
        i, stop, n = turns[t], turns[t + 1], 0
        inside = False
        while i < stop:
            if characters:
                n += (data[i] & 0xC0) != 0x80
                i += 1
                continue
            width = space_at(data, i, stop)
            if width:
                inside = False
                i += width
            else:
                n += not inside
                inside = True
                i += 1
        out[t] = n


@_kernel
def hash_turns(
    data: ndarray,
    turns: ndarray,
    samples: ndarray,
    n: int,
    characters: bool,
    whole: bool,
    lane: Any,
    out: ndarray,
    ends: ndarray,
) -> int:
    """Write a hash of each n-gram of each sample into ``out``; ``ends[s]`` is where those of sample s end.

    ``whole``: a sample without any n-gram gets one hash of all that its turns say.
    """
    length = 0
    for t in range(len(turns) - 1):
        length = max(length, turns[t + 1] - turns[t])
    unit = np.empty(length + 1, np.uint64)
    window = np.empty(length + 1, np.uint64)
    m = 0
    for s in range(len(samples) - 1):
        before = m
        for t in range(samples[s], samples[s + 1]):
            count = words_of(data, turns[t], turns[t + 1], characters, lane, unit)
            grams = count - n + 1
            if grams <= 0:
                continue
            _hash_windows(unit, count, n, window)
            for i in range(grams):
                h = mix(window[i], uint64(n))
                out[m] = h if h != EMPTY else uint64(1)
                m += 1
        if whole and m == before:
            h = mix(lane, uint64(samples[s + 1] - samples[s]))
            for t in range(samples[s], samples[s + 1]):
                for i in range(turns[t], turns[t + 1]):
                    h = (h ^ uint64(data[i])) * K1
                    h ^= h >> uint64(29)
                h = mix(h, uint64(turns[t + 1] - turns[t]))
            out[m] = h if h != EMPTY else uint64(1)
            m += 1
        ends[s] = m
    return m


@_kernel
def _hash_windows(power: ndarray, count: int, n: int, window: ndarray) -> None:
    """``window[i]``: a hash of the words i to i + n - 1, from hashes of 1, 2, 4, ... words (written over ``power``)."""
    done, size, rest = 0, 1, n
    while rest:
        if rest & 1:
            for i in range(count - done - size + 1):
                # The windows of ``done`` words end where those of ``size`` words begin.
                window[i] = join(window[i], power[i + done]) if done else power[i]
            done += size
        rest >>= 1
        if rest:
            for i in range(count - 2 * size + 1):
                power[i] = join(power[i], power[i + size])
            size *= 2


# A table of hashes: of each part the address, that of its further bits (0: there are none), and how many places it has.
# Addresses, since an array of arrays of unlike lengths is not to be had in compiled code.


@_kernel
def find_from(i: int, keys: int, high: int, size: int, low: Any, more: Any) -> int:
    """The place of a hash, or of where it would stand (a free one), if it is not before ``i``."""
    while True:
        there = _load(keys + 8 * i)
        if there == EMPTY or (there == low and (high == 0 or _load(high + 8 * i) == more)):
            return i
        i += 1
        if i == size:
            i = 0


@_kernel
def slot(low: Any, size: int) -> int:
    """Where the search for a hash begins, in the order of hashes. Its top bits chose the part."""
    return int64((((uint64(low) << uint64(SHARD_BITS)) >> uint64(32)) * uint64(size)) >> uint64(32))


@_kernel
def first_come(
    low: ndarray, more: ndarray, ends: ndarray, table: Any, used: ndarray, look: bool, add: bool, hit: ndarray
) -> None:
    """Algorithm 1, sample after sample: ``hit[s]`` is whether the table holds a hash of sample s; if not, all are added.

    There is room for all of them. ``look``, ``add``: only one of the two. ``used[k]`` counts what part k holds.
    The places of the next sample's hashes are fetched while this one is looked at.
    """
    keys, high, sizes = table
    shift = uint64(64 - SHARD_BITS)
    longest, begin = 0, 0
    for s in range(len(ends)):
        longest, begin = max(longest, ends[s] - begin), ends[s]
    place = np.empty(longest, np.int64)
    begin, ahead = 0, 0
    for s in range(len(ends)):
        for j in range(max(ahead, begin), min(ends[min(s + 1, len(ends) - 1)], ends[s] + FAR)):
            k = int64(low[j] >> shift)
            _fetch(keys[k] + 8 * slot(low[j], sizes[k]))
            ahead = j + 1
        found = False
        for j in range(begin, ends[s]):
            k = int64(low[j] >> shift)
            i = find_from(slot(low[j], sizes[k]), keys[k], high[k], sizes[k], low[j], more[j])
            place[j - begin] = i
            if look and _load(keys[k] + 8 * i) != EMPTY:
                found = True
                break
        hit[s] = found
        if add and not found:
            for j in range(begin, ends[s]):
                k, i = int64(low[j] >> shift), place[j - begin]
                if _load(keys[k] + 8 * i) != EMPTY:  # a hash of the same sample has come there
                    i = find_from(i, keys[k], high[k], sizes[k], low[j], more[j])
                if _load(keys[k] + 8 * i) == EMPTY:
                    _store(keys[k] + 8 * i, low[j])
                    if high[k] != 0:
                        _store(high[k] + 8 * i, more[j])
                    used[k] += 1
        begin = ends[s]


@_kernel
def count_parts(low: ndarray, counts: ndarray) -> None:
    """How many hashes belong to each part of a table."""
    for j in range(len(low)):
        counts[low[j] >> uint64(64 - SHARD_BITS)] += 1


@_kernel
def rehash(old: ndarray, old_high: ndarray, count: int, keys: ndarray, high: ndarray) -> None:
    """Put all hashes at the first ``count`` places of a part into a larger, empty one, almost in their order."""
    for j in range(count):
        if old[j] != EMPTY:
            i = slot(old[j], len(keys))
            while keys[i] != EMPTY:
                i += 1
                if i == len(keys):
                    i = 0
            keys[i] = old[j]
            if len(high) > 0:
                high[i] = old_high[j]


@_kernel
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


@_kernel
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


@_kernel
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


@_kernel
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


@_kernel
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
