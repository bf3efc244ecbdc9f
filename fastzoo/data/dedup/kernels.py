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


def kernel(function: Callable[..., Any]) -> Any:
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


@kernel
def mix(a: Any, b: Any) -> Any:
    """A hash of two 64-bit words in this order; with one of them fixed, no two values of the other collide."""
    x = uint64(a)
    x = (x ^ (x >> uint64(32))) * K1
    x = (x ^ uint64(b)) * K2
    x = (x ^ (x >> uint64(29))) * K3
    return x ^ (x >> uint64(32))


@kernel
def join(a: Any, b: Any) -> Any:
    """A hash of two hashes in this order, to be mixed in the end; with one fixed, no two values of the other collide."""
    return (uint64(a) + ((uint64(b) << uint64(29)) | (uint64(b) >> uint64(35)))) * K1


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
def find_from(i: int, keys: int, high: int, size: int, low: Any, more: Any) -> int:
    """The place of a hash, or of where it would stand (a free one), if it is not before ``i``."""
    while True:
        there = _load(keys + 8 * i)
        if there == EMPTY or (there == low and (high == 0 or _load(high + 8 * i) == more)):
            return i
        i += 1
        if i == size:
            i = 0


@kernel
def slot(low: Any, size: int) -> int:
    """Where the search for a hash begins, in the order of hashes. Its top bits chose the part."""
    return int64((((uint64(low) << uint64(SHARD_BITS)) >> uint64(32)) * uint64(size)) >> uint64(32))


@kernel
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
            at = keys[k] + 8 * slot(low[j], sizes[k])
            for line in range(3):  # in a full part, a search goes as far
                _fetch(at + 64 * line)
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


@kernel
def count_parts(low: ndarray, counts: ndarray) -> None:
    """How many hashes belong to each part of a table."""
    for j in range(len(low)):
        counts[low[j] >> uint64(64 - SHARD_BITS)] += 1


@kernel
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
