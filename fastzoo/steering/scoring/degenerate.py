"""Whether an answer is degenerate, and why: an ordered table of tests, each of which alone is enough.

All thresholds were fitted on the embedded toy model (0.8M parameters), none of whose own answers, be they
in another language or style, may be degenerate. Larger models may need others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastzoo.steering.scoring import repeats
from fastzoo.steering.scoring.language import WORD, scripts_jumble, words_of
from fastzoo.steering.scoring.repeats import loop_mask, runs

REPEATED_WORDS = 8
"""Words of a span that counts as said before. Not tokens, which one tokenizer has as short as letters:
there, half of plain code repeats."""

SURPRISING_NATS = 5.0
"""A token is surprising if the unsteered model gives it less than exp(-5)."""

BROKEN_NATS = 7.0
"""A word is broken if it goes on with a token to which the unsteered model gives less than exp(-7)."""

NUMBER = 1 << 40
"""Above every character; a number as a symbol is this plus its value."""

_PART = re.compile(r"\d+|(?:[^\w\s]|_)+|.")


@dataclass(frozen=True)
class Answer:
    """What the tests see of an answer."""

    text: str
    ids: Sequence[int]
    """Without the end of turn."""
    ended: bool
    nlls: np.ndarray | None = None
    """Of each token under the unsteered model, in nats; None leaves word salad unseen."""
    strays: Collection[int] = ()
    """Tokens that no answer should have; ``text`` need not show them."""
    broken_words: int = 0
    """How many words go on as the unsteered model would not continue them."""

    @property
    def fault(self) -> str | None:
        """Why it is degenerate: the first of ``FAULTS``; None if it is not."""
        return next((name for name, test in FAULTS if test(self)), None)


def _broken_characters(answer: Answer) -> bool:
    """5% of the characters, and more than one (which may have been cut off), are no text: control
    characters, private use, halves of surrogate pairs, U+FFFD for bytes that are not UTF-8."""
    text = re.sub(r"[\t\n\r]", "", answer.text)
    broken = sum(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Co", "Cs") for c in text)
    return broken > 1 and broken / len(answer.text) >= 0.05


def _no_words(answer: Answer) -> bool:
    """No letter or digit; or more than 24 emoji, and more of them than letters and digits."""
    emoji = sum(c >= "\U0001f000" and unicodedata.category(c) == "So" for c in answer.text)
    return sum(map(str.isalnum, answer.text)) < (emoji if emoji > 24 else 1)


def _letters_loop(answer: Answer) -> bool:
    """Half of the letters are in loops."""
    return letters_looping(answer.text) >= 0.5


def _characters_loop(answer: Answer) -> bool:
    """70% of all characters (line breaks, digits, signs) are in loops, one of which has 24: "1000000" is
    no loop, and the line under a heading does not matter."""
    mask = loop_mask(_codes(answer.text))
    return _share(mask) >= 0.7 and repeats.longest_run(mask) >= 24


def _long_loop(answer: Answer) -> bool:
    """A loop of 16 copies and 48 characters, half of them letters, however much else there is."""
    codes, letters = _symbols(answer.text)
    loops = zip(*runs(loop_mask(codes, copies=16)), strict=True)
    return any(end - start >= 48 and letters[start:end].mean() >= 0.5 for start, end in loops)


def _cut_off_in_loop(answer: Answer) -> bool:
    """The turn did not end, and the last 40 characters are a loop. 200 of them where no letter or digit
    is among them, since that may be a rule."""
    if answer.ended:
        return False
    mask = loop_mask(_codes(answer.text))
    length = len(mask) if mask.all() else int(np.argmin(mask[::-1]))
    words = any(map(str.isalnum, answer.text[len(mask) - length :]))
    return length >= (40 if words else 200)


def _repeats(answer: Answer) -> bool:
    """Of 40 words or more, half lie in spans of REPEATED_WORDS that it had said before."""
    said_before = _repeated(answer.text)
    return len(said_before) >= 40 and _share(said_before) >= 0.5


def _stutters(answer: Answer) -> bool:
    """Of 8 words or more, 40% are the word before again after a blank: "The the owl owl is is"."""
    text = answer.text.casefold()
    words = list(WORD.finditer(text))
    again = sum(
        one[0] == other[0] and one[0].isalpha() and not text[one.end() : other.start()].strip(" ")
        for one, other in pairwise(words)
    )
    return len(words) >= 8 and again >= 0.4 * len(words)


def _babbles(answer: Answer) -> bool:
    """16 tokens or more, and half of the windows of 64 hold at most an eighth as many different ones: a
    handful of tokens over and over in no fixed order."""
    ids = answer.ids
    size = min(64, len(ids))
    starts = range(0, len(ids) - size + 1, max(1, size // 2))
    few = [len(set(ids[start : start + size])) <= 0.125 * size for start in starts]
    return len(ids) >= 16 and 2 * sum(few) >= len(few)


def _word_salad(answer: Answer) -> bool:
    """Surprising tokens: three or more that are a quarter of all (fluent answers in another language or
    style surprise where they begin, at most 17%), seven or more that are 18%, or six among twelve in a
    row, however fluent the rest is."""
    surprising = np.zeros(0) if answer.nlls is None else answer.nlls > SURPRISING_NATS
    count, share = int(surprising.sum()), _share(surprising)
    if count < 3:
        return False
    together = int(np.convolve(surprising, np.ones(12, dtype=np.int64)).max())
    return share >= 0.25 or (count >= 7 and share >= 0.18) or together >= 6


def _broken_words(answer: Answer) -> bool:
    """4% of the words are broken, be it one in a short answer: "The baker bakes breadriday."""
    return 0 < answer.broken_words >= 0.04 * len(words_of(answer.text))


FAULTS: tuple[tuple[str, Callable[[Answer], bool]], ...] = (
    ("special tokens", lambda answer: not set(answer.strays).isdisjoint(answer.ids)),
    ("empty", lambda answer: not answer.text.strip()),
    ("broken characters", _broken_characters),
    ("no words", _no_words),
    ("loop", _letters_loop),
    ("loop", _characters_loop),
    ("loop", _long_loop),
    ("loop", _cut_off_in_loop),
    ("repeats", _repeats),
    ("repeats", _stutters),
    ("babble", _babbles),
    ("jumbled scripts", lambda answer: scripts_jumble(answer.text)),
    ("word salad", _word_salad),
    ("broken words", _broken_words),
)


def repeated_share(text: str) -> float:
    """Share of the words in spans of REPEATED_WORDS words that stood before."""
    return _share(_repeated(text))


def letters_looping(text: str) -> float:
    """Share of the letters in loops: a unit three times or more, one after the other. A single letter must
    stand four times ("Schifffahrt" has three). A loop that counts ("Step 1: wait. Step 2: wait.") has at
    least 40 characters, unlike "a1, a2, a3"."""
    codes, letters = _symbols(text)
    loops = loop_mask(codes, copies=4, longest=1) | loop_mask(codes, shortest=2)
    for start, end in zip(*runs(repeats.counting_mask(codes, NUMBER)), strict=True):
        loops[start:end] |= end - start >= 40
    return _share(loops[letters])


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _repeated(text: str) -> np.ndarray:
    """Which words of a text lie in spans that stood before."""
    numbers: dict[str, int] = {}
    words = WORD.findall(text.casefold())
    return repeats.repeated_mask([numbers.setdefault(w, len(numbers)) for w in words], REPEATED_WORDS)


def _codes(text: str) -> np.ndarray:
    return np.fromiter(map(ord, text), dtype=np.int64, count=len(text))


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
