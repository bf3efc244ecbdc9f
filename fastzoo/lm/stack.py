"""The parts of a causal language model: what turns ids into final states, and its decoder layers."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from fastzoo.core.errors import ModelError


def language_model(model: Any) -> nn.Module:
    """The part of a causal language model whose final states its head reads. Raises ModelError."""
    if not hasattr(model, "config") or not hasattr(model, "base_model"):
        raise ModelError(f"{type(model).__name__} is not a language model of transformers")
    if model.base_model is not model:
        return model.base_model
    # Some classes call it by another name than they have it under. It holds the embeddings.
    embeddings = model.get_input_embeddings()
    for child in model.children():
        if child is not embeddings and any(part is embeddings for part in child.modules()):
            return child
    raise ModelError(f"{type(model).__name__}: no part found that gives the states its head reads")


def decoder_layers(model: Any) -> nn.ModuleList:
    """The stack of decoder layers of a causal language model, not those of a tower beside it.

    Raises ModelError: there is none as long as its configuration says, or several could be it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    whole, kind = language_model(model), type(model).__name__
    wanted = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else whole
    found: dict[str, nn.ModuleList] = {}
    for name, module in (whole if decoder is model else decoder).named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) == wanted and not inside:
            found[name] = module
    if len(found) > 1:  # such as a list of norms beside that of the layers
        layers = {n: m for n, m in found.items() if all(isinstance(x, GradientCheckpointingLayer) for x in m)}
        found = layers or found
    if not found:
        raise ModelError(f"{kind}: no stack of {wanted} decoder layers found")
    if len(found) > 1:
        raise ModelError(
            f"{kind}: several stacks of {wanted} could be its decoder layers: {', '.join(found)}"
        )
    return next(iter(found.values()))


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a decoder layer's output: a tensor, or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


def accepted(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Those keyword arguments that a module's forward takes."""
    parameters = inspect.signature(type(module).forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return inputs
    return {name: value for name, value in inputs.items() if name in parameters}
