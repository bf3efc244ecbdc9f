"""The language model's head: next-token log-probabilities from final states, in bounded memory.

Shape suffixes: R rows (predicting tokens), P passes of the same rows, V vocabulary, D residual width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastzoo.core.errors import ModelError
from fastzoo.core.text import one_line
from fastzoo.lm.restart import Restarts
from fastzoo.lm.stack import accepted, language_model

HEAD_ELEMENTS = 1 << 25
"""Logits computed at once (tokens or directions x vocabulary)."""

EXACT_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Logits that are made float64 at once: on a CPU what its cache takes, which is much faster."""


class _Final(tuple[Tensor]):
    """Final states as a model's output: whatever else an output may have is missing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


_BASES: WeakKeyDictionary[Any, Restarts] = WeakKeyDictionary()


def logits(model: Any, states_TD: Tensor) -> Tensor:
    """Logits (T, V) from final states, as the model itself makes them.

    Its own forward runs with the states given in place of those that it would compute. So whatever it does
    to logits is done: scales, soft caps, biases.
    """
    base = _BASES.get(model)
    if base is None:
        base = _BASES[model] = Restarts([language_model(model)])
    ids = torch.zeros(1, len(states_TD), dtype=torch.int64, device=states_TD.device)
    with base.after(0, _Final((states_TD[None],))):
        found: Tensor = model(**accepted(model, {"input_ids": ids, "use_cache": False})).logits[0]
    return found


def head_weight(model: Any) -> Tensor:
    """(V, D), the unembedding. Raises ModelError: the model has no LM head."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__}: no LM head found")
    weight: Tensor = head.weight
    return weight


@torch.inference_mode()
def check_head(model: Any, ids_T: Tensor) -> None:
    """Raise ModelError if the logits of ``logits`` are not the model's own."""
    base, inputs = language_model(model), {"input_ids": ids_T[None], "use_cache": False}
    theirs = model(**accepted(model, inputs)).logits[0].float().log_softmax(-1)
    said = f"{type(model).__name__} makes its logits in a way that evaluation does not know"
    try:
        ours = _log_probabilities(model, base(**accepted(base, inputs)).last_hidden_state[0])
    except Exception as error:  # whatever a model needs beside its final states
        raise ModelError(f"{said}: {one_line(error, 160)}") from None
    if ours.shape != theirs.shape or (
        not torch.allclose(ours, theirs, atol=0.05) and torch.isfinite(theirs).all()
    ):
        raise ModelError(said)


def log_probabilities(model: Any, *states_TD: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Next-token log-probabilities from what the LM head reads, some tokens at a time.

    Yields which tokens, and for each of ``states_TD`` (final states of the same tokens) their
    log-probabilities (tokens, vocabulary).
    """
    tokens = max(16, HEAD_ELEMENTS // len(head_weight(model)))
    for start in range(0, len(states_TD[0]), tokens):
        part = slice(start, start + tokens)
        yield part, [_log_probabilities(model, states[part]) for states in states_TD]


def losses(
    model: Any, own_RD: Tensor, changed: Sequence[Tensor], targets_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies, and KL divergences from the model's own predictions, in nats.

    Logits are in the model's dtype, as its own are; everything after them is float64.

    Args:
        own_RD: final states of the rows in the undisturbed model.
        changed: the same of other passes.
        targets_R: the token that follows each row.

    Returns:
        the model's own cross-entropies (R,), those of the passes (P, R) and their KL (P, R); float64.
    """
    states_RPD = torch.stack([own_RD, *changed], 1)
    rows, passes = states_RPD.shape[:2]
    ce_PR = own_RD.new_empty(passes, rows, dtype=torch.float64)
    kl_PR = own_RD.new_empty(passes - 1, rows, dtype=torch.float64)
    width = passes * len(head_weight(model))
    exact = max(1, EXACT_ELEMENTS.get(own_RD.device.type, 1 << 22) // width)
    done = 0
    for part_RPD in states_RPD.split(max(1, HEAD_ELEMENTS // width)):
        # One product for the passes of many rows.
        logits_RPV = logits(model, part_RPD.flatten(0, 1)).unflatten(0, (-1, passes))
        for part_RPV in logits_RPV.split(exact):
            part = slice(done, done := done + len(part_RPV))
            ce_PR[:, part], kl_PR[:, part] = _losses(part_RPV.double(), targets_R[part])
    return ce_PR[0], ce_PR[1:], kl_PR


def _losses(logits_RPV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """``losses`` of some rows, from float64 logits, which it may change."""
    exp_RPV = logits_RPV.exp()
    sum_RP = exp_RPV.sum(2)
    if not ((sum_RP > 1e-200) & (sum_RP < 1e200)).all():  # logits in the hundreds
        logits_RPV -= logits_RPV.amax(2, keepdim=True)
        exp_RPV = logits_RPV.exp()
        sum_RP = exp_RPV.sum(2)
    target_RP = logits_RPV[torch.arange(len(targets_R), device=targets_R.device), :, targets_R]
    lse_RP = sum_RP.log()
    # Σ p (a - b) - (lse a - lse b), with p the model's own probabilities and a its logits.
    mean_RP = torch.matmul(logits_RPV, exp_RPV[:, 0, :, None])[..., 0] / sum_RP[:, :1]
    kl_RP = (mean_RP[:, :1] - lse_RP[:, :1]) - (mean_RP - lse_RP)[:, 1:]
    return (lse_RP - target_RP).t(), kl_RP.t()


def _log_probabilities(model: Any, states_TD: Tensor) -> Tensor:
    return logits(model, states_TD).float().log_softmax(-1)
