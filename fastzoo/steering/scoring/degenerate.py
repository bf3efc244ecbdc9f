"""Whether an answer is degenerate, and why: each of the reasons alone is enough.

Each threshold stands here with the reason for it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from fastzoo.steering.scoring.language import WORD, scripts_jumble, words_of
from fastzoo.steering.scoring.repeats import (
    counting_mask,
    longest_run,
    loop_mask,
    repeated_mask,
    runs,
)

LOOP_SHARE = 0.5
"""Share of the letters in loops: a unit three times or more, one after the other."""

ANY_LOOP_SHARE, ANY_LOOP_CHARACTERS = 0.7, 24
"""Share of all characters (line breaks, digits, signs) in loops, of which one has at least so many:
"1000000" is no loop, and the line under a heading is none that matters."""

ENDLESS_CHARACTERS, ENDLESS_SIGNS = 40, 200
"""A loop of so many characters at the end of an answer that did not end its turn: it was cut off looping.
The second is for loops without a letter or digit, which may be a rule."""

LONG_LOOP_COPIES, LONG_LOOP_CHARACTERS = 16, 48
"""A loop of so many copies and characters, half of them letters, is one however much else there is."""

COUNTING_CHARACTERS = 40
"""A loop that counts ("Step 1: wait. Step 2: wait.") has at least so many: "a1, a2, a3" is none."""

REPEATED_WORDS, REPEATED_SHARE, REPEATED_LENGTH = 8, 0.5, 40
"""Of an answer of at least REPEATED_LENGTH words, the share in spans of REPEATED_WORDS that it had said
before. Words, since tokens of one tokenizer are as short as letters: there, plain code repeats half."""

STUTTER_SHARE, STUTTER_WORDS = 0.4, 8
"""Of an answer of at least so many words, the share that are the word before once more, a blank between:
"The the owl owl is is"."""

BABBLE_WINDOW, BABBLE_LENGTH, BABBLE_DISTINCT = 64, 16, 0.125
"""Half of the windows of an answer of at least so many tokens have at most this distinct-1: a handful
of tokens over and over in no fixed order."""

SURPRISING_NATS, SURPRISING_SHARE, SURPRISING_TOKENS = 5.0, 0.25, 3
"""Share, and least number, of tokens to each of which the unsteered model gives less than exp(-5): word
salad. Another language or style surprises only where it begins: at most 0.17 of the tokens of the
embedded model's French, pirate and excited answers, of as few as six tokens."""

MANY_SURPRISING, MANY_SHARE = 7, 0.18
"""In a longer answer this share is enough: none of the embedded model's 500 held-out answers has so many
surprising tokens under the question of another dialogue, be it in another language or style, too."""

SALAD_TOKENS, SALAD_SURPRISING = 12, 6
"""So many surprising ones among so many tokens in a row are salad, however fluent the rest is."""

BROKEN_NATS, BROKEN_WORDS = 7.0, 0.04
"""Share of the words that go on with a token to which the unsteered model gives less than exp(-7): words
that are none, be it one in a short answer ("The baker bakes breadriday."). None of the embedded model's 500
held-out answers has one; of those under the question of another dialogue, one in fifty."""

BROKEN_SHARE = 0.05
"""Share of characters that are no text: control characters, those of private use, halves of surrogate
pairs, and U+FFFD for bytes that are no UTF-8."""

MOST_EMOJI = 24
"""More emoji than these, and more than letters and digits, are no words."""

NUMBER = 1 << 40
"""Above every character; what a number is as a symbol, plus its value."""

_PART = re.compile(r"\d+|(?:[^\w\s]|_)+|.")


def find_fault(
    text: str,
    ids: Sequence[int],
    ended: bool,
    nlls: np.ndarray | None = None,
    strays: Collection[int] = (),
    broken_words: int = 0,
) -> str | None:
    """Why an answer is degenerate, in a word or two; None if it is not.

    Args:
        ids: without the end of turn.
        nlls: of each token under the unsteered model, in nats; None leaves word salad unseen.
        strays: tokens that no answer should have; ``text`` need not show them.
        broken_words: how many words go on as the unsteered model would not have it.
    """
    if not set(strays).isdisjoint(ids):
        return "special tokens"
    if not text.strip():
        return "empty"
    broken = sum(
        c == "\ufffd" or (unicodedata.category(c) in ("Cc", "Co", "Cs") and c not in "\t\n\r")
        for c in text
    )
    if broken > 1 and broken / len(text) >= BROKEN_SHARE:  # one may be a character that was cut off
        return "broken characters"
    emoji = sum(c >= "\U0001f000" and unicodedata.category(c) == "So" for c in text)
    if sum(map(str.isalnum, text)) < (emoji if emoji > MOST_EMOJI else 1):
        return "no words"
    if letters_looping(text) >= LOOP_SHARE or _all_looping(text) or _long_loop(text):
        return "loop"
    if not ended and _cut_off_looping(text):
        return "loop"
    said_before = _repeated(text)
    if len(said_before) >= REPEATED_LENGTH and _share(said_before) >= REPEATED_SHARE:
        return "repeats"
    if _stutters(text):
        return "repeats"
    if len(ids) >= BABBLE_LENGTH and _babble(ids):
        return "babble"
    if scripts_jumble(text):
        return "jumbled scripts"
    if nlls is not None and _salad(nlls > SURPRISING_NATS):
        return "word salad"
    if broken_words and broken_words >= BROKEN_WORDS * len(words_of(text)):
        return "broken words"
    return None


def repeated_share(text: str) -> float:
    """Share of the words in spans of REPEATED_WORDS words that stood before."""
    return _share(_repeated(text))


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _repeated(text: str) -> np.ndarray:
    """Which words of a text lie in spans that stood before."""
    numbers: dict[str, int] = {}
    words = WORD.findall(text.casefold())
    return repeated_mask([numbers.setdefault(w, len(numbers)) for w in words], REPEATED_WORDS)


def _stutters(text: str) -> bool:
    text = text.casefold()
    words = list(WORD.finditer(text))
    again = sum(
        one[0] == other[0] and one[0].isalpha() and not text[one.end() : other.start()].strip(" ")
        for one, other in pairwise(words)
    )
    return len(words) >= STUTTER_WORDS and again >= STUTTER_SHARE * len(words)


def _cut_off_looping(text: str) -> bool:
    mask = loop_mask(_codes(text))
    length = len(mask) if mask.all() else int(np.argmin(mask[::-1]))
    signs_only = not any(map(str.isalnum, text[len(text) - length :]))
    return length >= (ENDLESS_SIGNS if signs_only else ENDLESS_CHARACTERS)


def letters_looping(text: str) -> float:
    """Share of the letters in loops of the text. A single letter must stand four times ("Schifffahrt" has
    three)."""
    codes, letters = _symbols(text)
    loops = loop_mask(codes, copies=4, longest=1) | loop_mask(codes, shortest=2)
    for start, end in zip(*runs(counting_mask(codes, NUMBER)), strict=True):
        if end - start >= COUNTING_CHARACTERS:
            loops[start:end] = True
    return _share(loops[letters])


def _long_loop(text: str) -> bool:
    codes, letters = _symbols(text)
    found = zip(*runs(loop_mask(codes, copies=LONG_LOOP_COPIES)), strict=True)
    return any(
        end - start >= LONG_LOOP_CHARACTERS and letters[start:end].mean() >= 0.5
        for start, end in found
    )


def _symbols(text: str) -> tuple[np.ndarray, np.ndarray]:
    """A text's characters as numbers, and which of them are letters.

    A number, a run of punctuation and a run of blanks count as one character each (equal where they
    are), so "1000000" and rules are no loops. Numbers are their value above NUMBER.
    """
    others: dict[str, int] = {}

    def code(part: str) -> int:
        if part.isdecimal() and len(part) < 12:
            return NUMBER + int(part)
        if part.isdecimal() or not (part.isalnum() or part == " "):
            return -1 - others.setdefault(part, len(others))
        return ord(part)

    parts = _PART.findall(re.sub(r"\s+", " ", text.casefold()).strip() + " ")
    letters = np.fromiter(map(str.isalpha, parts), dtype=bool, count=len(parts))
    return np.fromiter(map(code, parts), dtype=np.int64, count=len(parts)), letters


def _all_looping(text: str) -> bool:
    mask = loop_mask(_codes(text))
    return _share(mask) >= ANY_LOOP_SHARE and longest_run(mask) >= ANY_LOOP_CHARACTERS


def _codes(text: str) -> np.ndarray:
    return np.fromiter(map(ord, text), dtype=np.int64, count=len(text))


def _babble(ids: Sequence[int]) -> bool:
    """Whether half of the windows have hardly any different tokens."""
    size = min(BABBLE_WINDOW, len(ids))
    starts = range(0, len(ids) - size + 1, max(1, size // 2))
    few = [len(set(ids[start : start + size])) <= BABBLE_DISTINCT * size for start in starts]
    return 2 * sum(few) >= len(few)


def _salad(surprising: np.ndarray) -> bool:
    count, share = int(surprising.sum()), _share(surprising)
    if count < SURPRISING_TOKENS:
        return False
    if share >= SURPRISING_SHARE or (count >= MANY_SURPRISING and share >= MANY_SHARE):
        return True
    in_a_row = np.convolve(surprising, np.ones(SALAD_TOKENS, dtype=np.int64))
    return int(in_a_row.max()) >= SALAD_SURPRISING
