"""The optimiser step: every way of computing it against the reference, from dense to empty batches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import training
from torch import Tensor

from fastzoo.config.recipe import ComputeSection
from fastzoo.core.errors import InputError
from fastzoo.saes import base
from fastzoo.saes.base import StepStats, TrainableSAE
from fastzoo.saes.jumprelu import JumpReLUSAE
from fastzoo.training.initialise import new_sae
from fastzoo.training.steps import ReferenceStep, Step, sparse, step_for
from fastzoo.training.steps.sparse import SparseStep

D_IN, D_SAE, BATCH = 24, 150, 60
AS_CHOSEN = ComputeSection()


pytestmark = pytest.mark.usefixtures("two_threads")


def start(
    step: type[Step],
    kind: str = "standard",
    preset: str = "paper",
    bias: float = -0.4,
    dtype: torch.dtype = torch.float64,
    d_sae: int = D_SAE,
    seed: int = 0,
    **changes: Any,
) -> Step:
    """A step on a fresh SAE; ``bias`` sets how many latents are active at first."""
    section = training(preset, batch_size=BATCH, **changes)
    sae = new_sae(kind, D_IN, d_sae, section, torch.Generator().manual_seed(seed)).to(dtype)
    with torch.no_grad():
        sae.b_enc.fill_(bias)
    return step(sae, section, AS_CHOSEN)


def batches(count: int, dtype: torch.dtype = torch.float64, rows: int = BATCH) -> list[Tensor]:
    """Points near a six-dimensional subspace, so that there is something to learn."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(6, D_IN, generator=generator)
    return [(torch.randn(rows, 6, generator=generator) @ directions / 2.5).to(dtype) for _ in range(count)]


def tensors(step: Step) -> dict[str, Tensor]:
    """Everything that a step moves."""
    found = {name: p.detach() for name, p in step.sae.trained_parameters().items()}
    found |= {f"{n}.mean": mean for n, (mean, _) in step.moments().items()}
    found |= {f"{n}.square": square for n, (_, square) in step.moments().items()}
    if isinstance(step.sae, JumpReLUSAE):
        found["theta"] = step.sae.threshold.detach()
    return found


def assert_same(one: Step, other: Step, tolerance: float) -> None:
    """Each tensor differs by at most ``tolerance`` of its norm."""
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.shape == right[name].shape
        distance = torch.linalg.vector_norm(value - right[name])
        assert distance <= tolerance * torch.linalg.vector_norm(value), name


def assert_equal(one: Step, other: Step) -> None:
    left, right = tensors(one), tensors(other)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def train(step: Step, data: list[Tensor], rate: float, coefficient: float) -> StepStats:
    """One pass; the coefficient grows over it."""
    for i, x in enumerate(data):
        stats = step(x, rate, coefficient * i / len(data))
    return stats


CASES = {
    "dense": ("standard", "paper", 0.3, {}),
    "lists": ("standard", "paper", -0.9, {}),
    "dense, then lists": ("standard", "quick", -0.3, {}),
    "jumprelu, log": ("jumprelu", "paper", -0.9, {"jumprelu_bandwidth": 0.05}),
    "jumprelu, dense": ("jumprelu", "paper", 0.3, {}),
    "jumprelu, wide": ("jumprelu", "quick", -0.3, {}),
    "jumprelu, wide log": ("jumprelu", "quick", -0.3, {"jumprelu_threshold": "log"}),
    "never clipped": ("standard", "quick", -0.9, {"clip_norm": 1e9}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_hundred_steps_equal_the_reference(case: str) -> None:
    kind, preset, bias, changes = CASES[case]
    steps = [start(c, kind, preset, bias, **changes) for c in (ReferenceStep, SparseStep)]
    section = training(preset)
    data = batches(200)
    first = {n: t.clone() for n, t in tensors(steps[0]).items()}
    last = [train(s, data, section.lr, section.sparsity_coefficient[kind]) for s in steps]
    # In float64, where no rounding decides whether a latent is active, they stay together for good.
    assert_same(steps[0], steps[1], 1e-11)
    assert steps[0].steps == steps[1].steps == 200
    for field in ("squared_error", "penalty", "fired_F", "grad_norm"):
        ours, reference = getattr(last[1], field), getattr(last[0], field)
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)
    moved = tensors(steps[0])
    assert all(not torch.equal(first[n], moved[n]) for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
    expected = {"dense": (0, 0), "lists": (200, 200), "dense, then lists": (20, 180)}
    expected |= {"jumprelu, dense": (0, 0), "jumprelu, log": (150, 200)}
    least, most = expected.get(case, (100, 200))
    assert least <= steps[1].sparse_steps <= most


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
@pytest.mark.parametrize("bias", [0.3, -0.9])
def test_two_hundred_steps_in_float32(kind: str, bias: float) -> None:
    """As near to float64 as the reference in float32 is, unless a CPU's rounding puts one pre-activation on the
    other side of its threshold: seen on one of two CPUs, and worth 2e-5 of a moment, 3e-6 of a weight."""
    found = {}
    for step, dtype in (
        (ReferenceStep, torch.float64),
        (ReferenceStep, torch.float32),
        (SparseStep, torch.float32),
    ):
        found[step, dtype] = start(step, kind, "paper", bias, dtype)
        train(found[step, dtype], [x.to(dtype) for x in batches(200, torch.float32)], 7e-5, 0.01)
    exact, reference, ours = map(tensors, found.values())
    for name, value in exact.items():
        bound = 1e-4 if "." in name else 1e-5  # of a moment, of a weight
        assert (reference[name] - value).norm() <= 1e-5 * value.norm(), name
        assert (ours[name] - value).norm() <= bound * value.norm(), name


def test_a_wide_jumprelu_window_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    original = sparse._Entries.by_latent

    def spy(self: Any) -> Any:
        listed.append(self.near_listed)
        return original(self)

    monkeypatch.setattr(sparse._Entries, "by_latent", spy)
    for changes in ({"jumprelu_bandwidth": 0.01}, {"jumprelu_bandwidth": 1.5}):
        step = start(SparseStep, "jumprelu", "quick", -0.9, **changes)
        step(batches(1)[0], 1e-3, 0.1)
    assert listed == [True, False]


def variants(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    def put(owner: Any, name: str, value: Any) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(owner, name, value)

    return {
        "threads": put(sparse, "SERIAL_BELOW", 0),
        "one thread": put(sparse, "SERIAL_BELOW", 1 << 60),
        "stored": put(sparse, "STORE_FROM", 0),
        "recomputed": put(sparse, "STORE_FROM", 1 << 60),
    }


@pytest.mark.parametrize("name", ["threads", "one thread", "stored", "recomputed"])
def test_how_the_work_is_divided_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(15, torch.float32)
    plain, other = (start(SparseStep, "jumprelu", "quick", -0.9, torch.float32) for _ in range(2))
    train(plain, data, 1e-3, 0.1)
    variants(monkeypatch)[name]()
    train(other, data, 1e-3, 0.1)
    assert_equal(plain, other)


@pytest.mark.parametrize("bias", [0.3, -0.9])
@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_large_batches_go_in_chunks(kind: str, bias: float, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(3, rows=300)
    steps = [start(SparseStep, kind, "quick", bias) for _ in range(2)]
    train(steps[0], data, 1e-3, 0.1)
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", 70 * D_SAE)  # 70, 70, 70, 70 and 20 rows
    assert steps[1].sae.chunk_rows(data[0]) == 70
    train(steps[1], data, 1e-3, 0.1)
    assert_same(steps[0], steps[1], 1e-12)


def test_saes_share_the_workspace_without_harm() -> None:
    data = batches(12)
    alone = [start(SparseStep, "standard", d_sae=d, bias=b) for d, b in ((150, -0.9), (90, 0.3))]
    for step in alone:
        train(step, data, 1e-3, 0.1)
    together = [start(SparseStep, "standard", d_sae=d, bias=b) for d, b in ((150, -0.9), (90, 0.3))]
    for i, x in enumerate(data):
        for step in together:
            step(x, 1e-3, 0.1 * i / len(data))
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("step_type", [ReferenceStep, SparseStep])
@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
@pytest.mark.parametrize("bias", [0.3, -0.9])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_unusable_gradient_changes_nothing(
    step_type: type[Step], kind: str, bias: float, value: float
) -> None:
    data = batches(4, torch.float32)
    step = start(step_type, kind, "quick", bias, torch.float32)
    train(step, data[:3], 1e-3, 0.1)
    before = {name: t.clone() for name, t in tensors(step).items()}
    bad = data[3].clone()
    bad[7, 5] = value
    assert not torch.isfinite(step(bad, 1e-3, 0.1).grad_norm)
    for name, t in tensors(step).items():
        assert torch.equal(t, before[name]), name
    assert step.steps == 3
    # It goes on as if the batch had not been there.
    other = start(step_type, kind, "quick", bias, torch.float32)
    train(other, data[:3], 1e-3, 0.1)
    for each in (step, other):
        each(data[3], 1e-3, 0.1)
    assert_equal(step, other)


def test_a_batch_without_any_active_latent() -> None:
    steps = [start(c, "standard", "quick", -100.0) for c in (ReferenceStep, SparseStep)]
    for x in batches(3):
        for step in steps:
            stats = step(x, 1e-3, 0.1)
    assert stats.fired_F.sum() == 0 and stats.penalty == 0
    assert_same(steps[0], steps[1], 1e-12)
    assert steps[1].sparse_steps == 3


def test_decoder_rows_keep_unit_norm_and_rows_are_contiguous() -> None:
    for bias in (0.3, -0.9):
        step = start(SparseStep, "jumprelu", "quick", bias, torch.float32)
        train(step, batches(20, torch.float32), 3e-3, 0.1)
        norms = torch.linalg.vector_norm(step.sae.W_dec.detach(), dim=1)
        torch.testing.assert_close(norms, torch.ones(D_SAE), rtol=1e-6, atol=0)
        assert step.sae.W_enc.shape == (D_IN, D_SAE) and step.sae.W_enc.t().is_contiguous()


def test_the_step_is_chosen_by_name_and_device() -> None:
    def chosen(name: str) -> Step:
        sae: TrainableSAE = start(ReferenceStep).sae
        return step_for(sae, training(), ComputeSection(step=name))  # type: ignore[arg-type]

    assert isinstance(chosen("auto"), SparseStep)
    assert isinstance(chosen("sparse"), SparseStep)
    assert isinstance(chosen("reference"), ReferenceStep)
    sae = start(ReferenceStep).sae.to("meta")
    with pytest.raises(InputError, match=r"compute\.step: 'sparse' needs a CPU"):
        step_for(sae, training(), ComputeSection(step="sparse"))


def test_without_numba_the_reference_step_takes_over_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "fastzoo.training.steps.sparse_kernels")
    monkeypatch.delattr("fastzoo.training.steps.sparse_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    sae = start(ReferenceStep).sae
    assert isinstance(step_for(sae, training(), AS_CHOSEN), ReferenceStep)
    assert "numba" in caplog.text
    with pytest.raises(InputError, match=r"compute\.step: 'sparse' needs the package numba"):
        step_for(sae, training(), ComputeSection(step="sparse"))


def test_a_precision_that_only_a_gpu_has_is_refused() -> None:
    sae = start(ReferenceStep).sae
    for name in ("auto", "sparse", "reference"):
        compute = ComputeSection(step=name, precision="tf32")  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"compute\.precision: 'tf32' is for the step 'cuda'"):
            step_for(sae, training(), compute)
