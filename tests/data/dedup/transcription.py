"""Algorithm 1 as the paper has it, in plain Python, and samples to compare with it: generated and adversarial ones."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

from hypothesis import strategies as st

SPACES = tuple(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace())
"""Where ``str.split()`` splits."""

NEARLY = (
    "\u200b",
    "\u2060",
    "\ufeff",
    "\u180e",
    "\x1b",
    "\x00",
    "\x7f",
    "\x80",
    "\x84",
    "\x86",
    "\u200c",
    "\u2027",
)
"""What looks like white space, or stands beside it, and is none."""

WORDS = ("a", "b", "ab", "a\u0301", "é", "日本", "語", "🙂", "👩‍👩‍👧", "\ud800", "\udfff", "\x00", *NEARLY)


def transcription(
    samples: Iterable[Sequence[str]], n: int = 20, unit: str = "words", short: str = "keep"
) -> list[bool]:
    """Which samples Algorithm 1 keeps, in order."""
    seen: set[tuple[str, ...] | str] = set()
    copies: set[tuple[str, ...]] = set()
    kept = []
    for turns in samples:
        ngrams: set[tuple[str, ...] | str] = set()
        for turn in turns:
            if unit == "words":
                words = turn.split()
                ngrams.update([tuple(words[i : i + n]) for i in range(len(words) - n + 1)])
            else:
                ngrams.update([turn[i : i + n] for i in range(len(turn) - n + 1)])
        if not ngrams and short == "unique":
            kept.append(tuple(turns) not in copies)
            copies.add(tuple(turns))
        elif not ngrams.isdisjoint(seen):
            kept.append(False)
        else:
            kept.append(True)
            seen |= ngrams
    return kept


def dialogues(most: int = 14) -> st.SearchStrategy[list[list[str]]]:
    """Samples of few words, so that n-grams are often shared, and of turns that occur in several samples."""
    space = st.lists(st.sampled_from((" ", " ", " ", *SPACES)), min_size=1, max_size=2).map("".join)
    words = st.lists(st.tuples(st.sampled_from(WORDS), space), max_size=9)
    turn = st.builds(
        lambda before, pairs, last: before + "".join(word + gap for word, gap in pairs) + last,
        st.sampled_from(("", " ", "\u3000")),
        words,
        st.sampled_from(("", *WORDS)),
    )

    def samples(turns: list[str]) -> st.SearchStrategy[list[list[str]]]:
        some = st.sampled_from(turns) | turn | st.text(max_size=6)
        return st.lists(st.lists(some, max_size=4), max_size=most)

    return st.lists(turn, min_size=1, max_size=4).flatmap(samples)


def chain(length: int, n: int, name: str = "c") -> list[list[str]]:
    """Sample k shares an n-gram with k - 1 and another with k + 1: every second one is kept."""

    def link(k: int) -> str:
        return " ".join(f"{name}{k}.{i}" for i in range(n))

    return [[link(k), link(k + 1)] for k in range(length)]


def adversarial(n: int, seed: int, longest: int = 100) -> Iterator[list[str]]:
    """Samples without end among which all that may go wrong happens: about 40% are dropped, by near and by far ones.

    ``longest``: of the chains among them.
    """
    draw = random.Random(seed)
    vocabulary = [f"w{k}" for k in range(50)] + list(WORDS)
    before: list[list[str]] = []

    def text(words: int) -> str:
        chosen = draw.choices(vocabulary, k=words) + [f"u{draw.randrange(10**9)}"]
        return "".join(word + draw.choice((" ", " ", "  ", *SPACES)) for word in chosen)

    links = (link for k in count() for link in chain(longest, n, f"c{k}."))
    while True:
        kind = draw.randrange(12)
        fresh = [text(draw.randrange(3 * n)) for _ in range(draw.randrange(1, 4))]
        old = draw.choice(before) if before else fresh
        if kind < 4:
            sample = fresh
        elif kind == 4:
            sample = list(old)  # the same again
        elif kind == 5:
            sample = fresh + [draw.choice(old)] if old else fresh  # one turn again
        elif kind == 6:
            sample = [
                fresh[0] + " " + " ".join(draw.choice(old or [""]).split()[: n - 1])
            ]  # one word too few
        elif kind == 7:
            sample = [" ".join(turn.split()) for turn in old]  # other white space
        elif kind == 8:
            words = " ".join(old).split()  # n-grams that went across turns, cut elsewhere
            sample = [" ".join(words[i : i + n - 1]) for i in range(0, len(words), n - 1)]
        elif kind == 9:
            sample = [fresh[0], fresh[0], ""]  # a turn that is repeated within the sample
        elif kind == 10:
            sample = next(links)
        else:
            sample = draw.choice(
                ([], [""], [" \u3000"], ["yes"], ["yes", "no"], ["yes no"], [draw.choice(WORDS)])
            )
        before = before[-400:] + [sample]
        yield sample
