"""The trainer: SAEs side by side, one by one, and one that fails."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from conftest import training

from fastzoo import trainer as trainer_module
from fastzoo.buffer import Columns
from fastzoo.errors import TrainingError
from fastzoo.names import SAEName
from fastzoo.trainer import Learner, Trainer

NAMES = [SAEName("m", layer, 4, a) for layer in (0, 2) for a in ("standard", "jumprelu")]
BATCH = 64


pytestmark = pytest.mark.usefixtures("two_threads")


def batches(count: int) -> list[Columns]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "L0": torch.randn(BATCH, 12, generator=generator),
            "L2": torch.randn(BATCH, 12, generator=generator) * 3 + 1,
            "position": torch.arange(BATCH),
        }
        for _ in range(count)
    ]


def new_trainer(names: list[SAEName] = NAMES) -> Trainer:
    section = training("quick", batch_size=BATCH, tokens=BATCH * 40)
    sample = batches(1)[0]
    return Trainer(names, 12, section, sample, seed=0, device=torch.device("cpu"), log_every=5)


def same(one: Learner, other: Learner) -> bool:
    left, right = one.sae.state_dict(), other.sae.state_dict()
    rows = [
        [{k: v for k, v in r.items() if "second" not in k} for r in x.log] for x in (one, other)
    ]
    return rows[0] == rows[1] and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_side_by_side_or_one_by_one_the_saes_are_the_same(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    together = new_trainer()
    for batch in batches(20):
        together.step(batch)
    torch.set_num_threads(1)
    monkeypatch.setattr(trainer_module, "SIDE_BY_SIDE_UP_TO", 0)
    alone = new_trainer()
    for batch in batches(20):
        alone.step(batch)
    assert [x.name for x in together.learners] == NAMES
    assert all(map(same, together.learners, alone.learners))
    # And they are those of a trainer that owns nothing else.
    for i, name in enumerate(NAMES):
        single = new_trainer([name])
        for batch in batches(20):
            single.step(batch)
        assert same(single.learners[0], alone.learners[i])


@pytest.mark.parametrize("threads", [1, 2])
def test_an_sae_whose_gradient_is_not_finite_ends_training_as_it_was(threads: int) -> None:
    torch.set_num_threads(threads)
    trainer = new_trainer()
    for batch in batches(7):
        trainer.step(batch)
    before = [{n: t.clone() for n, t in x.sae.state_dict().items()} for x in trainer.learners]
    bad = batches(8)[7]
    bad["L2"][3, 1] = float("nan")
    with pytest.raises(TrainingError, match=r"^step 7: the gradient of m-L2-4x-\w+ is NaN"):
        trainer.step(bad)
    for learner, state in zip(trainer.learners, before, strict=True):
        if learner.name.layer == 2:
            assert all(torch.equal(learner.sae.state_dict()[n], t) for n, t in state.items())
    assert trainer.step_number == 7


def test_a_trainer_without_saes_counts_steps_all_the_same() -> None:
    trainer = new_trainer([])
    assert [trainer.step(batch) for batch in batches(5)] == [False] * 4 + [True]
    assert trainer.step_number == 5


def test_no_sae_is_left_in_the_middle_of_a_step_when_another_fails() -> None:
    trainer = new_trainer()
    trainer.step(batches(1)[0])
    ended = []
    slow = trainer.learners[-1].step

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.3)
        ended.append(slow(*arguments))
        return ended[-1]

    trainer.learners[-1].step = slowly  # type: ignore[assignment]
    slowly.side_by_side = True  # type: ignore[attr-defined]
    bad = batches(2)[1]
    bad["L0"][0, 0] = float("nan")
    with pytest.raises(TrainingError):
        trainer.step(bad)
    assert len(ended) == 1
