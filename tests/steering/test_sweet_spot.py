"""The sweet spot: found where it is known to be, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastzoo.steering.scoring.scores import Cell, CellScores, harmonic_mean, score_cell
from fastzoo.steering.sweet_spot import (
    CLOSE_NATS,
    LEAST_EFFECT,
    LEAST_QUALITY,
    ArmRates,
    SweetSpot,
    estimate_rates,
    find_sweet_spot,
    rates_of,
)

ALPHAS = (0.0, 15.0, 25.0, 50.0, 100.0, 150.0, 200.0)
EFFECT = (0.0, 0.05, 0.3, 0.5, 0.7, 0.9, 1.0)
QUALITY = (1.0, 1.0, 1.0, 1.0, 0.9, 0.2, 0.0)


def made_up(
    effect: Any = EFFECT, quality: Any = QUALITY, alphas: Any = ALPHAS, questions: int = 10
) -> ArmRates:
    """The same for all questions, quality as a share of those of each half."""
    rank = np.arange(questions) // 2  # within its half
    halves = max(1, questions // 2)
    good = (rank[None] + 0.5) / halves < np.array(quality)[:, None]
    return ArmRates(
        tuple(alphas), np.repeat(np.array(effect, dtype=float)[:, None], questions, 1), good.astype(float)
    )


def test_a_known_window_is_found_and_reported_on_the_other_half() -> None:
    random = made_up(effect=[0, 0, 0, 0.01, 0.02, 0.6, 1], quality=[1, 1, 1, 1, 1, 0.2, 0])
    prompting = made_up(effect=[0.8], quality=[1.0], alphas=[0.0])
    spot = find_sweet_spot(made_up(), {"random": random, "prompting": prompting})
    assert (spot.low, spot.best, spot.high) == (25, 100, 100)
    assert spot.found and spot.holds and spot.reason == ""
    assert spot.at_best is spot.reported[ALPHAS.index(100)]
    assert spot.at_best.effect.value == pytest.approx(0.7)
    assert spot.at_best.quality.value == pytest.approx(0.8)  # 4 of 5
    assert spot.controls["random"].effect.value == pytest.approx(0.02)
    assert spot.controls["prompting"].score.value == pytest.approx(harmonic_mean(0.8, 1))
    assert len(spot.chosen_on) == len(spot.reported) == len(ALPHAS)
    json.dumps(asdict(spot), allow_nan=False)


def test_the_window_is_the_unbroken_run_around_the_best() -> None:
    quality = [1, 1, 1, 0.2, 1, 1, 0]  # 50 degrades
    spot = find_sweet_spot(made_up(quality=quality))
    assert (spot.low, spot.best, spot.high) == (100, 150, 150)
    spot = find_sweet_spot(made_up(quality=[1, 1, 1, 0.2, 0.2, 0.2, 0]))
    assert (spot.low, spot.best, spot.high) == (25, 25, 25)


def test_alphas_may_come_in_any_order_and_be_negative() -> None:
    order = [3, 0, 6, 1, 5, 2, 4]
    alphas = [-a for a in ALPHAS]
    row = made_up([EFFECT[i] for i in order], [QUALITY[i] for i in order], [alphas[i] for i in order])
    spot = find_sweet_spot(row)
    assert spot.alphas == tuple(sorted(alphas))
    assert (spot.low, spot.best, spot.high) == (-100, -100, -25)


def test_of_equals_the_alpha_nearest_to_zero_is_best() -> None:
    spot = find_sweet_spot(made_up([0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [1] * 7))
    assert (spot.low, spot.best, spot.high) == (15, 15, 200)
    both = made_up([0.5, 0, 0.5], [1, 1, 1], [-10.0, 0.0, 10.0])
    assert find_sweet_spot(both).best == 10


@pytest.mark.parametrize(
    ("effect", "quality", "reason"),
    [
        ([0, 0, 0.01, 0.02, 0.02, 0.1, 0.1], [1] * 7, "the largest is 0.10"),
        (EFFECT, [1, 0, 0, 0, 0, 0, 0], "degrades the answers"),
        ([0, 0.1, 0.15, 0.9, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], "effect of at most 0.15"),
        (EFFECT, [0] * 7, "the unsteered answers themselves"),
    ],
)
def test_there_may_be_none(effect: Any, quality: Any, reason: str) -> None:
    random = made_up(quality=[1] * 7)
    spot = find_sweet_spot(made_up(effect, quality), {"random": random})
    assert (spot.low, spot.best, spot.high, spot.at_best) == (None, None, None, None)
    assert not spot.found and not spot.holds and reason in spot.reason
    assert spot.controls["random"].effect.value == 1  # at the largest alpha
    other = [-alpha for alpha in ALPHAS]
    spot = find_sweet_spot(
        made_up(effect, quality, other), {"random": made_up(quality=[1] * 7, alphas=other)}
    )
    assert spot.best is None and spot.controls["random"].effect.value == 1


def test_a_window_that_only_one_half_has_does_not_hold() -> None:
    row = made_up()
    quality = row.quality.copy()
    quality[1:, 1::2] = 0
    spot = find_sweet_spot(replace(row, quality=quality))
    assert spot.best == 100 and not spot.holds
    assert "on the other its effect is 0.70 and its quality 0.00" in spot.reason
    # The other half has no say in the choice.
    effect = row.effect.copy()
    effect[:, 1::2] = 0
    assert find_sweet_spot(replace(row, effect=effect)).best == find_sweet_spot(row).best


def test_one_question_is_too_few_and_two_are_enough() -> None:
    spot = find_sweet_spot(made_up(questions=1), {"random": made_up(questions=1)})
    assert not spot.found and "1 question:" in spot.reason
    assert spot.reported == () and spot.controls == {}
    assert "0 questions:" in find_sweet_spot(made_up(questions=0)).reason
    spot = find_sweet_spot(made_up(questions=2, quality=[1, 1, 1, 1, 1, 0, 0]))
    assert (spot.low, spot.best, spot.high, spot.holds) == (25, 100, 100, True)
    assert spot.at_best is not None
    assert spot.at_best.effect.low == spot.at_best.effect.high == pytest.approx(0.7)


def test_intervals_are_those_of_the_bootstrap_and_repeat() -> None:
    rng = np.random.default_rng(5)
    effect, quality = rng.random(200), (rng.random(200) < 0.7).astype(float)
    rates = estimate_rates(effect, quality, seed=3)
    assert rates == estimate_rates(effect, quality, seed=3)
    assert rates != estimate_rates(effect, quality, seed=4)
    for estimate, values in ((rates.effect, effect), (rates.quality, quality)):
        assert estimate.value == pytest.approx(values.mean())
        half = 1.96 * values.std() / np.sqrt(len(values))
        assert estimate.low == pytest.approx(values.mean() - half, abs=0.15 * half)
        assert estimate.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert rates.score.low < rates.score.value < rates.score.high
    nothing = estimate_rates(np.zeros(3), np.zeros(3))
    assert nothing.score.value == nothing.score.low == nothing.score.high == 0


shares = st.floats(0, 1)


@given(st.data())
def test_whatever_comes_in_the_definition_holds(data: Any) -> None:
    questions = data.draw(st.integers(0, 7))
    alphas = data.draw(st.lists(st.integers(-5, 5), unique=True, max_size=6).map(lambda a: {*a, 0}))

    def table(values: Any) -> np.ndarray:
        flat = data.draw(st.lists(values, min_size=len(alphas) * questions, max_size=len(alphas) * questions))
        return np.array(flat, dtype=float).reshape(len(alphas), questions)

    row = ArmRates(tuple(float(a) for a in alphas), table(shares), table(st.sampled_from([0, 1])))
    spot = find_sweet_spot(row, {"random": row})
    json.dumps(asdict(spot), allow_nan=False)
    assert spot.found or spot.reason
    assert bool(spot.reason) != spot.holds
    if not spot.found:
        return
    assert spot.low is not None and spot.high is not None and spot.best is not None
    assert spot.low <= spot.best <= spot.high
    floor = LEAST_QUALITY * spot.chosen_on[spot.alphas.index(0.0)].quality.value
    for alpha, rates in zip(spot.alphas, spot.chosen_on, strict=True):
        good = rates.effect.value >= LEAST_EFFECT and rates.quality.value >= floor
        if spot.low <= alpha <= spot.high:
            assert good
        if good:
            best = spot.chosen_on[spot.alphas.index(spot.best)]
            assert rates.score.value <= best.score.value + 1e-9
    assert spot.controls["random"] == spot.at_best


def test_what_is_no_sweep_is_refused() -> None:
    row = made_up()
    with pytest.raises(ValueError, match="lacks alpha 0"):
        find_sweet_spot(ArmRates((1.0,), np.ones((1, 4)), np.ones((1, 4))))
    with pytest.raises(ValueError, match="control random has 4 questions of 10"):
        find_sweet_spot(row, {"random": made_up(questions=4)})
    with pytest.raises(ValueError, match=r"0\.\.1"):
        replace(row, effect=np.where(row.effect > 0.9, np.nan, row.effect))
    with pytest.raises(ValueError, match="twice"):
        ArmRates((1.0, 1.0), np.ones((2, 1)), np.ones((2, 1)))


# --- from scores to arrays -----------------------------------------------------------------------


def scores(question: int, alpha: float, text: str, **changes: Any) -> CellScores:
    ids = tuple(map(ord, text))
    cell = Cell(question, alpha, ids, True, text)
    return replace(score_cell(cell, ids, None, "The owl eats.", tuple(map(ord, "The owl eats."))), **changes)


def test_rows_are_made_of_scores() -> None:
    before = [scores(q, 0.0, "The owl eats.", nll=0.1) for q in range(2)]
    cells = [
        *before,
        scores(0, 5.0, "The owl sings.", nll=0.1 + CLOSE_NATS),
        scores(1, 5.0, "The owl sings.", nll=0.2 + CLOSE_NATS),
        scores(0, 9.0, "the " * 9),
        scores(1, 9.0, "Something else."),
    ]
    row = rates_of(cells[::-1], before)
    assert row.alphas == (0, 5, 9)
    assert row.quality.tolist() == [[1, 1], [1, 0], [0, 1]]
    assert row.effect[0].tolist() == [0, 0] and 0 < row.effect[1, 0] < row.effect[2, 0] < 1
    with pytest.raises(ValueError, match="question 1 at alpha 9 stands twice"):
        rates_of([*cells, cells[-1]], before)
    with pytest.raises(ValueError, match="no answer to question 1 at alpha 9"):
        rates_of(cells[:-1], before)


def test_with_a_concept_the_effect_is_what_it_gained() -> None:
    before = [scores(0, 0.0, "The owl eats.", concept=0.2)]
    cells = [*before, scores(0, 5.0, "Owl!", concept=0.9), scores(0, 9.0, "It.", concept=0.1)]
    assert rates_of(cells, before).effect[:, 0].tolist() == pytest.approx([0, 0.7, 0])
    assert isinstance(find_sweet_spot(rates_of(cells, before)), SweetSpot)
