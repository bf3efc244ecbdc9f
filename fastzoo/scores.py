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
from typing import Any

import numpy as np

from fastzoo.language import language_share, scripts_jumble, switched_share, words_of
from fastzoo.repeats import (
    distinct,
    longest_immediate_repetition,
    longest_repeated_span,
    longest_run,
    loop_mask,
    repeated_mask,
    rouge_l,
)

Concept = Callable[[str], float]
"""How much of a text belongs to a concept, 0 to 1."""

# --- when an answer is degenerate: each of these alone is enough ----------------------------------

LOOP_SHARE = 0.5
"""Share of the letters in loops: a unit three times or more, one after the other."""

ANY_LOOP_SHARE, ANY_LOOP_CHARACTERS = 0.7, 24
"""Share of all characters (line breaks, digits, signs) in loops, of which one has at least so many:
"1000000" is no loop, and the line under a heading is none that matters."""

ENDLESS_CHARACTERS, ENDLESS_SIGNS = 40, 200
"""A loop of so many characters at the end of an answer that did not end its turn: it was cut off looping.
The second is for loops without a letter or digit, which may be a rule."""

REPEATED_WORDS, REPEATED_SHARE, REPEATED_LENGTH = 8, 0.5, 40
"""Of an answer of at least REPEATED_LENGTH words, the share in spans of REPEATED_WORDS that it had said
before. Words, since tokens of one tokenizer are as short as letters: there, plain code repeats half."""

BABBLE_WINDOW, BABBLE_LENGTH, BABBLE_DISTINCT = 64, 16, 0.125
"""Half of the windows of an answer of at least so many tokens have at most this distinct-1: a handful
of tokens over and over in no fixed order."""

SURPRISING_NATS, SURPRISING_SHARE, SURPRISING_TOKENS = 5.0, 0.25, 3
"""Share, and least number, of tokens to each of which the unsteered model gives less than exp(-5): word
salad. Another language or style surprises only where it begins: at most 0.17 of the tokens of the
embedded model's French, pirate and excited answers, of as few as six tokens."""

SALAD_TOKENS, SALAD_SURPRISING = 12, 6
"""So many surprising ones among so many tokens in a row are salad, however fluent the rest is."""

BROKEN_SHARE = 0.05
"""Share of characters that are no text: control characters, and U+FFFD for bytes that are no UTF-8."""

SWITCHED_SHARE = 0.2
"""Share of the words in another script or language than the unsteered answer's that is a switch."""


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
    """Share of the answer that belongs to the concept, if one was given."""
    fault: str | None
    """Why the answer is degenerate: ``empty``, ``no words``, ``broken characters``, ``loop``,
    ``repeats``, ``babble``, ``jumbled scripts``, ``word salad``; None if it is not."""

    @property
    def degenerate(self) -> bool:
        return self.fault is not None


def concept_of_words(words: Collection[str]) -> Concept:
    """The share of a text's words that are among ``words``, whatever their case."""
    wanted = {part for word in words for part in words_of(word)}

    def share(text: str) -> float:
        said = words_of(text)
        return sum(word in wanted for word in said) / len(said) if said else 0.0

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
    concept: Collection[str] | Concept | None = None,
) -> list[CellScores]:
    """The scores of each cell, in order.

    Args:
        cells: any answers, the unsteered ones among them or not.
        unsteered: the alpha-0 answer of each question, by the question's index.
        model: the language model, which must not be steered while this runs.
        prompts: token ids of each question's prompt, generation prompt included, by its index.
        end_ids: the tokens that end a turn; one at the end of an answer is no part of what is scored.
        concept: words, or a function of a text such as ``concept_of_language("fr")``.
    """
    from fastzoo.likelihood import answer_nlls

    if concept is not None and not callable(concept):
        concept = concept_of_words(concept)
    answers = [_without_end(cell.ids, end_ids) for cell in cells]
    references = [_without_end(cell.ids, end_ids) for cell in unsteered]
    nlls = answer_nlls(model, [prompts[cell.question] for cell in cells], answers)
    return [
        score_cell(
            cell, ids, nll, unsteered[cell.question].text, references[cell.question], concept
        )
        for cell, ids, nll in zip(cells, answers, nlls, strict=True)
    ]


def score_cell(
    cell: Cell,
    ids: Sequence[int],
    nlls: np.ndarray | None,
    unsteered_text: str,
    unsteered_ids: Sequence[int],
    concept: Concept | None = None,
) -> CellScores:
    """The scores of one cell.

    Args:
        ids: the cell's tokens without the end of turn.
        nlls: of each token, in nats; None where no model was asked.
    """
    nll = surprising = None
    if nlls is not None and len(nlls):
        nll = float(np.mean(nlls))
        surprising = float(np.mean(nlls > SURPRISING_NATS))
    switched = switched_share(cell.text, unsteered_text)
    return CellScores(
        question=cell.question,
        alpha=cell.alpha,
        tokens=len(ids),
        ended=cell.ended,
        nll=nll,
        perplexity=None if nll is None else math.exp(min(nll, 690.0)),
        surprising=surprising,
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
        fault=find_fault(cell.text, ids, cell.ended, nlls),
    )


def find_fault(
    text: str, ids: Sequence[int], ended: bool, nlls: np.ndarray | None = None
) -> str | None:
    """Why an answer is degenerate, in a word or two; None if it is not.

    Args:
        ids: without the end of turn.
        nlls: of each token under the unsteered model, in nats; None leaves word salad unseen.
    """
    if not text.strip():
        return "empty"
    broken = sum(
        c == "\ufffd" or (unicodedata.category(c) == "Cc" and c not in "\t\n\r") for c in text
    )
    if broken > 1 and broken / len(text) >= BROKEN_SHARE:  # one may be a character that was cut off
        return "broken characters"
    if not any(c.isalnum() for c in text):
        return "no words"
    if _letters_looping(text) >= LOOP_SHARE or _all_looping(text):
        return "loop"
    if not ended and _cut_off_looping(text):
        return "loop"
    said_before = _repeated(text)
    if len(said_before) >= REPEATED_LENGTH and _share(said_before) >= REPEATED_SHARE:
        return "repeats"
    if len(ids) >= BABBLE_LENGTH and _babble(ids):
        return "babble"
    if scripts_jumble(text):
        return "jumbled scripts"
    if nlls is not None and _salad(nlls > SURPRISING_NATS):
        return "word salad"
    return None


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _repeated(text: str) -> np.ndarray:
    """Which words of a text lie in spans that stood before. A number is a word, and a letter of a script
    that is written without spaces."""
    words = re.findall(
        r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+", text.casefold()
    )
    numbers: dict[str, int] = {}
    return repeated_mask([numbers.setdefault(w, len(numbers)) for w in words], REPEATED_WORDS)


def _cut_off_looping(text: str) -> bool:
    mask = loop_mask(_codes(text))
    length = len(mask) if mask.all() else int(np.argmin(mask[::-1]))
    signs_only = not any(map(str.isalnum, text[len(text) - length :]))
    return length >= (ENDLESS_SIGNS if signs_only else ENDLESS_CHARACTERS)


def _letters_looping(text: str) -> float:
    """Share of the letters in loops of the text.

    A number, a run of punctuation and a run of blanks count as one character each (equal where they
    are), so "1000000" and rules are none. A single letter must stand four times ("Schifffahrt" has
    three).
    """
    symbols: dict[str, int] = {}

    def symbol(match: re.Match[str]) -> str:
        return chr(0xF0000 + min(symbols.setdefault(match[0], len(symbols)), 60_000))

    spaced = re.sub(r"\s+", " ", text.casefold()).strip() + " "
    plain = re.sub(r"\d+|(?:[^\w\s]|_)+", symbol, spaced)
    letters = np.fromiter(map(str.isalpha, plain), dtype=bool, count=len(plain))
    codes = _codes(plain)
    loops = loop_mask(codes, copies=4, longest=1) | loop_mask(codes, shortest=2)
    return _share(loops[letters])


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
    if surprising.sum() < SURPRISING_TOKENS:
        return False
    in_a_row = np.convolve(surprising, np.ones(SALAD_TOKENS, dtype=np.int64))
    return _share(surprising) >= SURPRISING_SHARE or int(in_a_row.max()) >= SALAD_SURPRISING


def _without_end(ids: Sequence[int], end_ids: Collection[int]) -> tuple[int, ...]:
    return tuple(ids[:-1]) if len(ids) and ids[-1] in end_ids else tuple(ids)
