"""The language model's head: log-probabilities from the residual stream, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from fastzoo.core.errors import ModelError
from fastzoo.data.sequences import TokenSequence
from fastzoo.lm.activations import ResidualReader

HEAD_ELEMENTS = 1 << 25
"""Logits computed at once (tokens x vocabulary)."""


def check_head(reader: ResidualReader, sequence: TokenSequence) -> None:
    """Raise ModelError if the model makes its logits in another way than ``log_probabilities``."""
    ids = torch.from_numpy(sequence.ids[:64])[None].to(reader.device)
    theirs = reader.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    config = reader.model.config.get_text_config()
    states = reader.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    cap = getattr(config, "final_logit_softcapping", None)
    ours = log_probabilities(reader.model.get_output_embeddings(), states, cap)
    if not torch.allclose(ours, theirs, atol=0.05) and torch.isfinite(theirs).all():
        raise ModelError(
            f"{type(reader.model).__name__} scales its logits in a way that evaluation does not know"
        )


def log_probabilities(head: torch.nn.Module, states_TD: Tensor, cap: float | None) -> Tensor:
    """(T, vocabulary) from what the LM head reads; logits soft-capped at ``cap``."""
    logits = head(states_TD).float()
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits.log_softmax(-1)
