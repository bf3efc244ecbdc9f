"""The logit lens: which tokens a direction of the residual stream raises and lowers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastzoo.core.errors import ModelError
from fastzoo.lm.activations import decoder_layers
from fastzoo.lm.head import HEAD_ELEMENTS

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "embedding_norm")
"""What transformers' models call the norm before the LM head."""


@torch.no_grad()
def logit_lens(model: Any, directions_LD: Tensor, vocabulary: int | None = None) -> Tensor:
    """(L, vocabulary) float32 logits of directions, with the final norm's weight folded in.

    Up to a positive factor per position, this is what adding a direction adds to the logits. A soft
    cap on the logits does not change their order and is left out.

    Args:
        directions_LD: directions in the residual stream, such as decoder rows.
        vocabulary: how many ids stand for a token; further rows of the unembedding are padding.

    Raises ModelError: the model's final norm or LM head is not found.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__}: no LM head found")
    weight_VD = head.weight[:vocabulary]
    return folded(model, directions_LD.to(weight_VD.device)) @ weight_VD.float().t()


def folded(model: Any, directions_LD: Tensor) -> Tensor:
    """Directions (L, D) as the final norm passes them on, without its division by the length."""
    norm = final_norm(model)
    directions_LD = directions_LD.float()
    dtype = next(norm.parameters(), directions_LD).dtype
    ones_1D = torch.ones_like(directions_LD[:1], dtype=dtype)
    # These have mean 0 and length 1 per dimension, so every norm returns its effective weight, in
    # whatever form it stores that (Gemma and Nemotron: minus 1).
    signs_1D = ones_1D.clone()
    signs_1D[:, 1::2] = -1
    bias_1D = norm(torch.zeros_like(ones_1D))
    weight_1D = (norm(signs_1D) - bias_1D).float() * signs_1D.float()
    if torch.equal(norm(ones_1D), bias_1D):  # the norm subtracts the mean
        directions_LD = directions_LD - directions_LD.mean(1, keepdim=True)
    return directions_LD * weight_1D


def final_norm(model: Any) -> nn.Module:
    """The norm between the last decoder layer and the LM head. Raises ModelError."""
    layers = decoder_layers(model)
    for module in model.base_model.modules():
        if any(child is layers for child in module.children()):
            for name in FINAL_NORMS:
                if isinstance(norm := getattr(module, name, None), nn.Module):
                    return norm
    raise ModelError(f"{type(model).__name__}: no final norm found; looked for {FINAL_NORMS}")


def lens_tokens(
    model: Any, directions_LD: Tensor, count: int, *, vocabulary: int | None = None, largest: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits and ids, each (L, count), of the tokens that directions raise (or lower) most."""
    rows = max(1, HEAD_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    parts = [
        logit_lens(model, part_LD, vocabulary).topk(count, largest=largest)
        for part_LD in directions_LD.split(rows)
    ]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
