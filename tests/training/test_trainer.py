"""The trainer: SAEs side by side, one by one, and one that fails."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import pytest
import torch
from conftest import training

from fastzoo.config.recipe import ComputeSection
from fastzoo.core.errors import TrainingError
from fastzoo.lm.activations import Columns
from fastzoo.saes.names import SAEName
from fastzoo.training import trainer as trainer_module
from fastzoo.training.learner import Learner
from fastzoo.training.trainer import Trainer, sink_share

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
    rows = [[{k: v for k, v in r.items() if "second" not in k} for r in x.log] for x in (one, other)]
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


# --- attention sinks -----------------------------------------------------------------------------


def with_sinks(count: int) -> list[Columns]:
    """Batches in which three rows of layer 2 have a norm a hundred times that of the others."""
    found = batches(count)
    for i, batch in enumerate(found):
        batch["L2"][[i % 5, 20, 40 + i % 7]] *= 100
    return found


@pytest.mark.parametrize("sinks", ["train", "skip"])
def test_the_log_tells_sinks_apart_where_they_are_trained_on(
    sinks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = training("quick", batch_size=BATCH, tokens=BATCH * 40, sinks=sinks)
    cpu, data = torch.device("cpu"), with_sinks(11)
    trainer = Trainer(NAMES, 12, section, data[0], seed=0, device=cpu, log_every=5)
    for batch in data[:10]:
        trainer.step(batch)
    before = [learner.sae.finished() for learner in trainer.learners]
    told: dict[SAEName, list[float]] = {}
    for learner in trainer.learners:
        told_here = partial(told.__setitem__, learner.name)
        monkeypatch.setattr(
            learner.sparsity, "after_step", lambda _, active, __, to=told_here: to(active.tolist())
        )
    trainer.log_every = 1
    trainer.step(data[10])
    for learner, sae in zip(trainer.learners, before, strict=True):
        last = learner.log[-1]
        if sinks == "skip" or learner.name.layer == 0:
            assert last["l0_without_sinks"] == last["l0"]
            assert last["fvu_without_sinks"] == pytest.approx(last["fvu"], rel=1e-5)
            continue
        x_BD = data[10]["L2"] * learner.scale
        sink_B = data[10]["L2"].norm(dim=1) > learner.sinks.norm
        assert sink_B.sum() == 3
        acts_BF = sae.encode(x_BD)
        error_B = (sae.decode(acts_BF) - x_BD).square().sum(1)

        def fvu(rows_B: torch.Tensor, x_BD: torch.Tensor = x_BD, error_B: torch.Tensor = error_B) -> float:
            usual_ND = x_BD[rows_B]
            return float(error_B[rows_B].sum() / (usual_ND - usual_ND.mean(0)).square().sum())

        assert last["l0_without_sinks"] == pytest.approx(float((acts_BF[~sink_B] > 0).sum(1).float().mean()))
        # And what moves the coefficient is the L0 without sinks.
        assert told[learner.name] == [(acts_BF[~sink_B] > 0).sum().item(), BATCH - 3]
        assert last["l0"] == pytest.approx(float((acts_BF > 0).sum(1).float().mean()))
        assert last["fvu_without_sinks"] == pytest.approx(fvu(~sink_B), rel=1e-3)
        assert last["fvu"] == pytest.approx(fvu(sink_B | True), rel=1e-3)
    assert ("with sinks" in trainer.note()) == (sinks == "train")


@pytest.mark.parametrize("sinks", ["train", "skip"])
def test_l0_on_held_out_tokens_leaves_sinks_out(sinks: str) -> None:
    section = training("quick", batch_size=BATCH, tokens=BATCH * 40, sinks=sinks)
    data = with_sinks(4)
    unseen = {name: torch.cat([column] * 12) for name, column in data[3].items()}  # more than a chunk
    trainer = Trainer(
        NAMES, 12, section, data[0], seed=0, device=torch.device("cpu"), log_every=1, held_out=unseen
    )
    for batch in data[:3]:
        trainer.step(batch)
    for learner in trainer.learners:
        x_ND = data[3][f"L{learner.name.layer}"]
        usual_ND = x_ND[x_ND.norm(dim=1) <= learner.sinks.norm]
        assert len(usual_ND) == BATCH - (3 if learner.name.layer == 2 else 0)
        l0 = (learner.finished().encode(usual_ND) > 0).sum(1).float().mean().item()
        assert learner.log[-1]["l0_held_out"] == pytest.approx(l0, abs=0.05)
        assert learner.log[-1]["l0_held_out"] != pytest.approx(learner.log[-1]["l0_without_sinks"], abs=0.05)


def test_more_sinks_than_a_sixteenth_of_a_batch_count_as_usual() -> None:
    sae = new_trainer().learners[0].sae
    x_BD = torch.randn(32, 12, generator=torch.Generator().manual_seed(1))
    x_BD[:3] *= torch.tensor([100.0, 300.0, 200.0])[:, None]
    error, active, count, variance = sink_share(sae, x_BD, 50.0).tolist()
    acts_BF = sae.encode(x_BD[1:3])  # the two largest of three
    assert count == 2 and active == (acts_BF > 0).sum().item()
    assert error == pytest.approx((sae.decode(acts_BF) - x_BD[1:3]).square().sum().item(), rel=1e-5)
    usual_ND = torch.cat([x_BD[:1], x_BD[3:]])
    assert variance == pytest.approx((usual_ND - usual_ND.mean(0)).square().sum().item(), rel=1e-4)


# --- saving --------------------------------------------------------------------------------------

WINDOW = 7
"""Steps of a feature-sampling window; a log row is written after every fifth step."""


def made(step: str, preset: str, names: list[SAEName] = NAMES, sample: Columns | None = None) -> Trainer:
    more: dict[str, Any] = {"feature_sampling_window": WINDOW, "dead_window": 3}
    if preset == "paper":
        more |= {"lr_warmup": 3, "lr_decay": 5, "sparsity_warmup": 8, "lr": 1e-3}
    section = training(preset, batch_size=BATCH, tokens=BATCH * 24, **more)
    compute = ComputeSection.model_validate({"step": step})
    cpu, unseen = torch.device("cpu"), batches(2)[1]
    return Trainer(
        names, 12, section, sample, seed=0, device=cpu, log_every=5, compute=compute, held_out=unseen
    )


def all_of(trainer: Trainer) -> tuple[Any, dict[str, torch.Tensor]]:
    """State without the timing: plain data, and every tensor by name."""
    plain = [trainer.step_number]
    tensors = {}
    for learner in trainer.learners:
        own = learner.plain_state()
        log = [{k: v for k, v in row.items() if "second" not in k} for row in own.pop("log")]
        plain.append([own, log])
        for group, found in learner.tensors():
            tensors |= {f"{learner.name}/{group}/{n}": t.clone() for n, t in found.items()}
    return plain, tensors


def same_state(one: Trainer, other: Trainer) -> None:
    (plain, tensors), (other_plain, other_tensors) = all_of(one), all_of(other)
    assert plain == other_plain and tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == other_tensors[name].dtype
        assert torch.equal(tensor, other_tensors[name]), name


@pytest.mark.parametrize("preset", ["quick", "paper"])
@pytest.mark.parametrize("step", ["reference", "sparse"])
@pytest.mark.parametrize("at", [1, 4, 5, 7, 11, 14, 23])
def test_a_trainer_goes_on_from_its_state_as_if_nothing_had_been(step: str, preset: str, at: int) -> None:
    """Within a log interval and a window, and at the ends of both."""
    whole = made(step, preset, sample=batches(1)[0])
    for batch in batches(at):
        whole.step(batch)
    plain = json.loads(json.dumps(whole.plain_state()))
    saved = {}
    for learner in whole.learners:
        groups = {
            group: {n: t.clone(memory_format=torch.contiguous_format) for n, t in found.items()}
            for group, found in learner.tensors()
        }
        saved[learner.name] = json.loads(json.dumps(learner.plain_state())), groups

    # Others may own its SAEs from now on.
    owners = [NAMES] if at % 2 else [NAMES[:1], NAMES[1:]]
    others = []
    for own in owners:
        other = made(step, preset, own)
        other.restore(plain)
        for learner in other.learners:
            own_plain, groups = saved[learner.name]
            learner.restore(own_plain, groups.__getitem__)
        others.append(other)
    if len(others) == 1:
        same_state(whole, others[0])
        assert others[0].seconds() == pytest.approx(whole.seconds(), abs=5)
    for batch in batches(24)[at:]:
        written = whole.step(batch)
        assert [other.step(batch) for other in others] == [written] * len(others)
    for other in others:
        assert len(other.learners[0].log) == 5
        if len(others) == 1:
            same_state(whole, other)
        for learner in other.learners:
            assert same(learner, next(x for x in whole.learners if x.name == learner.name))
            rows = learner.log
            assert [r["seconds"] for r in rows] == sorted(r["seconds"] for r in rows)


@pytest.mark.parametrize(("window", "last"), [(7, 7), (12, 12), (24, 24), (20, 24), (50, 24)])
def test_the_last_window_ends_with_the_run(window: int, last: int) -> None:
    """A window that does not fit as a whole is part of the first one; a run may be shorter than one."""
    section = training("quick", batch_size=BATCH, tokens=BATCH * 24, feature_sampling_window=window)
    trainer = Trainer(NAMES[:1], 12, section, batches(1)[0], seed=0, device=torch.device("cpu"))
    (learner,) = trainer.learners
    take, fired = learner.step, []

    def step(*arguments: Any) -> Any:
        stats = take(*arguments)
        fired.append(stats.fired_F.clone())
        return stats

    step.side_by_side = True  # type: ignore[attr-defined]
    learner.step = step  # type: ignore[assignment]
    for batch in batches(24):
        trainer.step(batch)
    expected = torch.stack(fired[-last:]).sum(0) / (last * BATCH)
    assert torch.equal(learner.log_sparsity(BATCH), torch.log10(expected + 1e-10))
