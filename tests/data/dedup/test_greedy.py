"""Deduplication on one machine keeps what Algorithm 1 keeps, whatever the samples and however they come."""

from __future__ import annotations

import sys
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from transcription import SPACES, adversarial, chain, dialogues, transcription

from fastzoo.core.errors import DataError
from fastzoo.data.dedup import greedy
from fastzoo.data.dedup import ngrams as hashing
from fastzoo.data.dedup.greedy import Deduplicator, free_memory, memory_for
from fastzoo.data.dedup.ngrams import TextBatch, ngram_count


def kept(samples: list[list[str]], cuts: tuple[int, ...] = (), **options: object) -> list[bool]:
    """What a deduplicator keeps of samples that come in batches, cut at ``cuts``."""
    seen = Deduplicator(**options)  # type: ignore[arg-type]
    places = [0, *sorted(cut for cut in cuts if cut <= len(samples)), len(samples)]
    return [
        bool(one) for start, stop in pairwise(places) for one in seen.kept(TextBatch.of(samples[start:stop]))
    ]


@settings(max_examples=150)
@given(
    samples=dialogues(),
    n=st.integers(1, 6),
    unit=st.sampled_from(("words", "characters")),
    bits=st.sampled_from((64, 128)),
    short=st.sampled_from(("keep", "unique")),
    cuts=st.lists(st.integers(0, 14), max_size=3).map(tuple),
)
def test_keeps_what_the_transcription_keeps(
    samples: list[list[str]], n: int, unit: str, bits: int, short: str, cuts: tuple[int, ...]
) -> None:
    wanted = transcription(samples, n, unit, short)
    assert kept(samples, cuts, n=n, unit=unit, bits=bits, short=short) == wanted


@pytest.mark.parametrize("bits", [64, 128])
@pytest.mark.parametrize("chunk", [200, hashing.CHUNK_BYTES])
def test_adversarial_samples_in_chunks_of_any_size(
    bits: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "CHUNK_BYTES", chunk)
    samples = list(islice(adversarial(5, seed=bits), 1500))
    wanted = transcription(samples, 5)
    assert 300 < sum(wanted) < 1300
    assert kept(samples, (1, 700, 701), n=5, bits=bits) == wanted


def test_of_a_long_chain_every_second_sample_is_kept() -> None:
    assert kept(chain(1001, 4), (333,), n=4) == [k % 2 == 0 for k in range(1001)]


def test_words_end_at_all_white_space_and_only_there() -> None:
    assert len(SPACES) == 29
    text = " ".join("abcde")
    for space in SPACES:
        assert kept([[text], [space.join("abcde")]], n=5) == [True, False], hex(ord(space))
    others = [chr(code) for code in range(0x3100) if chr(code) not in SPACES]
    assert all(kept([[text]] + [[other.join("abcde")] for other in others], n=5))


def test_what_shares_no_ngram_is_kept() -> None:
    a, b = "one two three four", "five six seven eight"
    samples = [[a, b], [f"{a.split()[-1]} {b}"[:-6]], ["four three two one"], ["two three four one"]]
    assert kept(samples, n=4) == [True] * 4 == transcription(samples, 4)
    assert kept([["a b"], ["ab"], ["a", "b"], ["b a"]], n=2) == [True] * 4


def test_a_dropped_sample_adds_nothing() -> None:
    samples = [["a b c"], ["a b c", "d e f"], ["d e f"]]
    assert kept(samples, n=3) == [True, False, True]


def test_short_samples() -> None:
    samples = [["hi"], ["hi"], [], [], [""], ["", ""], ["h", "i"], ["hi", ""], ["a b c", "hi"], ["hi"]]
    assert all(kept(samples, n=3))
    assert kept(samples, n=3, short="unique") == [True, False, True, False, *[True] * 5, False]


def test_seen_adds_nothing_and_add_drops_nothing() -> None:
    held = Deduplicator(n=2)
    held.add(TextBatch.of([["a b"], ["a b"], ["b c"]]))
    assert held.ngrams == 2
    asked = TextBatch.of([["x a b"], ["a", "b"], ["c d"], ["c d"], ["b c"]])
    for _ in range(2):
        assert held.seen(asked).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("bits", [64, 128])
@pytest.mark.parametrize("small", [1, greedy.SMALL])
def test_counts_and_memory(bits: int, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "SMALL", small)
    draw = np.random.default_rng(0)
    seen = Deduplicator(n=1, bits=bits)
    for batch in range(1, 11):
        words = draw.integers(0, 2**62, 60_000).tolist()
        assert seen.kept(TextBatch.of([[word] for word in map(str, words)])).all()
        assert seen.ngrams == 60_000 * batch
        assert seen.nbytes <= memory_for(seen.ngrams, bits)
        # A part grows once the batch might not fit: by what it has and the batch, if all were new.
        assert small > 1 or batch == 1 or seen.nbytes <= seen.ngrams * bits / 4
    assert 0 < seen.expected_false_drops() < 1e-6
    assert free_memory() > 0


def test_too_little_memory_is_said_before_anything_is_added() -> None:
    seen = Deduplicator(n=1, memory=3_000_000)
    first = TextBatch.of([[" ".join(map(str, range(50_000)))]])
    assert seen.kept(first).all()
    held = seen.ngrams
    with pytest.raises(DataError, match=r"^deduplication .* needs .*") as refused:
        seen.kept(TextBatch.of([[" ".join(map(str, range(60_000, 900_000)))]]))
    assert "\n" not in str(refused.value)
    assert seen.ngrams == held and seen.seen(first).all()


@given(samples=dialogues(), n=st.integers(1, 5), unit=st.sampled_from(("words", "characters")))
@settings(max_examples=50)
def test_ngram_count(samples: list[list[str]], n: int, unit: str) -> None:
    batch = TextBatch.of(samples)
    units = [[len(turn.split() if unit == "words" else turn) for turn in turns] for turns in samples]
    each = [sum(max(0, count - n + 1) for count in turns) for turns in units]
    assert batch.ngrams_per_sample(n, unit).tolist() == each
    assert ngram_count(batch, n, unit) == sum(each)
