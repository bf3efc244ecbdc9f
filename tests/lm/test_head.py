"""Cross-entropy and KL from logits, against float64 written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, WIDTH, small_model

from fastzoo.lm import head
from fastzoo.lm.head import logits, losses


def exact(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and their exponentials from logits (R, V), in extended precision."""
    x = rows.astype(np.longdouble)
    x = x - x.max(1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    return log_p, np.exp(log_p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
@pytest.mark.parametrize("scale", [1.0, 300.0])  # and logits whose exponentials overflow
@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_losses_are_exact(
    kind: str, dtype: torch.dtype, scale: float, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD_ELEMENTS", elements)
    monkeypatch.setattr(head, "EXACT_ELEMENTS", {"cpu": elements})
    model = small_model(kind).to(dtype)
    generator = torch.Generator().manual_seed(0)
    own, *changed = (torch.randn(40, WIDTH, generator=generator, dtype=dtype) * scale for _ in range(3))
    changed.append(own + torch.randn(40, WIDTH, generator=generator, dtype=dtype) * 1e-4)  # nearly no KL
    targets = torch.randint(0, VOCABULARY, (40,), generator=generator)
    # One product for all, as ``losses`` takes its logits from one.
    tables = [exact(t.double().numpy()) for t in logits(model, torch.cat([own, *changed])).split(40)]
    own_ce, ce, kl = losses(model, own, changed, targets)
    assert own_ce.dtype == ce.dtype == kl.dtype == torch.float64
    rows = np.arange(40)
    tight: dict[str, Any] = {"rtol": 1e-9 if elements > 1 else 3e-3, "atol": 1e-9 if elements > 1 else 3e-3}
    np.testing.assert_allclose(own_ce, -tables[0][0][rows, targets], **tight)
    for found_ce, found_kl, (log_q, _) in zip(ce, kl, tables[1:], strict=True):
        np.testing.assert_allclose(found_ce, -log_q[rows, targets], **tight)
        log_p, p = tables[0]
        expected = np.where(p > 0, p * (log_p - log_q), 0).sum(1)
        np.testing.assert_allclose(found_kl, expected, **tight)


def test_logits_are_the_model_s_own() -> None:
    for kind in ("qwen2", "gemma2"):
        model = small_model(kind)
        ids = torch.arange(12)[None]
        states = model.base_model(ids).last_hidden_state[0]
        assert torch.equal(logits(model, states), model(ids).logits[0])
