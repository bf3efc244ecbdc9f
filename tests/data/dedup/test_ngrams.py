"""Samples as bytes, from lists and from Arrow arrays of any layout; hashes that do not collide and never change."""

from __future__ import annotations

import sys
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from transcription import dialogues

from fastzoo.data.dedup.ngrams import Hashes, TextBatch, hash_ngrams

LOW = ["0x7ec38c7c6eabd541", "0x18c99ebfac4baeb2", "0xa6ceb38777b37e10"]
HIGH = ["0x9dcc6077e1b0d404", "0xd35d107068cc128", "0xbcdd593512c1c8ac"]
CHARACTERS = "0x8c37cd54b6c54696"
TEXTS = st.lists(st.none() | st.lists(st.none() | st.text(max_size=5), max_size=3), max_size=8)


def turns(batch: TextBatch) -> list[list[str]]:
    """The samples of a batch, read back."""
    data = batch.data.tobytes()
    texts = [
        data[a:b].decode("utf-8", "surrogatepass") for a, b in zip(batch.turns, batch.turns[1:], strict=False)
    ]
    return [texts[a:b] for a, b in zip(batch.samples, batch.samples[1:], strict=False)]


def without_nulls(samples: list[Any]) -> list[list[str]]:
    return [[text or "" for text in sample or []] for sample in samples]


@given(samples=dialogues())
@settings(max_examples=50)
def test_of_lists(samples: list[list[str]]) -> None:
    assert turns(TextBatch.of(samples)) == samples
    assert turns(TextBatch.of(iter(samples))) == samples


@given(
    samples=TEXTS,
    kind=st.sampled_from(
        (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.large_string()))
    ),
    cut=st.tuples(st.integers(0, 8), st.integers(0, 8)),
)
@settings(max_examples=100)
def test_of_arrow_is_of_lists(samples: list[Any], kind: pa.DataType, cut: tuple[int, int]) -> None:
    array = pa.array(samples, kind)
    start, count = cut
    for lists, wanted in (
        (array, samples),
        (array[start : start + count], samples[start : start + count]),
        (pa.chunked_array([array[:start], array[start:]], kind), samples),
        (pa.chunked_array([array[start:], array[:start]], kind)[1:], (samples[start:] + samples[:start])[1:]),
        (pa.chunked_array([], kind), []),
    ):
        batch = TextBatch.of_arrow(lists)
        assert turns(batch) == without_nulls(wanted)
        assert len(batch) == len(wanted)
        for a, b in zip(
            hash_ngrams(batch, 2, "characters", 64).__dict__.values(),
            hash_ngrams(TextBatch.of(without_nulls(wanted)), 2, "characters", 64).__dict__.values(),
            strict=True,
        ):
            assert np.array_equal(a, b)


def test_nulls_that_hide_texts() -> None:
    texts = pa.array(["a", "b", "c", "d", "e"])
    lists = pa.ListArray.from_arrays(
        pa.array([0, 2, 4, 5], pa.int32()), texts, mask=pa.array([False, True, False])
    )
    assert lists.to_pylist() == [["a", "b"], None, ["e"]]
    assert turns(TextBatch.of_arrow(lists)) == [["a", "b"], [], ["e"]]
    hidden = pa.StringArray.from_buffers(
        3, *pa.array(["ab", "cd", "ef"]).buffers()[1:], pa.py_buffer(b"\x05")
    )
    assert hidden.to_pylist() == ["ab", None, "ef"]
    assert turns(TextBatch.of_arrow(pa.ListArray.from_arrays([0, 3], hidden))) == [["ab", "", "ef"]]


def test_arrow_buffers_are_not_copied() -> None:
    array = pa.array([["abc", "de"], ["f"]])
    batch = TextBatch.of_arrow(array)
    assert batch.data.ctypes.data == array.values.buffers()[2].address


def low(samples: list[list[str]], n: int, unit: str = "words", bits: int = 64) -> Hashes:
    return hash_ngrams(TextBatch.of(samples), n, unit, bits)


@pytest.mark.parametrize("bits", [64, 128])
def test_ngrams_that_are_alike_have_other_hashes(bits: int) -> None:
    alike = [
        *(" ".join(p) for p in permutations("abcdefgh", 6)),
        *(" ".join(p) for p in product(("a", "aa", "aaa", "aaaaaaaaa", "aaaaaaaaaaaaaaaaa", "b"), repeat=6)),
        *(" ".join(p) for p in product(("\x00", "\x00\x00", "\x00" * 8, "\x00" * 9, "\x01"), repeat=6)),
    ]
    assert len(set(alike)) == len(alike)
    found = low([[text] for text in alike], 6, bits=bits)
    assert len(found.low) == len(alike)
    assert len(np.unique(found.low)) == len(alike)
    assert bits == 64 or len(np.unique(found.high)) == len(alike)
    assert bits == 64 or not np.intersect1d(found.low, found.high).size


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 13, 20, 21])
def test_hashes_collide_no_more_than_chance(n: int) -> None:
    """Of 32 of their bits: m(m − 1) / 2³³ pairs are expected, for any 32 bits of a sound hash."""
    draw = np.random.default_rng(n)
    few = [f"w{k}" for k in range(3)] if n > 12 else [f"w{k}" for k in range(100_000)]
    words = [few[k] for k in draw.integers(0, len(few), 200_000 + n - 1)] if n > 1 else few * 2
    grams = {tuple(words[i : i + n]) for i in range(200_000)}
    found = np.unique(low([[" ".join(words)]], n).low)
    assert len(found) == len(grams)
    expected = len(grams) * (len(grams) - 1) / 2**33
    for shift in (0, 16, 32):
        some = (found >> np.uint64(shift)) & np.uint64(0xFFFFFFFF)
        pairs = len(some) - len(np.unique(some))
        assert pairs <= expected + 6 * expected**0.5 + 1
    assert all(0.45 < float(((found >> np.uint64(k)) & np.uint64(1)).mean()) < 0.55 for k in range(64))


def test_hashes_are_the_same_everywhere() -> None:
    text = "The quick brown fox jumps over the lazy dog, 日本語 🙂"
    assert [hex(h) for h in low([[text]], 9, bits=128).low.tolist()] == LOW
    assert [hex(h) for h in low([[text]], 9, bits=128).high.tolist()] == HIGH
    assert hex(int(low([[text[:20]]], 20, "characters").low[0])) == CHARACTERS
