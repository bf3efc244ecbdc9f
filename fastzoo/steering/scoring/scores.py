"""Scores of a steered answer that need no judge.

A *cell* is one answer of a sweep: a question at an alpha. Its scores compare it with the answer to the
same question at alpha 0 (the unsteered answer) and with how likely the unsteered model finds it. Undefined
ones (the perplexity of an empty answer) are None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastzoo.data.special_tokens import TokenTexts
from fastzoo.steering.scoring.degenerate import (
    BROKEN_NATS,
    SURPRISING_NATS,
    Answer,
    letters_looping,
    repeated_share,
)
from fastzoo.steering.scoring.language import language_share, switched_share, words_of
from fastzoo.steering.scoring.repeats import (
    distinct,
    longest_immediate_repetition,
    longest_repeated_span,
    rouge_l,
)

Concept = Callable[[str], float]
"""How much of a text belongs to a concept, 0 to 1."""

CONCEPT_SHARE = 0.05
"""A text is wholly about the concept if one word in twenty is the concept's."""

SWITCHED_SHARE = 0.2
"""A language switch: this share of the words is in another script or language than the unsteered answer."""


@dataclass(frozen=True)
class Cell:
    """One answer of a sweep."""

    question: int
    """Index of the question."""
    alpha: float
    ids: tuple[int, ...]
    """The answer's tokens without padding, with or without the one that ended the turn."""
    ended: bool
    """Whether the model ended its turn (else it was cut off)."""
    text: str
    arm: str = "latent"
    """What it was steered by: one of ``rows.ARMS``."""


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
    """Share of tokens to which the unsteered model gives less than exp(-SURPRISING_NATS)."""
    broken_words: int | None
    """Words with a continuation to which the unsteered model gives less than exp(-BROKEN_NATS)."""
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    longest_repeated: int
    """Length of the longest span at two places, which may overlap."""
    repeated: float
    """Share of the words in spans of REPEATED_WORDS words that were said before."""
    longest_same: int
    """Length of the longest run of one token."""
    looping: float
    """Share of the letters in loops."""
    switched: float
    """Share of the words in another script or language than the unsteered answer's."""
    language_switch: bool
    kept: float
    """ROUGE-L (F1) of the tokens with those of the unsteered answer."""
    concept: float | None
    fault: str | None
    """Why the answer is degenerate: a name in ``degenerate.FAULTS``; None if it is not."""

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
    end_ids: Collection[int] = (),
    tokenizer: Any = None,
    concept: Concept | None = None,
) -> list[CellScores]:
    """The scores of each cell, in order.

    Args:
        unsteered: the alpha-0 answer of each question, by the question's index.
        model: the language model, which must not be steered while this runs.
        prompts: token ids of each question's prompt, generation prompt included, by its index.
        end_ids: the tokens that end a turn; one at the end of an answer is not scored.
        tokenizer: without it neither special tokens, which an answer's text does not show, nor broken words are
            seen. A special token that no unsteered answer has is a fault.
    """
    from fastzoo.lm.likelihood import answer_nlls

    answers = [_without_end(cell.ids, end_ids) for cell in cells]
    references = [_without_end(cell.ids, end_ids) for cell in unsteered]
    nlls = answer_nlls(model, [prompts[cell.question] for cell in cells], answers)
    strays = set() if tokenizer is None else set(tokenizer.all_special_ids).difference(*references)
    texts = None if tokenizer is None else TokenTexts(tokenizer)
    scores = []
    for cell, ids, nll in zip(cells, answers, nlls, strict=True):
        before, inside = unsteered[cell.question].text, texts.inside_words(ids) if texts else None
        scores.append(score_cell(cell, ids, nll, before, references[cell.question], concept, strays, inside))
    return scores


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
        nlls: of each token, in nats; None where no model was asked. If one is not finite, since the model
            overflowed, none of them counts.
        strays: tokens that no answer should have.
        inside: which tokens go on with a word; see ``TokenTexts.inside_words``.
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
        repeated=repeated_share(cell.text),
        longest_same=longest_immediate_repetition(ids),
        looping=letters_looping(cell.text),
        switched=switched,
        language_switch=switched >= SWITCHED_SHARE,
        kept=rouge_l(ids, unsteered_ids),
        concept=None if concept is None else concept(cell.text),
        fault=Answer(cell.text, ids, cell.ended, nlls, strays, broken_words or 0).fault,
    )


def _without_end(ids: Sequence[int], end_ids: Collection[int]) -> tuple[int, ...]:
    return tuple(ids[:-1]) if len(ids) and ids[-1] in end_ids else tuple(ids)


def harmonic_mean(*values: float) -> float:
    """0 where one of the values is 0."""
    return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0
