"""The CUDA step against the reference step, kernel by kernel in effect.

Where there is a GPU the kernels run on it, compiled and in a graph; elsewhere in Triton's interpreter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import randomise, training
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytest.importorskip("triton", reason="Triton is not installed (it comes for Linux on x86-64)")

from fastzoo.config.recipe import ComputeSection, TrainingSection  # noqa: E402
from fastzoo.core.errors import InputError  # noqa: E402
from fastzoo.saes.base import StepStats, TrainableSAE  # noqa: E402
from fastzoo.saes.jumprelu import SMALLEST_THRESHOLD, JumpReLUSAE  # noqa: E402
from fastzoo.saes.names import SAEName  # noqa: E402
from fastzoo.saes.standard import StandardSAE  # noqa: E402
from fastzoo.training.steps import ReferenceStep, Step, step_for  # noqa: E402
from fastzoo.training.steps.cuda import FUSED_BATCH, CudaStep  # noqa: E402
from fastzoo.training.trainer import Trainer  # noqa: E402

KINDS = ("standard", "jumprelu-direct", "jumprelu-log")
D_IN, D_SAE = 72, 40
"""More than one block of each, and no multiple of one."""

TOLERANCE = 1e-5
"""Of the norm of a tensor, after some twenty steps."""


def start(kind: str, bandwidth: float = 1.5, d_in: int = D_IN, d_sae: int = D_SAE) -> TrainableSAE:
    """Random weights with unit decoder rows; thresholds that some pre-activations lie around."""
    sae: TrainableSAE = StandardSAE(d_in, d_sae)
    if kind != "standard":
        sae = JumpReLUSAE(d_in, d_sae, bandwidth=bandwidth)
    randomise(sae)
    if kind == "jumprelu-log":
        assert isinstance(sae, JumpReLUSAE)
        sae.learn_log_threshold()
    sae.after_update()
    return sae.to(DEVICE)


def batches(size: int, count: int, d_in: int = D_IN) -> Iterator[Tensor]:
    """Activations with a mean of their own, as those of a language model have."""
    generator = torch.Generator().manual_seed(1)
    mean_D = torch.randn(d_in, generator=generator)
    for _ in range(count):
        yield (torch.randn(size, d_in, generator=generator) + mean_D).to(DEVICE)


def pair(kind: str, section: TrainingSection, precision: str = "float32") -> tuple[Step, CudaStep]:
    """Both steps on equal SAEs."""
    compute = ComputeSection(precision=precision)
    width = section.jumprelu_bandwidth
    return (
        ReferenceStep(start(kind, width), section, compute),
        CudaStep(start(kind, width), section, compute),
    )


def state(step: Step) -> dict[str, Tensor]:
    """All that a step changes, by name; copies."""
    found = {name: p.detach().clone() for name, p in step.sae.named_parameters()}
    for name, (mean, square) in step.moments().items():
        found |= {f"{name} mean": mean.clone(), f"{name} square": square.clone()}
    return found


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖a‖."""
    assert a.shape == b.shape
    return ((a - b).norm() / a.norm().clamp_min(1e-30)).item()


def assert_equal_stats(a: StepStats, b: StepStats) -> None:
    for name in ("squared_error", "penalty", "grad_norm"):
        expected = getattr(a, name).item()
        assert getattr(b, name).item() == pytest.approx(expected, rel=TOLERANCE), name
    assert torch.equal(a.fired_F, b.fired_F)


def assert_equal_state(a: Step, b: Step) -> None:
    expected, found = state(a), state(b)
    assert set(expected) == set(found)
    wrong = {n: d for n in expected if not (d := distance(expected[n], found[n])) < TOLERANCE}
    assert not wrong


# Paper: a window so narrow that hardly any value lies in it. Quick: one that many do.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("preset", "size", "steps", "clipping"),
    [
        ("paper", 10, 8, "always"),
        ("quick", 50, 20, "sometimes"),  # more than one block of tokens
        ("paper", FUSED_BATCH + 44, 4, "never"),  # gradients from cuBLAS
        ("quick", FUSED_BATCH + 44, 4, "always"),
    ],
)
def test_equals_the_reference_step(kind: str, preset: str, size: int, steps: int, clipping: str) -> None:
    def arguments(number: int) -> tuple[float, float]:
        return 3e-3 * (1 - number / 50), 0.5 * number / steps

    clip = {"always": 1e-2, "never": 1e6}.get(clipping)
    if clip is None:  # what half of the norms of a first try exceed
        alone, _ = pair(kind, training(preset, clip_norm=1e6))
        norms = [alone(x, *arguments(i)).grad_norm for i, x in enumerate(batches(size, steps))]
        clip = torch.stack(norms).median().item()
    reference, cuda = pair(kind, training(preset, clip_norm=clip))
    before, clipped = state(reference), set()
    for number, x in enumerate(batches(size, steps)):
        expected, found = (step(x, *arguments(number)) for step in (reference, cuda))
        assert_equal_stats(expected, found)
        clipped.add(expected.grad_norm.item() > clip)
    assert_equal_state(reference, cuda)
    assert cuda.steps == steps
    norms_F = cuda.sae.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(norms_F, torch.ones_like(norms_F), rtol=1e-6, atol=0)
    # The comparison is about something: parameters moved, and clipping did what it should.
    after = state(reference)
    for name in cuda.moments():
        still = preset == "paper" and "threshold" in name
        assert still or distance(after[name], before[name]) > 1e-4, name
    assert clipped == {"always": {True}, "never": {False}, "sometimes": {True, False}}[clipping]
    assert 0 < (expected.fired_F.mean() / size).item() < 0.9


@pytest.mark.parametrize("kind", ["standard", "jumprelu-log"])
def test_more_latents_than_a_block_of_a_vector(kind: str) -> None:
    section, shape = training("quick"), (5, 1030)
    reference = ReferenceStep(start(kind, 1.5, *shape), section, ComputeSection())
    cuda = CudaStep(start(kind, 1.5, *shape), section, ComputeSection())
    (x,) = batches(10, 1, shape[0])
    assert_equal_stats(reference(x, 1e-3, 0.1), cuda(x, 1e-3, 0.1))
    assert_equal_state(reference, cuda)


def test_a_wide_window_moves_thresholds() -> None:
    """Penalty and error both reach them, and their gradients are large beside rounding."""
    section = training("quick", jumprelu_bandwidth=2.0, clip_norm=1e6)
    for kind in KINDS[1:]:
        reference, cuda = pair(kind, section)
        for x in batches(33, 3):
            reference(x, 1e-2, 5.0)
            cuda(x, 1e-2, 5.0)
        name = "log_threshold" if kind == "jumprelu-log" else "threshold"
        mean, _ = reference.moments()[name]
        assert (mean.abs() > 1e-3).float().mean().item() > 0.8
        assert distance(mean, cuda.moments()[name][0]) < TOLERANCE


def test_thresholds_learned_directly_stay_positive() -> None:
    reference, cuda = pair("jumprelu-direct", training("quick", clip_norm=1e6))
    for x in batches(10, 3):
        for step in (reference, cuda):
            step(x, 0.5, -5.0)  # a penalty that rewards firing pulls thresholds down
    theta, ours = (step.sae.get_parameter("threshold").detach() for step in (reference, cuda))
    least = torch.full_like(theta, SMALLEST_THRESHOLD)
    assert 0 < (theta == least).sum() < D_SAE
    assert torch.equal(ours == least, theta == least)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bad", "size"), [(float("nan"), 10), (1e30, 10), (float("inf"), FUSED_BATCH + 1)])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: str, bad: float, size: int) -> None:
    _, cuda = pair(kind, training("quick"))
    good, other = batches(size, 2)
    broken = good.clone()
    broken[3, 5] = bad
    cuda(good, 1e-3, 0.1)
    before = state(cuda)
    stats = cuda(broken, 1e-3, 0.1)
    assert not torch.isfinite(stats.grad_norm)
    after = state(cuda)
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert cuda.steps == 1
    # It goes on as if nothing had been.
    reference = ReferenceStep(start(kind), training("quick"), ComputeSection())
    for x in (good, other):
        reference(x, 1e-3, 0.1)
    cuda(other, 1e-3, 0.1)
    assert_equal_state(reference, cuda)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [10, FUSED_BATCH + 1])
def test_bfloat16_products_are_close(kind: str, size: int) -> None:
    """Operands lose all but 8 bits: after a few steps weights agree to 1%, a step's length."""
    reference, cuda = pair(kind, training("quick", clip_norm=1e6), "bfloat16")
    before = state(reference)
    for x in batches(size, 3):
        expected, found = reference(x, 1e-3, 0.1), cuda(x, 1e-3, 0.1)
        for name in ("squared_error", "grad_norm"):
            assert getattr(found, name).item() == pytest.approx(getattr(expected, name).item(), rel=0.03)
    after, ours = state(reference), state(cuda)
    for name in ("W_enc", "W_dec"):
        assert distance(after[name], ours[name]) < 0.01
        moved = after[name] - before[name], ours[name] - before[name]
        assert distance(*moved) < 0.35  # Adam's first steps hinge on the signs of small gradients
        # Master weights are not rounded, and the copies that products read follow them.
        assert not torch.equal(ours[name], ours[name].bfloat16().float())
    for copy, weight in ((cuda.encoder_FD, cuda.W_enc_FD), (cuda.decoder_FD, cuda.W_dec_FD)):
        torch.testing.assert_close(copy.float(), weight, rtol=2**-7, atol=1e-30)


def test_bfloat16_copies_follow_weights_written_by_others() -> None:
    _, cuda = pair("standard", training("quick"), "bfloat16")
    with torch.no_grad():
        cuda.sae.W_enc.zero_()
        cuda.sae.b_enc.fill_(-1.0)
    (x,) = batches(10, 1)
    assert cuda(x, 1e-3, 0.1).fired_F.sum().item() == 0


def test_tf32_products_are_close() -> None:
    """On a CPU the same as float32; on a GPU operands lose all but 11 bits."""
    reference, cuda = pair("standard", training("quick", clip_norm=1e6), "tf32")
    for x in batches(10, 3):
        reference(x, 1e-3, 0.1)
        cuda(x, 1e-3, 0.1)
    after, ours = state(reference), state(cuda)
    assert all(distance(after[name], ours[name]) < 0.01 for name in ("W_enc", "W_dec"))
    for setting in ("fp32_precision", "allow_tf32"):  # torch's own settings are as they were
        if hasattr(torch.backends.cuda.matmul, setting):
            assert getattr(torch.backends.cuda.matmul, setting) in (False, "none", "ieee")
            break


def test_stats_outlive_the_next_step() -> None:
    _, cuda = pair("standard", training("quick"))
    first, second = batches(10, 2)
    stats = cuda(first, 1e-3, 0.1)
    fired, error = stats.fired_F.clone(), stats.squared_error.item()
    cuda(second * 2, 1e-3, 0.1)
    assert torch.equal(stats.fired_F, fired)
    assert stats.squared_error.item() == error


def test_batches_of_changing_size() -> None:
    reference, cuda = pair("jumprelu-log", training("quick"))
    for size in (10, 10, 7, 1, FUSED_BATCH + 1, 10):
        for x in batches(size, 1):
            assert_equal_stats(reference(x, 1e-3, 0.1), cuda(x, 1e-3, 0.1))
    assert_equal_state(reference, cuda)


def test_the_trainer_trains_with_it() -> None:
    names = [SAEName("model", 0, 2, kind, "fast") for kind in ("standard", "jumprelu")]
    section = training("quick", tokens=80, batch_size=20)
    generator = torch.Generator().manual_seed(0)
    columns = [
        {"L0": torch.randn(20, D_IN, generator=generator), "position": torch.arange(20)} for _ in range(4)
    ]
    rows = {}
    for kind in ("reference", "cuda"):
        trainer = Trainer(
            names, D_IN, section, columns[0], seed=0, device=DEVICE, compute=ComputeSection(step=kind)
        )
        for batch in columns:
            trainer.step(batch)
        rows[kind] = [learner.log[-1] for learner in trainer.learners]
        assert {learner.step.kind for learner in trainer.learners} == {kind}
    for expected, found in zip(rows["reference"], rows["cuda"], strict=True):
        for column in ("loss", "squared_error", "penalty", "l0", "fvu", "grad_norm"):
            assert found[column] == pytest.approx(expected[column], rel=1e-4), column


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_goes_on_from_its_state(precision: str) -> None:
    """With warm-up, graph and bfloat16 copies made anew, to the last bit."""
    if precision == "bfloat16" and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter cuts numbers to bfloat16 instead of rounding them")
    names = [SAEName("model", 0, 2, kind, "fast") for kind in ("standard", "jumprelu")]
    section = training("paper", tokens=160, batch_size=20, lr_warmup=2, lr_decay=2)
    compute = ComputeSection(step="cuda", precision=precision)
    columns = [{"L0": x.cpu(), "position": torch.arange(20)} for x in batches(20, 8)]

    def trainer(sample: Any) -> Trainer:
        return Trainer(names, D_IN, section, sample, seed=0, device=DEVICE, compute=compute)

    whole, other = trainer(columns[0]), trainer(None)
    for batch in columns[:5]:
        whole.step(batch)
    other.restore(whole.plain_state())
    for one, learner in zip(whole.learners, other.learners, strict=True):
        groups = {g: {n: t.cpu().clone() for n, t in tensors.items()} for g, tensors in one.tensors()}
        learner.restore(one.plain_state(), groups.__getitem__)
    for batch in columns[5:]:
        assert whole.step(batch) == other.step(batch)
    for one, learner in zip(whole.learners, other.learners, strict=True):
        assert learner.step.steps == one.step.steps == 8
        expected, found = state(one.step), state(learner.step)
        differing = [name for name in expected if not torch.equal(expected[name], found[name])]
        assert not differing


# --- which step ---------------------------------------------------------------------------------


def test_auto_takes_it_on_a_gpu_only() -> None:
    step = step_for(start("standard"), training("quick"), ComputeSection())
    assert (step.kind == "cuda") == (DEVICE.type == "cuda")


def test_asking_for_it_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    sae: Any = start("standard").cpu()
    with pytest.raises(InputError, match=r"needs an NVIDIA GPU.*'cpu'") as raised:
        step_for(sae, training("quick"), ComputeSection(step="cuda"))
    assert "\n" not in str(raised.value)


def test_asking_for_it_without_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(InputError, match="needs the package triton"):
        step_for(start("standard"), training("quick"), ComputeSection(step="cuda"))
