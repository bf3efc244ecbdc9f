"""What repeats in a sequence of token ids, and what two sequences share: milliseconds for 2,000 tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Ids = Sequence[int] | np.ndarray

COPIES, LONGEST_UNIT = 3, 1_000
"""A loop is a unit that many times, one after the other; and the tokens of the longest unit."""


def distinct(ids: Ids, n: int) -> float | None:
    """Different n-grams over n-grams; None for fewer than ``n`` tokens."""
    grams = _grams(_array(ids), n)
    return len(np.unique(grams)) / len(grams) if len(grams) else None


def longest_repeated_span(ids: Ids) -> int:
    """Length of the longest span that stands at two places, which may overlap: 3 in "a a a a"; 0 for none."""
    array = _array(ids)

    def all_differ(length: int) -> bool:
        grams = _grams(array, length)
        return len(np.unique(grams)) == len(grams)

    # A span that repeats holds a shorter one that does, so the longest can be found by halving.
    return bisect_left(range(1, len(array)), True, key=all_differ)


def repeated_mask(ids: Ids, least: int) -> np.ndarray:
    """Which tokens lie in a span of ``least`` tokens that also stood earlier (overlaps allowed).

    The first occurrence of a span is not marked: it was new.
    """
    grams = _grams(_array(ids), least)
    again = np.delete(np.arange(len(grams)), np.unique(grams, return_index=True)[1])
    return _covered(again, again + least, len(ids))


def loop_mask(ids: Ids, copies: int = COPIES, shortest: int = 1, longest: int = LONGEST_UNIT) -> np.ndarray:
    """Which tokens lie in a loop: a unit of ``shortest`` to ``longest`` tokens, at least ``copies`` times
    one after the other. A last copy that is cut off belongs to it."""
    array = _array(ids)
    mask = np.zeros(len(array), dtype=bool)
    for unit, starts, ends in _loops(array, np.equal, copies, shortest, longest):
        mask |= _covered(starts, ends + unit, len(array))
    return mask


def counting_mask(ids: Ids, numbers: int) -> np.ndarray:
    """Which tokens lie in a loop that counts: its unit has at least two tokens, and one number in each copy is one
    more or one less than in the copy before. A number is ``numbers`` plus its value; other tokens are less."""
    array = _array(ids)
    mask = np.zeros(len(array), dtype=bool)

    def alike(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        return np.abs(later - earlier) <= (np.minimum(later, earlier) >= numbers)

    for unit, starts, ends in _loops(array, alike, COPIES, 2, LONGEST_UNIT):
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            steps = np.count_nonzero(array[start + unit : end + unit] != array[start:end])
            # Two that count in each copy are a table: "1 + 1 is 2, 2 + 1 is 3".
            if 0 < steps <= (end + unit - start) // unit:
                mask[start : end + unit] = True
    return mask


def _loops(
    array: np.ndarray,
    alike: Callable[[np.ndarray, np.ndarray], np.ndarray],
    copies: int,
    shortest: int,
    longest: int,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each unit: its length, where its loops start, and where their last copies start."""
    for unit in range(shortest, min(longest, len(array) // copies) + 1):
        same = alike(array[unit:], array[:-unit])
        enough = unit * (copies - 1)
        # A run this long holds an aligned block half as long, which hardly any unit of a text has.
        block = (enough + 1) // 2
        if not same[: len(same) // block * block].reshape(-1, block).all(1).any():
            continue
        starts, ends = runs(same)
        long = ends - starts >= enough
        yield unit, starts[long], ends[long]


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of set values start and end."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.view(np.int8), [0]))))
    return edges[::2], edges[1::2]


def longest_run(mask: np.ndarray) -> int:
    """Length of the longest run of set values."""
    starts, ends = runs(mask)
    return int((ends - starts).max(initial=0))


def longest_immediate_repetition(ids: Ids) -> int:
    """Length of the longest run of one token: 4 in "b a a a a c", 1 where none repeats."""
    array = _array(ids)
    return longest_run(array[1:] == array[:-1]) + 1 if len(array) else 0


def rouge_l(answer: Ids, reference: Ids) -> float:
    """2 LCS / (both lengths), with the longest common subsequence; 1 for two empty ones."""
    if not len(answer) or not len(reference):
        return float(len(answer) == len(reference))
    return 2 * _common(answer, reference) / (len(answer) + len(reference))


def _common(a: Ids, b: Ids) -> int:
    """Length of the longest common subsequence, a whole row of its table at once in one integer.

    A bit of the row is 0 where the table grows by one; an addition's carry moves the zeros.
    """
    where: dict[int, int] = {}
    for place, token in enumerate(a):
        where[int(token)] = where.get(int(token), 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        if matches := row & where.get(int(token), 0):
            row = ((row + matches) | (row - matches)) & full
    return len(a) - bin(row).count("1")


def _array(ids: Ids) -> np.ndarray:
    return np.asarray(ids, dtype=np.int64)


def _grams(array: np.ndarray, n: int) -> np.ndarray:
    """A number for every span of ``n`` tokens, equal where the spans are: built from those of spans
    of 1, 2, 4, ... tokens, so nothing is hashed."""
    if n < 1 or len(array) < n:
        return np.zeros(0, dtype=np.int64)
    numbers, width = np.unique(array, return_inverse=True)[1].astype(np.int64), 1
    while width < n:
        step = min(width, n - width)
        pairs = numbers[: len(numbers) - step] * (len(array) + 1) + numbers[step:]
        numbers = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
        width += step
    return numbers


def _covered(starts: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Which of ``length`` places lie in one of the spans."""
    depth = np.zeros(length + 1, dtype=np.int64)
    np.add.at(depth, starts, 1)
    np.add.at(depth, ends, -1)
    return np.cumsum(depth[:-1]) > 0
