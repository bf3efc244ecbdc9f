"""SAE architectures: closed-form gradients against autograd, and what encode and decode mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomise
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.saes import ARCHITECTURES, architecture, base, trainable
from fastzoo.saes.base import SAE, TrainableSAE
from fastzoo.saes.jumprelu import SMALLEST_THRESHOLD, JumpReLUSAE
from fastzoo.saes.standard import StandardSAE
from fastzoo.saes.topk import TopKSAE

D_IN, D_SAE, BATCH = 6, 20, 200
BANDWIDTH = 0.7
COEFFICIENT = 0.37
KINDS = ("standard", "jumprelu-direct", "jumprelu-log")


class RectangleJump(torch.autograd.Function):
    """f = z · 1[z > θ]; ∂f/∂z = 1[z > θ], ∂f/∂θ = −(θ/ε) K((z − θ)/ε)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        z, theta = ctx.saved_tensors
        kernel = (((z - theta) / ctx.eps).abs() < 0.5).to(z.dtype)
        return grad * (z > theta), (-(theta / ctx.eps) * kernel * grad).sum(0), None


class RectangleStep(torch.autograd.Function):
    """1[z > θ]; its gradient −(1/ε) K((z − θ)/ε) reaches θ only."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        z, theta = ctx.saved_tensors
        kernel = (((z - theta) / ctx.eps).abs() < 0.5).to(z.dtype)
        return None, (-(1.0 / ctx.eps) * kernel * grad).sum(0), None


def make(kind: str, seed: int = 0) -> TrainableSAE:
    if kind == "standard":
        return randomise(StandardSAE(D_IN, D_SAE, dtype=torch.float64), seed, 0.6)
    sae = JumpReLUSAE(D_IN, D_SAE, bandwidth=BANDWIDTH, dtype=torch.float64)
    randomise(sae, seed, 0.6)
    if kind == "jumprelu-log":
        sae.learn_log_threshold()
    return sae


def inputs(seed: int = 1, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, D_IN, generator=generator, dtype=torch.float64)


def by_autograd(sae: TrainableSAE, x: Tensor, coefficient: float) -> dict[str, Tensor]:
    """Gradients of the paper's loss, written from its formulas."""
    leaves = {name: p.detach().clone().requires_grad_() for name, p in sae.trained_parameters().items()}
    z = x @ leaves["W_enc"] + leaves["b_enc"]
    if isinstance(sae, JumpReLUSAE):
        theta = leaves["log_threshold"].exp() if "log_threshold" in leaves else leaves["threshold"]
        f = RectangleJump.apply(z, theta, BANDWIDTH)
        penalty = RectangleStep.apply(z, theta, BANDWIDTH).sum(1).mean()
    else:
        f = torch.relu(z)
        penalty = f.abs().sum(1).mean()
    reconstruction = f @ leaves["W_dec"] + leaves["b_dec"]
    loss = (reconstruction - x).square().sum(1).mean() + coefficient * penalty
    loss.backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 70 * D_SAE, 1 << 20])
@pytest.mark.parametrize("batch", [1, 64, BATCH])
def test_gradients_equal_autograd(kind: str, chunk: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", chunk)
    sae, x = make(kind), inputs(batch=batch)
    expected = by_autograd(sae, x, COEFFICIENT)
    sae.gradients(x, COEFFICIENT)
    assert set(expected) == set(sae.trained_parameters())
    for name, parameter in sae.trained_parameters().items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-11, atol=1e-12)
    # The comparison is about something: latents fire, fall silent, and lie near the threshold.
    if batch == BATCH:
        share = (sae.encode(x) > 0).double().mean().item()
        assert 0.05 < share < 0.95
        assert all(g.abs().max() > 1e-3 for g in expected.values())


@pytest.mark.parametrize("kind", KINDS)
def test_many_chunks_accumulate_to_the_gradient_of_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for chunk in (1, 90 * D_SAE, 1 << 20):
        monkeypatch.setattr(base, "CHUNK_ELEMENTS", chunk)
        sae = make(kind)
        stats = sae.gradients(inputs(), COEFFICIENT)
        found.append(
            [p.grad for p in sae.trained_parameters().values()]
            + [stats.squared_error, stats.penalty, stats.fired_F]
        )
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_set_not_added_to_those_of_the_batch_before(kind: str) -> None:
    sae = make(kind)
    sae.gradients(inputs(seed=5), 3.0)
    sae.gradients(inputs(seed=1), COEFFICIENT)
    for name, expected in by_autograd(sae, inputs(seed=1), COEFFICIENT).items():
        torch.testing.assert_close(sae.trained_parameters()[name].grad, expected)


@pytest.mark.parametrize("kind", ["jumprelu-direct", "jumprelu-log"])
def test_the_l0_term_reaches_only_the_threshold(kind: str) -> None:
    without, with_penalty = make(kind), make(kind)
    without.gradients(inputs(), 0.0)
    with_penalty.gradients(inputs(), 10.0)
    for name, parameter in without.trained_parameters().items():
        same = torch.equal(parameter.grad, with_penalty.trained_parameters()[name].grad)
        assert same == ("threshold" not in name)


def test_with_a_learned_log_threshold_the_threshold_itself_gets_no_gradient() -> None:
    sae = make("jumprelu-log")
    sae.gradients(inputs(), COEFFICIENT)
    assert set(sae.trained_parameters()) == {"W_enc", "b_enc", "W_dec", "b_dec", "log_threshold"}
    assert sae.threshold.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_stats_are_sums_over_the_batch(kind: str) -> None:
    sae, x = make(kind), inputs()
    stats = sae.gradients(x, COEFFICIENT)
    f = sae.encode(x).detach().numpy()
    error = (sae.decode(sae.encode(x)) - x).detach().numpy()
    assert stats.squared_error.item() == pytest.approx((error**2).sum(), rel=1e-12)
    penalty = f.sum() if kind == "standard" else (f > 0).sum()
    assert stats.penalty.item() == pytest.approx(penalty, rel=1e-12)
    assert np.array_equal(stats.fired_F.numpy(), (f > 0).sum(0))


def test_descending_the_standard_gradient_lowers_the_loss() -> None:
    """A few plain gradient steps: the sign of every gradient is right."""
    sae, x = make("standard"), inputs()

    def loss() -> float:
        f = sae.encode(x)
        return ((sae.decode(f) - x).square().sum(1) + COEFFICIENT * f.sum(1)).mean().item()

    before = loss()
    for _ in range(20):
        sae.gradients(x, COEFFICIENT)
        with torch.no_grad():
            for parameter in sae.trained_parameters().values():
                parameter -= 1e-3 * parameter.grad
    assert loss() < before


# --- encode, decode, forward --------------------------------------------------------------------


def naive_latents(sae: SAE, row: np.ndarray) -> np.ndarray:
    """One token, one latent at a time."""
    w, b = sae.W_enc.detach().numpy(), sae.b_enc.detach().numpy()
    pre = [float(sum(row[d] * w[d, i] for d in range(sae.d_in)) + b[i]) for i in range(sae.d_sae)]
    if isinstance(sae, JumpReLUSAE):
        theta = sae.threshold.detach().numpy()
        return np.array([z if z > theta[i] else 0.0 for i, z in enumerate(pre)])
    positive = np.array([max(z, 0.0) for z in pre])
    if isinstance(sae, TopKSAE):
        best = sorted(range(sae.d_sae), key=lambda i: -positive[i])[: sae.k]
        return np.array([positive[i] if i in best else 0.0 for i in range(sae.d_sae)])
    return positive


def any_sae(kind: str) -> SAE:
    more = {"k": 4} if kind == "topk" else {}
    return randomise(architecture(kind)(D_IN, D_SAE, dtype=torch.float64, **more), 3)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_encode_decode_forward(kind: str) -> None:
    sae, x = any_sae(kind), inputs(batch=12).reshape(3, 4, D_IN)
    latents = sae.encode(x)
    assert latents.shape == (3, 4, D_SAE)
    expected = np.stack([naive_latents(sae, row) for row in x.reshape(-1, D_IN).numpy()])
    np.testing.assert_allclose(latents.detach().numpy().reshape(-1, D_SAE), expected, rtol=1e-12, atol=1e-14)
    assert 0 < (expected > 0).mean() < 1
    reconstruction = expected @ sae.W_dec.detach().numpy() + sae.b_dec.detach().numpy()
    for made in (sae.decode(latents), sae(x)):
        assert made.shape == x.shape
        np.testing.assert_allclose(
            made.detach().numpy().reshape(-1, D_IN), reconstruction, rtol=1e-12, atol=1e-13
        )


def test_a_pre_activation_equal_to_the_threshold_does_not_fire() -> None:
    sae = JumpReLUSAE(3, 3)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
        sae.threshold.fill_(0.5)
    x = torch.tensor([[0.5, 0.5 + 1e-6, 0.5 - 1e-6]])
    assert (sae.encode(x) > 0).tolist() == [[False, True, False]]


def test_topk_with_fewer_than_k_positive_pre_activations_keeps_only_those() -> None:
    sae = TopKSAE(4, 4, k=3)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4))
    assert sae.encode(torch.tensor([[-1.0, 2.0, -3.0, -4.0]])).tolist() == [[0.0, 2.0, 0.0, 0.0]]
    assert sae.encode(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[0.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("k", [0, 5])
def test_topk_refuses_an_impossible_k(k: int) -> None:
    with pytest.raises(ValueError, match="k must be between"):
        TopKSAE(4, 4, k=k)


def test_inputs_of_another_dtype_are_reconstructed_in_the_sae_s_own() -> None:
    sae = randomise(StandardSAE(D_IN, D_SAE))
    x = inputs(batch=5).to(torch.bfloat16)
    assert sae(x).dtype == torch.float32
    torch.testing.assert_close(sae(x), sae(x.float()))


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("factor", [0.01, 1.0, 37.5])
def test_rescaled_sae_of_scaled_input_is_the_scaled_output(kind: str, factor: float) -> None:
    sae, x = any_sae(kind), inputs(batch=50)
    latents, reconstruction = sae.encode(x), sae(x)
    decoder = sae.W_dec.detach().clone()
    sae.rescale_(factor)
    torch.testing.assert_close(sae.encode(factor * x), factor * latents, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(sae(factor * x), factor * reconstruction, rtol=1e-11, atol=1e-12)
    assert torch.equal(sae.W_dec, decoder)


def test_rescaling_keeps_the_log_threshold_in_step() -> None:
    sae = make("jumprelu-log")
    sae.rescale_(4.0)
    threshold = sae.threshold.detach().clone()
    sae.after_update()
    torch.testing.assert_close(sae.threshold, threshold, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_after_update_restores_the_constraints(kind: str) -> None:
    sae = make(kind)
    direction = sae.W_dec.detach() / sae.W_dec.detach().norm(dim=1, keepdim=True)
    with torch.no_grad():
        if isinstance(sae, JumpReLUSAE):
            moved = sae.threshold if sae.log_threshold is None else sae.log_threshold
            moved[:3] -= 5.0
    before = sae.threshold.detach().clone() if isinstance(sae, JumpReLUSAE) else None
    sae.after_update()
    torch.testing.assert_close(sae.W_dec.detach(), direction, rtol=1e-12, atol=1e-13)
    if kind == "jumprelu-direct":
        assert sae.threshold[:3].tolist() == [SMALLEST_THRESHOLD] * 3
        assert torch.equal(sae.threshold[3:], before[3:])
    if kind == "jumprelu-log":
        assert torch.equal(sae.threshold, sae.log_threshold.exp())
        torch.testing.assert_close(sae.threshold[:3], before[:3] * np.exp(-5.0))
    if isinstance(sae, JumpReLUSAE):
        assert (sae.threshold > 0).all()


def test_the_registry_names_each_class() -> None:
    for name in ARCHITECTURES:
        assert architecture(name).architecture == name
        assert issubclass(architecture(name), TrainableSAE) == (name in trainable())
    with pytest.raises(InputError, match="jumprelu"):
        architecture("jumprely")


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        StandardSAE(0, 4)
