"""The sweet spot: the alphas that change the answer without degrading it.

For every alpha of a sweep two rates are taken over questions:

- *effect*: how much the answer changes, 1 - (share of the unsteered answer kept); where a concept is
  wanted, how much more of the answer belongs to it than of the unsteered one (at least 0);
- *quality*: the share of answers that are not degenerate and whose mean NLL under the unsteered model
  is at most ``CLOSE_NATS`` above that of the unsteered answer to the same question.

Their harmonic mean is the *score*. An alpha is *good* if its effect is at least ``LEAST_EFFECT`` and its
quality at least ``LEAST_QUALITY`` of the quality at alpha 0. The best alpha is the good one with the
highest score (of equals the one nearest to 0), and the window is the unbroken run of good alphas around
it. Both are chosen on the questions of even index and reported, with bootstrap intervals over
questions, on those of odd index, which had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastzoo.steering.scoring.scores import CellScores, harmonic_mean

LEAST_EFFECT = 0.2
"""Below this an answer is practically the unsteered one."""

LEAST_QUALITY = 0.8
"""As a share of the quality at alpha 0."""

CLOSE_NATS = 2.0
"""How far an answer's mean NLL may be above the unsteered one's. Fitted on the embedded toy model, whose
fluent answers in another language or style are up to 2 above."""

RESAMPLES, CONFIDENCE = 2_000, 0.95

EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
"""The questions that choose, and those that report."""


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
class ArmRates:
    """Effect and quality of every answer of one arm: (alphas, questions), 0 to 1. A control may have a single alpha
    of its own."""

    alphas: tuple[float, ...]
    effect: np.ndarray
    quality: np.ndarray

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

    def means(self, questions: slice, seed: int) -> tuple[Rates, ...]:
        """The rates of each alpha on some of the questions; empty where there are none."""
        pairs = zip(self.effect[:, questions], self.quality[:, questions], strict=True)
        return tuple(estimate_rates(effect, quality, seed) for effect, quality in pairs if len(effect))

    def nearest(self, alpha: float, seed: int) -> Rates:
        """The rates at the alpha nearest to one, on the questions that report."""
        place = int(np.argmin(np.abs(np.array(self.alphas) - alpha)))
        return estimate_rates(self.effect[place, ODD], self.quality[place, ODD], seed)

    def in_order(self) -> ArmRates:
        order = np.argsort(self.alphas)
        return ArmRates(tuple(self.alphas[i] for i in order), self.effect[order], self.quality[order])


@dataclass(frozen=True)
class SweetSpot:
    """What ``find_sweet_spot`` found. Curves are in the order of ``alphas``, which are sorted."""

    alphas: tuple[float, ...]
    low: float | None
    """The window's smallest alpha; this and the next two are None without a window."""
    high: float | None
    best: float | None
    reason: str
    """Why there is no window, or why it does not hold; empty where all is well."""
    holds: bool
    """Whether the best alpha is also good on the questions that had no part in the choice."""
    chosen_on: tuple[Rates, ...]
    reported: tuple[Rates, ...]
    """The curves on the questions of even index, and on the others; empty where there are none."""
    controls: Mapping[str, Rates]
    """Each control on the same questions as ``reported``: at its alpha nearest to the best one (or, without
    one, to that farthest from 0). Empty where there are none."""

    @property
    def found(self) -> bool:
        return self.best is not None

    @property
    def at_best(self) -> Rates | None:
        """The best alpha on the questions that had no part in the choice."""
        return self.reported[self.alphas.index(self.best)] if self.best is not None else None


def rates_of(scores: Sequence[CellScores], unsteered: Sequence[CellScores]) -> ArmRates:
    """The arrays of one arm: every question at every alpha, in any order.

    ``unsteered`` are the alpha-0 scores of each question, by index. With scores of a concept, the effect is what it
    gained. Raises ValueError if a cell is missing or stands twice.
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
        quality[place] = float(is_good_answer(score, before))
    if np.isnan(effect).any():
        alpha, question = np.argwhere(np.isnan(effect))[0]
        raise ValueError(f"no answer to question {question} at alpha {alphas[alpha]:g}")
    return ArmRates(alphas, effect, quality)


def is_good_answer(score: CellScores, unsteered: CellScores) -> bool:
    """Whether an answer counts for quality. Without an NLL of both, not being degenerate is enough."""
    close = score.nll is None or unsteered.nll is None or score.nll <= unsteered.nll + CLOSE_NATS
    return close and not score.degenerate


def find_sweet_spot(
    latent: ArmRates, controls: Mapping[str, ArmRates] | None = None, *, seed: int = 0
) -> SweetSpot:
    """The window of a latent's sweep, by this module's definition. Raises ValueError if there is no alpha 0, or if a
    control, by name (``random``, ``prompting``), has other questions."""
    if 0.0 not in latent.alphas:
        raise ValueError("the sweep lacks alpha 0, which all others are compared with")
    questions = latent.effect.shape[1]
    controls = controls or {}
    for name, control in controls.items():
        if (others := control.effect.shape[1]) != questions:
            raise ValueError(f"control {name} has {others} questions of {questions}")
    latent = latent.in_order()
    alphas = latent.alphas
    chosen_on, reported = latent.means(EVEN, seed), latent.means(ODD, seed)
    low = high = best = None
    reason = _why_none(alphas, chosen_on, questions)
    if not reason:
        good = _good(alphas, chosen_on)
        # Rounded, so that a last bit does not decide between equals.
        ranks = [
            (round(rates.score.value, 9), -abs(a), a) for rates, a in zip(chosen_on, alphas, strict=True)
        ]
        place = max((i for i, is_good in enumerate(good) if is_good), key=ranks.__getitem__)
        # The unbroken run of good alphas around the best one.
        first = max((i + 1 for i in range(place) if not good[i]), default=0)
        last = min((i - 1 for i in range(place, len(good)) if not good[i]), default=len(good) - 1)
        low, high, best = alphas[first], alphas[last], alphas[place]
        reason = _why_it_fails(place, alphas, reported)
    at = max(alphas, key=abs) if best is None else best
    beside = {name: control.nearest(at, seed) for name, control in controls.items() if reported}
    return SweetSpot(alphas, low, high, best, reason, not reason, chosen_on, reported, beside)


def _good(alphas: Sequence[float], curve: Sequence[Rates]) -> list[bool]:
    """Which alphas are good."""
    floor = LEAST_QUALITY * curve[alphas.index(0.0)].quality.value
    return [rates.effect.value >= LEAST_EFFECT and rates.quality.value >= floor > 0 for rates in curve]


def _why_it_fails(place: int, alphas: Sequence[float], curve: Sequence[Rates]) -> str:
    """Why the best alpha is not good on the other questions; empty where it is."""
    if _good(alphas, curve)[place]:
        return ""
    rates = curve[place]
    return (
        f"alpha {alphas[place]:g} was best on one half of the questions, but on the other its effect is "
        f"{rates.effect.value:.2f} and its quality {rates.quality.value:.2f}"
    )


def _why_none(alphas: Sequence[float], curve: Sequence[Rates], questions: int) -> str:
    """Why there is no window; empty where there is one."""
    if questions < 2:
        need = "at least 2 are needed, to choose the window on one half and report it on the other"
        return f"{questions} question{'s' * (questions != 1)}: {need}"
    if any(_good(alphas, curve)):
        return ""
    unsteered = curve[alphas.index(0.0)].quality.value
    if unsteered == 0:
        return "the unsteered answers themselves are all degenerate"
    largest = max(rates.effect.value for rates in curve)
    if largest < LEAST_EFFECT:
        return f"no alpha has an effect of {LEAST_EFFECT:g}; the largest is {largest:.2f}"
    whole = [r.effect.value for r in curve if r.quality.value >= LEAST_QUALITY * unsteered]
    return (
        f"every alpha with an effect of {LEAST_EFFECT:g} degrades the answers; those that keep "
        f"{LEAST_QUALITY:.0%} of the unsteered quality have an effect of at most {max(whole):.2f}"
    )


def estimate_rates(effect: np.ndarray, quality: np.ndarray, seed: int = 0) -> Rates:
    """Means over questions (at least one) with bootstrap intervals; the score's is that of the means."""
    draws = np.random.default_rng(seed).integers(0, len(effect), (RESAMPLES, len(effect)))
    effects, qualities = effect[draws].mean(1), quality[draws].mean(1)
    # The harmonic mean of two, 0 where both are.
    scores = 2 * effects * qualities / np.maximum(effects + qualities, np.finfo(float).tiny)
    means = float(effect.mean()), float(quality.mean())
    values = zip((*means, harmonic_mean(*means)), (effects, qualities, scores), strict=True)
    tail = (1 - CONFIDENCE) / 2
    return Rates(
        *(Estimate(value, *np.quantile(drawn, (tail, 1 - tail)).tolist()) for value, drawn in values)
    )
