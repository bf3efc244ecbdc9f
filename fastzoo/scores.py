"""What can be said of a steered answer without a judge, and whether it is degenerate.

A *cell* is one answer of a sweep: a question at an alpha. Its scores compare it with the answer to the
same question at alpha 0 (the unsteered answer) and with what the unsteered model thinks of it. All that
are undefined (the perplexity of an empty answer) are None, never NaN.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fastzoo.language import WORD, language_share, scripts_jumble, switched_share, words_of
from fastzoo.repeats import (
    counting_mask,
    distinct,
    longest_immediate_repetition,
    longest_repeated_span,
    longest_run,
    loop_mask,
    repeated_mask,
    rouge_l,
    runs,
)
from fastzoo.token_texts import TokenTexts

Concept = Callable[[str], float]
"""How much of a text belongs to a concept, 0 to 1."""

CONCEPT_SHARE = 0.05
"""A text of which one word in twenty is the concept's is wholly about it."""

# --- when an answer is degenerate: each of these alone is enough ----------------------------------

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

SWITCHED_SHARE = 0.2
"""Share of the words in another script or language than the unsteered answer's that is a switch."""


NUMBER = 1 << 40
"""Above every character; what a number is as a symbol, plus its value."""

_PART = re.compile(r"\d+|(?:[^\w\s]|_)+|.")


@dataclass(frozen=True)
class Cell:
    """One answer of a sweep."""

    question: int
    """Index of the question."""
    alpha: float
    ids: tuple[int, ...]
    """The answer's tokens without padding; whether or not it holds what ended the turn."""
    ended: bool
    """Whether the model ended its turn (else it was cut off)."""
    text: str
    arm: str = "latent"
    """What it was steered by, as ``sweep.ARMS`` has it."""


@dataclass(frozen=True)
class CellScores:
    """The scores of a cell. Shares are 0 to 1, lengths are in tokens without the end of turn."""

    question: int
    alpha: float
    tokens: int
    ended: bool
    nll: float | None
    """Mean negative log-likelihood per token under the unsteered model, in nats."""
    perplexity: float | None
    """exp(nll); JSON has no infinity, so it is bounded by 1e300."""
    surprising: float | None
    """Share of tokens that the unsteered model gives less than exp(-SURPRISING_NATS)."""
    broken_words: int | None
    """Words that the unsteered model would not have gone on with so (less than exp(-BROKEN_NATS))."""
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    longest_repeated: int
    """Longest span that stands at two places, which may overlap."""
    repeated: float
    """Share of the words in spans of REPEATED_WORDS words that stood before."""
    longest_same: int
    """Longest run of one and the same token."""
    looping: float
    """Share of the letters in loops."""
    switched: float
    """Share of the words in another script or language than the unsteered answer's."""
    language_switch: bool
    kept: float
    """ROUGE-L (F1) of the tokens with those of the unsteered answer."""
    concept: float | None
    """How much of the answer belongs to the concept, if one was given."""
    fault: str | None
    """Why the answer is degenerate: ``special tokens``, ``empty``, ``no words``, ``broken characters``,
    ``loop``, ``repeats``, ``babble``, ``jumbled scripts``, ``word salad``, ``broken words``; None if it is not."""

    @property
    def degenerate(self) -> bool:
        return self.fault is not None


def concept_of_words(words: Collection[str]) -> Concept:
    """How much of a text is about ``words``, whatever their case: their share of its words over
    CONCEPT_SHARE, at most 1."""
    wanted = {part for word in words for part in words_of(word)}

    def share(text: str) -> float:
        said = words_of(text)
        hits = sum(word in wanted for word in said)
        return min(1.0, hits / (CONCEPT_SHARE * len(said))) if said else 0.0

    return share


def concept_of_language(language: str) -> Concept:
    """The share of a text's words that stand in sentences of a language (``en``, ``fr``, ...)."""
    return lambda text: language_share(text, language)


def score_cells(
    cells: Sequence[Cell],
    unsteered: Sequence[Cell],
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: Collection[int] = (),
    tokenizer: Any = None,
    concept: Collection[str] | Concept | None = None,
) -> list[CellScores]:
    """The scores of each cell, in order.

    Args:
        cells: any answers, the unsteered ones among them or not.
        unsteered: the alpha-0 answer of each question, by the question's index.
        model: the language model, which must not be steered while this runs.
        prompts: token ids of each question's prompt, generation prompt included, by its index.
        end_ids: the tokens that end a turn; one at the end of an answer is no part of what is scored.
        tokenizer: without it neither special tokens, which an answer's text does not show, nor broken
            words are seen. A special token that no unsteered answer has is a fault.
        concept: words, or a function of a text such as ``concept_of_language("fr")``.
    """
    from fastzoo.likelihood import answer_nlls

    if concept is not None and not callable(concept):
        concept = concept_of_words(concept)
    answers = [_without_end(cell.ids, end_ids) for cell in cells]
    references = [_without_end(cell.ids, end_ids) for cell in unsteered]
    nlls = answer_nlls(model, [prompts[cell.question] for cell in cells], answers)
    strays: set[int] = set()
    inside = [np.zeros(len(ids), dtype=bool) for ids in answers]
    if tokenizer is not None:
        strays = set(tokenizer.all_special_ids).difference(*references)
        texts = TokenTexts(tokenizer)
        inside = [texts.inside_words(ids) for ids in answers]
    return [
        score_cell(
            cell,
            ids,
            nll,
            unsteered[cell.question].text,
            references[cell.question],
            concept,
            strays,
            within,
        )
        for cell, ids, nll, within in zip(cells, answers, nlls, inside, strict=True)
    ]


def score_cell(
    cell: Cell,
    ids: Sequence[int],
    nlls: np.ndarray | None,
    unsteered_text: str,
    unsteered_ids: Sequence[int],
    concept: Concept | None = None,
    strays: Collection[int] = (),
    inside: np.ndarray | None = None,
) -> CellScores:
    """The scores of one cell.

    Args:
        ids: the cell's tokens without the end of turn.
        nlls: of each token, in nats; None where no model was asked. Where one is not finite, as of a
            model that overflows, they say nothing.
        strays: tokens that no answer should have.
        inside: which tokens go on with a word, as ``TokenTexts.inside_words`` has it.
    """
    nll = surprising = broken_words = None
    if nlls is not None and not np.isfinite(nlls).all():
        nlls = None
    if nlls is not None and len(nlls):
        nll = float(np.mean(nlls))
        surprising = float(np.mean(nlls > SURPRISING_NATS))
        broken_words = 0 if inside is None else int((nlls[inside] > BROKEN_NATS).sum())
    switched = switched_share(cell.text, unsteered_text)
    return CellScores(
        question=cell.question,
        alpha=cell.alpha,
        tokens=len(ids),
        ended=cell.ended,
        nll=nll,
        perplexity=None if nll is None else math.exp(min(nll, 690.0)),
        surprising=surprising,
        broken_words=broken_words,
        distinct_1=distinct(ids, 1),
        distinct_2=distinct(ids, 2),
        distinct_3=distinct(ids, 3),
        longest_repeated=longest_repeated_span(ids),
        repeated=_share(_repeated(cell.text)),
        longest_same=longest_immediate_repetition(ids),
        looping=_letters_looping(cell.text),
        switched=switched,
        language_switch=switched >= SWITCHED_SHARE,
        kept=rouge_l(ids, unsteered_ids),
        concept=None if concept is None else concept(cell.text),
        fault=find_fault(cell.text, ids, cell.ended, nlls, strays, broken_words or 0),
    )


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
    if _letters_looping(text) >= LOOP_SHARE or _all_looping(text) or _long_loop(text):
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


def _letters_looping(text: str) -> float:
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


def _without_end(ids: Sequence[int], end_ids: Collection[int]) -> tuple[int, ...]:
    return tuple(ids[:-1]) if len(ids) and ids[-1] in end_ids else tuple(ids)
