"""The sweet spot: the alphas that change the answer without degrading it.

For every alpha of a sweep two rates are taken over questions:

- *effect*: how much the answer changes, 1 - (share of the unsteered answer kept); where a concept is
  wanted, how much more of the answer belongs to it than of the unsteered one (at least 0);
- *quality*: the share of answers that are not degenerate and whose mean NLL under the unsteered model
  is at most ``CLOSE_NATS`` above that of the unsteered answer to the same question.

Their harmonic mean is the *score*. An alpha is *good* if its effect is at least ``LEAST_EFFECT`` and its
quality at least ``LEAST_QUALITY`` of the quality at alpha 0. The best alpha is the good one with the
highest score (of equals the one nearest to 0), and the window is the unbroken run of good alphas around
it, in the order of the alphas tried.

Best and window are chosen on the questions of even index and reported on those of odd index, which had no
part in the choice, with bootstrap intervals over questions. Plain arrays in, plain numbers out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastzoo.steering.scoring.scores import CellScores, harmonic_mean

LEAST_EFFECT = 0.2
"""Below this an answer is practically the unsteered one."""

LEAST_QUALITY = 0.8
"""Of the quality at alpha 0."""

CLOSE_NATS = 2.0
"""How far an answer's mean NLL may be above the unsteered one's. The embedded model's answers in another
language or style, all fluent, are up to 2 above."""

RESAMPLES = 2_000

CONFIDENCE = 0.95

LEAST_QUESTIONS = 2


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with the bounds of its 95% bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rates:
    """What one alpha, or one control, does on some questions."""

    effect: Estimate
    quality: Estimate
    score: Estimate


@dataclass(frozen=True)
class Row:
    """The answers of a sweep as arrays. A control may have a single row, at an alpha of its own."""

    alphas: tuple[float, ...]
    effect: np.ndarray
    """(alphas, questions), 0 to 1."""
    quality: np.ndarray
    """(alphas, questions), 0 to 1: of a cell 0 or 1."""

    def __post_init__(self) -> None:
        for name in ("effect", "quality"):
            values = getattr(self, name)
            if values.ndim != 2 or len(values) != len(self.alphas):
                raise ValueError(f"{name} has shape {values.shape} for {len(self.alphas)} alphas")
            if not np.all((values >= 0) & (values <= 1)):  # false for NaN, too
                raise ValueError(f"{name} has values that are not in 0..1")
        if self.effect.shape != self.quality.shape:
            raise ValueError("effect and quality are of different questions")
        if len(set(self.alphas)) != len(self.alphas):
            raise ValueError("an alpha stands twice")


@dataclass(frozen=True)
class SweetSpot:
    """What ``find_sweet_spot`` found. Curves are in the order of ``alphas``, which are sorted."""

    alphas: tuple[float, ...]
    low: float | None
    """The window's smallest alpha; None where there is no window, as ``high`` and ``best``."""
    high: float | None
    best: float | None
    reason: str
    """Why there is no window, or why it does not hold; empty where all is well."""
    holds: bool
    """Whether the best alpha is good on the questions that had no part in the choice, too."""
    chosen_on: tuple[Rates, ...]
    """The curve on the questions of even index."""
    reported: tuple[Rates, ...]
    """The curve on the others; empty where there are none."""
    controls: Mapping[str, Rates]
    """Each control on the same questions as ``reported``: at the best alpha (without one, at that farthest
    from 0), or its only row. Empty where there are none."""

    @property
    def found(self) -> bool:
        return self.best is not None

    @property
    def at_best(self) -> Rates | None:
        """The best alpha on the questions that had no part in the choice."""
        return self.reported[self.alphas.index(self.best)] if self.best is not None else None


def row_of(
    scores: Sequence[CellScores], unsteered: Sequence[CellScores], close_nats: float = CLOSE_NATS
) -> Row:
    """The arrays of one row of a sweep: every question at every alpha, in any order.

    Args:
        unsteered: the alpha-0 scores of each question, by index. With scores of a concept, the effect is
            what it gained.

    Raises:
        ValueError: a cell is missing or stands twice.
    """
    alphas = tuple(sorted({score.alpha for score in scores}))
    effect = np.full((len(alphas), len(unsteered)), np.nan)
    quality = np.full_like(effect, np.nan)
    for score in scores:
        place = alphas.index(score.alpha), score.question
        if not np.isnan(effect[place]):
            raise ValueError(f"question {score.question} at alpha {score.alpha:g} stands twice")
        before = unsteered[score.question]
        if score.concept is None:
            effect[place] = 1 - score.kept
        else:
            effect[place] = max(0.0, score.concept - (before.concept or 0.0))
        quality[place] = float(is_good_answer(score, before, close_nats))
    if np.isnan(effect).any():
        alpha, question = np.argwhere(np.isnan(effect))[0]
        raise ValueError(f"no answer to question {question} at alpha {alphas[alpha]:g}")
    return Row(alphas, effect, quality)


def is_good_answer(
    score: CellScores, unsteered: CellScores, close_nats: float = CLOSE_NATS
) -> bool:
    """Whether an answer counts for quality. Without an NLL of both, not being degenerate is enough."""
    if score.degenerate:
        return False
    if score.nll is None or unsteered.nll is None:
        return True
    return score.nll <= unsteered.nll + close_nats


def find_sweet_spot(
    row: Row,
    controls: Mapping[str, Row] | None = None,
    *,
    least_effect: float = LEAST_EFFECT,
    least_quality: float = LEAST_QUALITY,
    seed: int = 0,
) -> SweetSpot:
    """The window of a latent's sweep, by this module's definition.

    Args:
        row: the latent's answers; alpha 0 must be among them.
        controls: by name (``random``, ``prompting``), with as many questions.

    Raises:
        ValueError: there is no alpha 0, or a control has other questions.
    """
    controls = controls or {}
    if 0.0 not in row.alphas:
        raise ValueError("the sweep lacks alpha 0, which all others are compared with")
    questions = row.effect.shape[1]
    for name, control in controls.items():
        if control.effect.shape[1] != questions:
            raise ValueError(
                f"control {name} has {control.effect.shape[1]} questions of {questions}"
            )
    order = np.argsort(row.alphas)
    alphas = tuple(row.alphas[i] for i in order)
    effect, quality = row.effect[order], row.quality[order]
    even, odd = slice(0, None, 2), slice(1, None, 2)
    chosen_on = _curve(effect[:, even], quality[:, even], seed)
    reported = _curve(effect[:, odd], quality[:, odd], seed)

    def good(curve: Sequence[Rates]) -> list[bool]:
        floor = least_quality * curve[alphas.index(0.0)].quality.value
        return [
            rates.effect.value >= least_effect and rates.quality.value >= floor > 0
            for rates in curve
        ]

    low = high = best = None
    farthest = max(alphas, key=abs)
    holds, reason = False, ""
    chosen = good(chosen_on) if chosen_on else []
    if questions < LEAST_QUESTIONS:
        reason = (
            f"{questions} question{'s' * (questions != 1)}: at least {LEAST_QUESTIONS} are needed, to "
            "choose the window on one half and report it on the other"
        )
    elif not any(chosen):
        reason = _why_none(alphas, chosen_on, least_effect, least_quality)
    else:
        place = max(
            (i for i, is_good in enumerate(chosen) if is_good),
            # Rounded, so that a last bit does not decide between equals.
            key=lambda i: (round(chosen_on[i].score.value, 9), -abs(alphas[i]), alphas[i]),
        )
        first = last = place
        while first > 0 and chosen[first - 1]:
            first -= 1
        while last + 1 < len(alphas) and chosen[last + 1]:
            last += 1
        low, high, best = alphas[first], alphas[last], alphas[place]
        holds = good(reported)[place]
        if not holds:
            rates = reported[place]
            reason = (
                f"alpha {best:g} was best on one half of the questions, but on the other its effect is "
                f"{rates.effect.value:.2f} and its quality {rates.quality.value:.2f}"
            )
    return SweetSpot(
        alphas=alphas,
        low=low,
        high=high,
        best=best,
        reason=reason,
        holds=holds,
        chosen_on=chosen_on,
        reported=reported,
        controls={
            name: _control(control, best if best is not None else farthest, odd, seed)
            for name, control in controls.items()
            if reported
        },
    )


def estimate_rates(effect: np.ndarray, quality: np.ndarray, seed: int = 0) -> Rates:
    """Means over questions (at least one) with bootstrap intervals; the score's is that of the means."""
    draws = np.random.default_rng(seed).integers(0, len(effect), (RESAMPLES, len(effect)))
    effects, qualities = effect[draws].mean(1), quality[draws].mean(1)
    # The harmonic mean of two, 0 where both are.
    scores = 2 * effects * qualities / np.maximum(effects + qualities, np.finfo(float).tiny)
    mean_effect, mean_quality = float(effect.mean()), float(quality.mean())
    return Rates(
        _estimate(mean_effect, effects),
        _estimate(mean_quality, qualities),
        _estimate(harmonic_mean(mean_effect, mean_quality), scores),
    )


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))


def _curve(effect: np.ndarray, quality: np.ndarray, seed: int) -> tuple[Rates, ...]:
    """The rates of each alpha; none without questions."""
    if not effect.shape[1]:
        return ()
    return tuple(estimate_rates(e, q, seed) for e, q in zip(effect, quality, strict=True))


def _control(control: Row, alpha: float, questions: slice, seed: int) -> Rates:
    """A control's only row, or the one nearest to ``alpha``."""
    place = int(np.argmin(np.abs(np.array(control.alphas) - alpha)))
    return estimate_rates(control.effect[place, questions], control.quality[place, questions], seed)


def _why_none(
    alphas: Sequence[float], curve: Sequence[Rates], least_effect: float, least_quality: float
) -> str:
    unsteered = curve[list(alphas).index(0.0)].quality.value
    if unsteered == 0:
        return "the unsteered answers themselves are all degenerate"
    largest = max(rates.effect.value for rates in curve)
    if largest < least_effect:
        return f"no alpha has an effect of {least_effect:g}; the largest is {largest:.2f}"
    whole = [r.effect.value for r in curve if r.quality.value >= least_quality * unsteered]
    return (
        f"every alpha with an effect of {least_effect:g} degrades the answers; those that keep "
        f"{least_quality:.0%} of the unsteered quality have an effect of at most {max(whole):.2f}"
    )
