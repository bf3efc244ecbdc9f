"""Which rows may be a left-padded batch of a model, each as if it were alone; found out once per model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastzoo.core.text import one_line
from fastzoo.lm.lengths import LengthRules
from fastzoo.lm.packing import difference
from fastzoo.lm.stack import accepted

logger = logging.getLogger(__name__)

PADDING, TOKENS = 28, 12
"""Of the row that is compared: the more padding, the more it differs where it counts."""

_UNLIKE: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
"""In what a padded row of a model differs from the row alone; None: in nothing."""


def batch_key(model: Any) -> Callable[[int, int], tuple[int, ...] | None]:
    """As ``LengthRules.key``; of models that padding disturbs, rows with the same key have the same length."""
    rules, padded = LengthRules.of(model.config), padding_is_exact(model)

    def key(first: int, last: int) -> tuple[int, ...] | None:
        side = rules.key(first, last)
        return side and (side if padded else (*side, first))

    return key


def padding_is_exact(model: Any) -> bool:
    """Whether a padded row gives what it gives alone; if not, a warning says so once."""
    if model not in _UNLIKE:
        try:
            share, allowed = _difference(model)
            _UNLIKE[model] = None if share <= allowed else f"padded, a row differs by a share of {share:.2g}"
        except Exception as error:  # whatever a model does with padding that it does not know
            _UNLIKE[model] = one_line(error, 200)
        if why := _UNLIKE[model]:
            logger.warning("answers go through the model with others of their length only: %s", why)
    return _UNLIKE[model] is None


def inputs_of(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """What a forward of a batch is given, on the model's device. Without padding rows are as they would be alone."""
    inputs = {"input_ids": ids_BT}
    if not mask_BT.all():
        inputs |= {"attention_mask": mask_BT, "position_ids": positions_of(mask_BT)}
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":  # accelerate fetches the weights, and brings the tokens there
        device = torch.device("cpu")
    return accepted(model, {name: value.to(device) for name, value in inputs.items()})


def positions_of(mask_BT: Tensor) -> Tensor:
    """Each token's place in its row without the padding."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def _difference(model: Any) -> tuple[float, float]:
    ids_BT = torch.arange(1, PADDING + TOKENS + 1).repeat(2, 1)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :PADDING] = 0
    together_TV = _logits(model, ids_BT * mask_BT, mask_BT)[1, PADDING:]
    return difference(_logits(model, ids_BT[1:, PADDING:], mask_BT[1:, PADDING:])[0], together_TV)


def _logits(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Of every token in one forward; then of the last one again, with those before it in a cache."""
    inputs = inputs_of(model, ids_BT, mask_BT)
    found = [model(**inputs, use_cache=False).logits]
    # As answers are written, which are told positions in any case.
    inputs |= accepted(model, {"position_ids": positions_of(mask_BT).to(inputs["input_ids"].device)})
    before = model(**{name: value[:, :-1] for name, value in inputs.items()}, use_cache=True)
    if (cache := getattr(before, "past_key_values", None)) is not None:
        last = {n: v if n == "attention_mask" else v[:, -1:] for n, v in inputs.items()}
        found.append(model(**last, past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, 1)
