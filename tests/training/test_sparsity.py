"""The sparsity coefficient: as given, or moved until L0 is as wanted; and a beginning that is sparse."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import training
from torch import Tensor

from fastzoo.saes.names import SAEName
from fastzoo.training import trainer as trainer_module
from fastzoo.training.initialise import Points, new_sae, start_sparse
from fastzoo.training.schedule import Schedule
from fastzoo.training.sparsity import CHECKS, RANGE, START, Sparsity, SparsityControl
from fastzoo.training.trainer import HELD_OUT_SHARE, Trainer

WIDTH, EXPANSION, BATCH = 32, 8, 256
ARCHITECTURES = ["standard", "jumprelu"]

pytestmark = pytest.mark.usefixtures("two_threads")


def points(count: int, seed: int = 0, scale: float = 1.0, summed: float = 6.0) -> Tensor:
    """Sums of so many of 96 directions, about a mean that is not 0."""
    generator = torch.Generator().manual_seed(99)
    directions = torch.nn.functional.normalize(torch.randn(96, WIDTH, generator=generator), dim=1)
    mean = torch.randn(WIDTH, generator=generator)
    generator.manual_seed(seed)
    chosen = torch.rand(count, 96, generator=generator) < summed / 96
    strengths = chosen * (1 + torch.rand(count, 96, generator=generator))
    return scale * (strengths @ directions + mean + 0.05 * torch.randn(count, WIDTH, generator=generator))


def trained(
    l0: float | None, steps: int, scale: float = 1.0, held_out: Tensor | None = None, **changes: object
) -> Trainer:
    section = training("quick", l0=l0, tokens=steps * BATCH, batch_size=BATCH, **changes)
    names = [SAEName("m", 0, EXPANSION, a) for a in ARCHITECTURES]
    sample, cpu = {"L0": points(4096, 1, scale)}, torch.device("cpu")
    unseen = None if held_out is None else {"L0": held_out}
    trainer = Trainer(names, WIDTH, section, sample, seed=0, device=cpu, log_every=10, held_out=unseen)
    for step in range(steps):
        trainer.step({"L0": points(BATCH, 100 + step, scale), "position": torch.arange(BATCH)})
    return trainer


@pytest.mark.parametrize(("l0", "scale"), [(4.0, 1.0), (10.0, 1.0), (10.0, 300.0), (7.0, 0.01)])
def test_a_run_ends_with_the_l0_that_was_wanted(l0: float, scale: float) -> None:
    unseen = points(4096, 7, scale)
    for learner in trained(l0, 300, scale).learners:
        found = (learner.finished().encode(unseen) > 0).sum(1).float().mean().item()
        assert found == pytest.approx(l0, rel=0.1), learner.name
        moved = [row["sparsity_coefficient"] for row in learner.log]
        assert len(set(moved)) > 10, "the log shows λ as it was moved"


@pytest.mark.parametrize(("summed", "l0"), [(4.0, 3.0), (9.0, 10.0)])
def test_l0_is_as_wanted_where_it_is_measured(summed: float, l0: float) -> None:
    """On tokens of another kind than those that are trained on."""
    unseen, same = points(4096, 7, summed=summed), points(4096, 8)
    for learner in trained(l0, 300, held_out=points(2048, 9, summed=summed)).learners:
        sae = learner.finished()
        found, trained_on = ((sae.encode(x) > 0).sum(1).float().mean().item() for x in (unseen, same))
        assert found == pytest.approx(l0, rel=0.1), learner.name
        assert not 0.8 < trained_on / l0 < 1.25, "the same on both kinds: nothing is shown"
        assert learner.log[-1]["l0_held_out"] == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("rows", [20, 2048])
def test_counting_on_held_out_tokens_costs_a_share_of_the_run(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "HELD_OUT_LEAST", 32)
    held_out, seen, plain = points(rows, 9), [], Trainer._l0

    def noted(self: Trainer, x_ND: Tensor, *given: Any) -> float:
        seen.append(x_ND)
        return plain(self, x_ND, *given)

    monkeypatch.setattr(Trainer, "_l0", noted)
    trainer = trained(10.0, 80, held_out=held_out)
    at_start, checks = seen[:2], seen[2:]
    assert [len(x_ND) for x_ND in at_start] == [rows] * 2
    assert len(checks) == 2 * CHECKS, "two SAEs"
    assert sum(map(len, checks)) <= 2 * 1.1 * HELD_OUT_SHARE * 80 * BATCH
    found = torch.cat(checks).unique(dim=0)
    assert len(found) == min(rows, 32 * CHECKS), "each part in its turn"
    assert all("l0_held_out" in learner.log[-1] for learner in trainer.learners)


def test_without_l0_the_coefficient_is_as_given() -> None:
    trainer = trained(None, 40, sparsity_coefficient={"standard": 2.0, "jumprelu": 0.5}, sparsity_width=None)
    for learner, given in zip(trainer.learners, (2.0, 0.5), strict=True):
        for row in learner.log:  # the warm-up is 0.3 of 40 steps
            assert row["sparsity_coefficient"] == pytest.approx(given * min(1.0, row["step"] / 12))


def test_a_controlled_run_repeats_itself() -> None:
    one, other = trained(10.0, 60), trained(10.0, 60)
    for left, right in zip(one.learners, other.learners, strict=True):
        assert torch.equal(left.sae.W_enc, right.sae.W_enc)
        assert left.log[-1]["sparsity_coefficient"] == right.log[-1]["sparsity_coefficient"]


@pytest.mark.parametrize("every", [1, 3])
def test_the_control_goes_on_from_what_a_checkpoint_keeps(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastzoo.training.sparsity.UPDATES", 100 // every)
    schedule = Schedule(100, 1e-3, 1e-4, 0, 0, 0)

    def told(step: int) -> Tensor:
        return torch.tensor([900.0 * (1 + 0.3 * math.sin(step)), 64.0])

    def held_out(step: int, number: int) -> float:
        return 12.0 + math.cos(step)

    whole, first, second = (SparsityControl(10.0, 0.5, schedule) for _ in range(3))
    assert whole.every == every
    for step in range(50):
        whole.after_step(step, told(step), partial(held_out, step))
        (first if step < 23 else second).after_step(step, told(step), partial(held_out, step))
        if step == 22:  # between two counts on held-out tokens, and between two moves of λ
            second.restore(first.plain_state(), None if first.active is None else first.active.clone())
    assert second.coefficient(50) == whole.coefficient(50) != 0.5
    assert second.held_out_l0 == whole.held_out_l0 is not None


def test_the_control_raises_and_lowers_the_coefficient_within_bounds() -> None:
    schedule = Schedule(1000, 1e-3, 1e-4, 0, 0, 0)
    for l0, sign in ((1000.0, 1), (0.0, -1)):
        control = SparsityControl(10.0, 0.5, schedule)
        seen = []
        for step in range(1000):
            control.after_step(step, torch.tensor([l0 * 64, 64.0]))
            seen.append(control.coefficient(step + 1))
        assert all(sign * later >= sign * earlier for earlier, later in pairwise(seen))
        assert seen[-1] == pytest.approx(0.5 * RANGE**sign)


def test_a_short_run_begins_nearer_to_the_wanted_l0() -> None:
    long, short = (SparsityControl(10.0, 0.5, Schedule(n, 3e-3, 3e-4, 0, 0, 0)) for n in (2000, 20))
    assert long.first_l0 == pytest.approx(10 * START)
    assert short.first_l0 is not None and 10 < short.first_l0 < 12
    assert Sparsity(0.5, Schedule(20, 1e-3, 1e-4, 0, 0, 0)).first_l0 is None


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("l0", [3.0, 40.0])
def test_a_sparse_beginning(kind: str, l0: float) -> None:
    """About L0 latents per token, all about as often, and a reconstruction of the right length."""
    sample = points(8000)
    sae = new_sae(kind, WIDTH, 256, training("quick"), torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_dec.copy_(sample.mean(0))
    start_sparse(sae, Points(sample), 1.0, l0)
    x_ND = points(4000, 5)
    active_NF = sae.encode(x_ND) > 0
    assert active_NF.sum(1).float().mean().item() == pytest.approx(l0, rel=0.1)
    share_F = active_NF.float().mean(0)
    assert share_F.min() > 0.2 * l0 / 256 and share_F.max() < 3 * l0 / 256
    centred, found = x_ND - sae.b_dec, sae(x_ND) - sae.b_dec
    assert ((centred * found).sum() / found.square().sum()).item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(sae.b_dec, sample.mean(0))
    assert (found - centred).square().sum() < centred.square().sum()


def test_a_sparse_beginning_leaves_out_what_does_not_count() -> None:
    sample = torch.cat([points(2000), torch.full((20, WIDTH), 1e4)])
    counted = torch.arange(2020) < 2000
    saes = []
    for chosen in (Points(sample, counted), Points(sample[:2000])):
        saes.append(new_sae("jumprelu", WIDTH, 256, training("quick"), torch.Generator().manual_seed(0)))
        start_sparse(saes[-1], chosen, 1.0, 10.0)
    for name, value in saes[0].named_parameters():
        assert torch.equal(value, dict(saes[1].named_parameters())[name])
