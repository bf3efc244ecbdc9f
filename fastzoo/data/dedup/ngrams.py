"""Samples as bytes, and the hashes of their n-grams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK_BYTES = 1 << 21
"""Of text that is hashed at once: the hashes of so much stay in the processor's cache."""


@dataclass(frozen=True)
class TextBatch:
    """Samples of turns, as UTF-8."""

    data: np.ndarray
    """(bytes,) uint8."""
    turns: np.ndarray
    """(T + 1,) int64: turn t is ``data[turns[t] : turns[t + 1]]``."""
    samples: np.ndarray
    """(S + 1,) int64: sample s has the turns ``samples[s]`` to ``samples[s + 1]``."""

    def __len__(self) -> int:
        return len(self.samples) - 1

    @classmethod
    def of(cls, samples: Iterable[Sequence[str]]) -> TextBatch:
        """From lists of turns, which may be of any characters, also lone surrogates."""
        texts: list[str] = []
        counts: list[int] = [0]
        for turns in samples:
            texts.extend(turns)
            counts.append(len(texts))
        whole = "".join(texts)
        if whole.isascii():
            data, lengths = whole.encode(), map(len, texts)
        else:
            encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
            data, lengths = b"".join(encoded), map(len, encoded)
        ends = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(lengths, np.int64, len(texts)), out=ends[1:])
        return cls(np.frombuffer(data, np.uint8), ends, np.array(counts, np.int64))

    @classmethod
    def of_arrow(cls, lists: Any) -> TextBatch:
        """From an Arrow array of lists of strings, whose buffers are used as they are. A null is an empty text or list."""
        import pyarrow as pa

        if isinstance(lists, pa.ChunkedArray):
            lists = lists.combine_chunks()
        samples, texts = _offsets(lists), lists.values
        if lists.null_count:  # a null may hide texts
            texts = lists.flatten()
            lengths = np.where(lists.is_null().to_numpy(zero_copy_only=False), 0, np.diff(samples))
            samples = np.concatenate([[0], np.cumsum(lengths)])
        if not pa.types.is_large_string(texts.type):
            texts = texts.cast(pa.large_string()) if not pa.types.is_string(texts.type) else texts
        if texts.null_count:
            texts = texts.fill_null("")
        turns = _offsets(texts)
        buffer = texts.buffers()[2]
        data = np.frombuffer(buffer if buffer is not None else b"", np.uint8)
        return cls(data, turns, samples)

    def chunks(self) -> Iterator[TextBatch]:
        """The same samples in batches of about ``CHUNK_BYTES``."""
        first, ends = 0, self.turns[self.samples]
        while first < len(self):
            last = int(np.searchsorted(ends[first + 1 :], ends[first] + CHUNK_BYTES, "right"))
            stop = first + max(1, last)
            yield TextBatch(self.data, self.turns, self.samples[first : stop + 1])
            first = stop

    def ngrams_per_sample(self, n: int, unit: str) -> np.ndarray:
        """(S,) int64."""
        from fastzoo.data.dedup.kernels import count_units

        units = np.zeros(max(0, len(self.turns) - 1), np.int64)
        count_units(self.data, self.turns, unit == "characters", units)
        before = np.concatenate([[0], np.cumsum(np.maximum(units - n + 1, 0))])
        return before[self.samples[1:]] - before[self.samples[:-1]]


def _offsets(array: Any) -> np.ndarray:
    """(L + 1,) int64 of an Arrow array of lists or strings, of which it may be a slice."""
    import pyarrow as pa

    large = pa.types.is_large_string(array.type) or pa.types.is_large_list(array.type)
    kind = np.int64 if large else np.int32
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.zeros(len(array) + 1, np.int64)
    found = np.frombuffer(buffer, kind)[array.offset : array.offset + len(array) + 1]
    return found.astype(np.int64)


def ngram_count(batch: TextBatch, n: int, unit: str) -> int:
    """How many n-grams the samples have, the same one counted as often as it occurs."""
    return int(batch.ngrams_per_sample(n, unit).sum())


@dataclass(frozen=True)
class Hashes:
    """The hashes of samples' n-grams, sample after sample."""

    low: np.ndarray
    """(N,) uint64, never 0."""
    high: np.ndarray
    """(N,) uint64: further bits, or (1,) if there are none."""
    ends: np.ndarray
    """(S,) int64: where the hashes of each sample end."""


def hash_ngrams(batch: TextBatch, n: int, unit: str, bits: int, *, whole: bool = False) -> Hashes:
    """Hashes of all n-grams of ``n`` words (as ``str.split()`` has them) or code points within one turn.

    A word's hash takes up eight bytes at a time, each step a bijection of what it takes up (two words of up to seven bytes
    never collide), and its end is marked, so NULs count. An n-gram's hash joins those of runs of 1, 2, 4, ... words, of
    which it consists by the binary digits of n; ``join`` is a bijection of either run, and not symmetric: it turns the
    second by 29 bits, which carries and products do not undo, so moved and permuted words give other values. Two given
    n-grams that differ have one hash with a probability of about 2 ** -bits, if words are not made for it: seeds are
    fixed, so that hashes are the same everywhere, and whoever knows them can construct words that collide. Bits beyond
    64 are a second such hash with another seed.

    Args:
        bits: 64, or 128 by a second hash of the same.
        whole: a sample without any n-gram gets one hash of all that it says.
    """
    from fastzoo.data.dedup.kernels import LANES, hash_turns

    characters = unit == "characters"
    begin, stop = batch.samples[0], batch.samples[-1]
    size = int(batch.turns[stop] - batch.turns[begin]) if len(batch) else 0
    most = (size if characters else size // 2 + int(stop - begin)) + len(batch)
    results = []
    for lane in LANES[: bits // 64]:
        low, ends = np.empty(most, np.uint64), np.empty(len(batch), np.int64)
        turns, samples = batch.turns[begin : stop + 1], batch.samples - begin
        used = hash_turns(batch.data, turns, samples, n, characters, whole, lane, low, ends)
        results.append(low[:used])
    high = results[1] if bits == 128 else np.zeros(1, np.uint64)
    return Hashes(results[0], high, ends)
