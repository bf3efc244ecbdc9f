"""What a language model must be able to do, found out with a few tokens before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastzoo.core.errors import ModelError
from fastzoo.core.text import one_line
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.head import check_head, head_weight
from fastzoo.lm.packing import difference
from fastzoo.lm.stack import accepted, hidden_of, language_model

TOKENS = 8


@torch.inference_mode()
def check_model(reader: ResidualReader) -> None:
    """Raise ModelError, in one line, if SAEs of a model could not be trained, evaluated or steered: if there is
    no single residual stream after each layer, if tokens see what comes after them, if positions do not count from 0, or if the head
    cannot be asked for the logits of other states."""
    model, kind = reader.model, type(reader.model).__name__
    head_weight(model)
    ids_T = torch.arange(1, TOKENS + 1, device=reader.device)
    try:
        states, final_TD = _states(reader, ids_T)
    except Exception as error:
        raise ModelError(f"{kind} does not run on token ids alone: {one_line(error, 160)}") from None
    width = model.config.get_text_config().hidden_size
    for layer, found in enumerate(states):
        if len(found) != 1:
            raise ModelError(f"{kind}: layer {layer} runs {len(found)} times in a forward, not once")
        if found[0].shape != (1, TOKENS, width):
            raise ModelError(
                f"{kind}: its layers pass on {tuple(found[0].shape)}, not one residual stream of (batch, tokens, "
                f"width {width})"
            )
    other_T = ids_T.clone()
    other_T[-1] += 1
    share, allowed = difference(final_TD[:-1], _states(reader, other_T)[1][:-1])
    if share > allowed:
        raise ModelError(f"{kind}: its tokens see those after them; it is no causal language model")
    places_1T = torch.arange(TOKENS, device=reader.device)[None]
    share, allowed = difference(final_TD, _states(reader, ids_T, position_ids=places_1T)[1])
    if share > allowed:
        raise ModelError(f"{kind}: its positions do not count from 0, as they are given to it in packs")
    check_head(model, ids_T)


def _states(reader: ResidualReader, ids_T: Tensor, **more: Tensor) -> tuple[list[list[Tensor]], Tensor]:
    """What each layer gave, each time it ran, to these tokens and ``more``; and the final states (T, D)."""
    found: list[list[Tensor]] = [[] for _ in reader.layers]

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[layer].append(hidden_of(output))

        return hook

    handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(reader.layers)]
    base = language_model(reader.model)
    try:
        inputs = accepted(base, {"input_ids": ids_T[None], "use_cache": False, **more})
        final_TD: Tensor = base(**inputs).last_hidden_state[0]
    finally:
        for handle in handles:
            handle.remove()
    return found, final_TD
