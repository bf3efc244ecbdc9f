"""The language model's head: next-token log-probabilities from final states, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import ModelError
from fastzoo.data.sequences import TokenSequence
from fastzoo.lm.activations import ResidualReader

HEAD_ELEMENTS = 1 << 25
"""Logits computed at once (tokens or directions x vocabulary)."""


def check_head(reader: ResidualReader, sequence: TokenSequence) -> None:
    """Raise ModelError if the model makes its logits in another way than ``log_probabilities``."""
    ids = torch.from_numpy(sequence.ids[:64])[None].to(reader.device)
    theirs = reader.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    states_TD = reader.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    ours = _log_probabilities(reader.model, states_TD)
    if not torch.allclose(ours, theirs, atol=0.05) and torch.isfinite(theirs).all():
        raise ModelError(
            f"{type(reader.model).__name__} scales its logits in a way that evaluation does not know"
        )


def log_probabilities(model: Any, *states_TD: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Next-token log-probabilities from what the LM head reads, some tokens at a time.

    Yields which tokens, and for each of ``states_TD`` (final states of the same tokens) their
    log-probabilities (tokens, vocabulary).
    """
    tokens = max(16, HEAD_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    for start in range(0, len(states_TD[0]), tokens):
        part = slice(start, start + tokens)
        yield part, [_log_probabilities(model, states[part]) for states in states_TD]


def _log_probabilities(model: Any, states_TD: Tensor) -> Tensor:
    logits = model.get_output_embeddings()(states_TD).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits.log_softmax(-1)
