"""The parts of a causal language model: what turns ids into final states, and its decoder layers."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from fastzoo.core.errors import ModelError


def language_model(model: Any) -> nn.Module:
    """The part of a causal language model whose final states its head reads: the innermost one that holds both
    the embeddings and the decoder layers. Raises ModelError."""
    layers = decoder_layers(model)
    embeddings = model.get_input_embeddings()
    name = next(name for name, part in model.named_modules() if part is layers)
    steps = name.split(".")
    for depth in range(len(steps) - 1, 0, -1):
        part = model.get_submodule(".".join(steps[:depth]))
        if any(module is embeddings for module in part.modules()):
            return part
    raise ModelError(f"{type(model).__name__}: no part found that gives the states its head reads")


def decoder_layers(model: Any) -> nn.ModuleList:
    """The stack of decoder layers of a causal language model, not those of a tower beside it.

    Raises ModelError: no stack is as long as its configuration says, or several could be it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    kind = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "base_model"):
        raise ModelError(f"{kind} is not a language model of transformers")
    wanted = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    found = _stacks(decoder, wanted) or _stacks(model, wanted)  # some call their head the decoder
    if len(found) > 1:  # such as a list of norms beside that of the layers
        layers = {n: m for n, m in found.items() if all(isinstance(x, GradientCheckpointingLayer) for x in m)}
        found = layers or found
    if len(found) > 1:  # towers of other senses hang deeper, and do not run on tokens (see check_model)
        least = min(name.count(".") for name in found)
        found = {name: module for name, module in found.items() if name.count(".") == least}
    if not found:
        raise ModelError(f"{kind}: no stack of {wanted} decoder layers found")
    if len(found) > 1:
        raise ModelError(
            f"{kind}: several stacks of {wanted} could be its decoder layers: {', '.join(found)}"
        )
    return next(iter(found.values()))


def _stacks(part: Any, length: int) -> dict[str, nn.ModuleList]:
    """Lists of so many modules, by name, without those inside another."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in part.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) == length and not inside:
            found[name] = module
    return found


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a decoder layer's output: a tensor, or a tuple or list that starts with it."""
    return output[0] if isinstance(output, (tuple, list)) else output


def with_hidden(output: Any, states: Tensor) -> Any:
    """A decoder layer's output with other hidden states."""
    return type(output)((states, *output[1:])) if isinstance(output, (tuple, list)) else states


def accepted(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Those keyword arguments that a module's forward takes."""
    parameters = inspect.signature(type(module).forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return inputs
    return {name: value for name, value in inputs.items() if name in parameters}
