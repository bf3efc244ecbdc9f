"""The logit lens: which tokens a direction of the residual stream raises and lowers."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastzoo.core.errors import ModelError
from fastzoo.lm.head import HEAD_ELEMENTS, head_weight, logits
from fastzoo.lm.stack import accepted, decoder_layers, hidden_of, language_model

_NORMS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


@torch.no_grad()
def logit_lens(model: Any, directions_LD: Tensor, vocabulary: int | None = None) -> Tensor:
    """(L, vocabulary) float32 logits of directions, with the final norm's weight folded in.

    Up to a positive factor per position, this is what adding a direction adds to the logits. A soft
    cap on the logits, or a scale, does not change their order and is left out.

    Args:
        directions_LD: directions in the residual stream, such as decoder rows.
        vocabulary: how many ids stand for a token; further rows of the unembedding are padding.

    Raises ModelError: the model's final norm or LM head is not found.
    """
    weight_VD = head_weight(model)[:vocabulary]
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
    """What stands between the last decoder layer and the LM head, found by looking at what a forward does.

    Raises ModelError: more than a norm does.
    """
    if (known := _NORMS.get(model)) is not None:
        return known
    _refuse_unless_linear(model)
    base, layers, thread = language_model(model), decoder_layers(model), threading.get_ident()
    inside = {id(part) for layer in layers for part in layer.modules()}
    seen: list[tuple[nn.Module, Any, Any]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            seen.append((module, args[0] if args else None, hidden_of(output)))

    parts = [part for part in base.modules() if id(part) not in inside and part is not base]
    handles = [part.register_forward_hook(note) for part in (*parts, layers[-1])]
    ids = torch.arange(1, 5, device=model.get_input_embeddings().weight.device)[None]
    try:
        inputs = accepted(base, {"input_ids": ids, "use_cache": False})
        final_TD = base(**inputs).last_hidden_state[0]
    finally:
        for handle in handles:
            handle.remove()
    last_TD = next(output for module, _, output in seen if module is layers[-1])[0]
    for module, given, output in reversed(seen):
        if not all(isinstance(x, Tensor) and x.shape == (1, *final_TD.shape) for x in (given, output)):
            continue
        simple = all(p.ndim < 2 for p in module.parameters())
        if simple and torch.equal(given[0], last_TD) and torch.equal(output[0], final_TD):
            _NORMS[model] = module
            return module
    if torch.equal(last_TD, final_TD):
        return nn.Identity()
    raise ModelError(
        f"{type(model).__name__}: more than a norm stands between its last layer and its LM head"
    )


def _refuse_unless_linear(model: Any) -> None:
    """Raise ModelError where the head does more than multiply by the unembedding, scale and cap."""
    weight_VD, width = head_weight(model), model.config.get_text_config().hidden_size
    states_1D = torch.randn(1, width, generator=torch.Generator().manual_seed(0)).to(weight_VD)
    if linear := weight_VD.shape[1] == width:
        product_V = (states_1D @ weight_VD.t())[0].float()
        states_1D /= product_V.std()  # small logits: a cap leaves them as they are
        odd_V = (logits(model, states_1D) - logits(model, -states_1D))[0].float()
        both = odd_V.shape == product_V.shape and torch.corrcoef(torch.stack([odd_V, product_V]))[0, 1]
        linear = both >= 0.99
    if not linear:
        raise ModelError(
            f"{type(model).__name__}: its LM head is more than a matrix, so it has no logit lens"
        )


def lens_tokens(
    model: Any, directions_LD: Tensor, count: int, *, vocabulary: int | None = None, largest: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits and ids, each (L, count), of the tokens that directions raise (or lower) most."""
    rows = max(1, HEAD_ELEMENTS // len(head_weight(model)))
    parts = [
        logit_lens(model, part_LD, vocabulary).topk(count, largest=largest)
        for part_LD in directions_LD.split(rows)
    ]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
