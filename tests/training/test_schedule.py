"""The paper preset and its schedule, against the paper's table and torch's own schedulers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import recipe, training
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from fastzoo.training.schedule import Schedule


def paper() -> Schedule:
    return Schedule.of(training("paper"))


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 4.375e-9), (15_999, 7e-5), (136_000, 3.85e-5), (256_000, 7e-6), (319_999, 1.09375e-10)],
)
def test_learning_rate_of_the_paper(step: int, rate: float) -> None:
    assert paper().learning_rate(step) == pytest.approx(rate, rel=1e-9)


def test_learning_rate_equals_torch_schedulers_chained() -> None:
    """Warm-up, cosine and linear decay as the paper's code chained them, at a thousandth of it."""
    steps, warmup, decay = 320, 16, 64
    schedule = Schedule(steps, 7e-5, 7e-6, warmup, decay, 10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=7e-5)
    phases = [
        LambdaLR(optimizer, lambda step: (step + 1) / warmup),
        CosineAnnealingLR(optimizer, T_max=steps - warmup - decay, eta_min=7e-6),
        LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=decay),
    ]
    scheduler = SequentialLR(optimizer, phases, milestones=[warmup, steps - decay])
    for step in range(steps):
        rate = optimizer.param_groups[0]["lr"]
        if step >= steps - decay:  # LinearLR is chainable: it restarts from the initial rate
            rate *= 7e-6 / 7e-5
        assert schedule.learning_rate(step) == pytest.approx(rate, rel=1e-6), step
        optimizer.step()
        scheduler.step()


def test_learning_rate_never_jumps_and_never_reaches_zero() -> None:
    schedule = paper()
    rates = [schedule.learning_rate(step) for step in range(0, 320_000, 50)]
    assert all(0 < rate <= 7e-5 for rate in rates)
    # A jump would show as a step much larger than the steepest slope of the three phases.
    steepest = 50 * 7e-5 / 16_000
    assert max(abs(a - b) for a, b in pairwise(rates)) <= steepest * 1.01


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.0), (1, 1e-4), (2_500, 0.25), (9_999, 0.9999), (10_000, 1.0)]
)
def test_sparsity_warms_up_linearly(step: int, share: float) -> None:
    assert paper().sparsity_share(step) == pytest.approx(share, rel=1e-12, abs=0)


def test_sparsity_coefficient_stays_once_warm() -> None:
    assert {paper().sparsity_share(step) for step in range(10_000, 320_000, 997)} == {1.0}


def test_shares_of_the_run_are_shares_of_its_steps() -> None:
    section = training(
        "quick", tokens=4_000_000, batch_size=1000, lr_warmup=0.02, lr_decay=0.25, sparsity_warmup=0.3
    )
    schedule = Schedule.of(section)
    assert (schedule.steps, schedule.warmup, schedule.decay) == (4000, 80, 1000)
    assert schedule.sparsity_warmup == 1200
    assert schedule.learning_rate(79) == section.lr
    assert schedule.learning_rate(80) == section.lr
    assert schedule.learning_rate(3000) == pytest.approx(section.lr_end)


def test_no_warmup_no_decay() -> None:
    schedule = Schedule(10, 1.0, 0.1, 0, 0, 0)
    assert schedule.learning_rate(0) == 1.0
    assert schedule.learning_rate(5) == pytest.approx(0.55)
    assert schedule.sparsity_share(0) == 1.0


def test_without_a_cosine_phase_the_decay_starts_from_the_peak() -> None:
    schedule = Schedule(10, 1.0, 0.1, 5, 5, 0)
    assert [schedule.learning_rate(s) for s in range(10)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    )


def test_every_value_of_the_paper_s_table_is_in_the_paper_preset() -> None:
    run = recipe(preset="paper")
    section = run.training
    assert section.tokens == 40_960_000
    assert section.batch_size == 128
    assert section.steps == 320_000
    assert section.adam_betas == [0.9, 0.999]
    assert section.adam_eps == 1e-8
    assert section.clip_norm == 1.0
    assert (section.lr, section.lr_end) == (7e-5, 7e-6)
    assert (section.lr_warmup, section.lr_decay) == (16_000, 64_000)
    assert section.sparsity_coefficient["standard"] == 5
    assert section.sparsity_coefficient["jumprelu"] == 0.01
    assert section.sparsity_warmup == 10_000
    assert section.jumprelu_bandwidth == 0.001
    assert section.jumprelu_initial_threshold == 0.001
    assert section.dead_threshold == 1e-8
    assert section.dead_window == 1_000
    assert section.feature_sampling_window == 2_000
    assert run.seed == 42
    # What the options meant in the code it was trained with.
    assert section.jumprelu_threshold == "log"
    assert section.encoder_init == "independent"
    assert section.b_dec_init == "geometric_median"
    assert section.activation_scale == "none"
    # fast: dialogues are truncated at 8,192 tokens; blocks are 2,048 tokens (all models of the paper have room for it).
    data = run.data.fitted(32_768)
    assert (data.max_tokens, data.block_tokens) == (8192, 2048)
