"""The rows of a sweep: one for each answer, with its prompt and with what it is steered by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastzoo.core.files import machine_memory
from fastzoo.lm.stack import decoder_layers
from fastzoo.steering.edits import Edit

ARMS = LATENT, RANDOM, PROMPT = "latent", "random", "prompt"
"""What rows are steered by: the latents, a random direction as long, a wish in the system prompt."""

MEMORY_SHARE = 0.4
"""Of the memory that is free, for the rows of one call."""

MOST_ROWS = 512


@dataclass(frozen=True)
class SweepRow:
    """One answer to be written."""

    arm: str
    question: int
    alpha: float
    prompt: list[int]
    edit: Edit | None = None  # None: it is not steered
    index: int = 0
    """Its row of the edit's values."""

    def key(self) -> tuple[Any, ...]:
        """Equal for rows with the same answer."""
        if self.edit is None or self.edit.mode != "add":
            return (tuple(self.prompt), self.edit and (id(self.edit), self.index))
        delta_D = self.edit.values_RX[self.index]
        return (tuple(self.prompt), delta_D.numpy().tobytes() if delta_D.any() else None)


def arm_rows(arm: str, prompts: Sequence[list[int]], alphas: Sequence[float], edit: Edit) -> list[SweepRow]:
    """The rows of an arm: every question at every alpha."""
    return [
        SweepRow(arm, question, float(alpha), prompt, edit, i)
        for question, prompt in enumerate(prompts)
        for i, alpha in enumerate(alphas)
    ]


def random_edit(edit: Edit, alphas: Sequence[float], seed: int) -> Edit:
    """A random direction, in each row as long as what the edit adds; negative alphas turn it around."""
    generator = torch.Generator().manual_seed(seed)
    direction_D = torch.randn(edit.values_RX.shape[1], generator=generator)
    direction_D /= direction_D.norm()
    sign_R1 = torch.tensor([[-1.0 if alpha < 0 else 1.0] for alpha in alphas])
    return replace(edit, values_RX=edit.values_RX.norm(dim=1, keepdim=True) * sign_R1 * direction_D)


def joined(rows: Sequence[SweepRow]) -> list[Edit]:
    """One edit that steers each row of a batch by its own; no edit if no row is steered."""
    first = next((row.edit for row in rows if row.edit is not None), None)
    if first is None:
        return []
    values = [first.nothing if r.edit is None else r.edit.values_RX[r.index] for r in rows]
    return [replace(first, values_RX=torch.stack(values))]


def groups_of(
    rows: Sequence[SweepRow], key_of: Callable[[int], tuple[int, ...] | None]
) -> list[list[list[int]]]:
    """The places of rows, those with the same answer in one group: they are answered once.

    Returns queues of groups that may share a batch: ``key_of`` their prompts' lengths is one (None: alone). In each,
    prompts of similar length are neighbours, so that little is padding.
    """
    same: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        same.setdefault(row.key(), []).append(place)
    queues: dict[Any, list[list[int]]] = {}
    for group in sorted(same.values(), key=lambda group: len(rows[group[0]].prompt)):
        key = key_of(len(rows[group[0]].prompt))
        queues.setdefault(group[0] if key is None else key, []).append(group)
    return list(queues.values())


def rows_that_fit(model: Any, tokens: int, new_tokens: int) -> int:
    """How many rows memory has room for, with prompts of ``tokens`` tokens and ``new_tokens`` new ones."""
    config = model.config.get_text_config()
    width, every = config.hidden_size, _size(config, "num_attention_heads", 1)
    heads, head = _size(config, "num_key_value_heads", every), _size(config, "head_dim", width // every)
    weight = next(model.parameters())
    cached = 2 * len(decoder_layers(model)) * heads * head * (tokens + new_tokens)
    # The prompt's hidden states and MLP, and the logits of one step in float32.
    wide = tokens * 4 * _size(config, "intermediate_size", 4 * width)
    row = (cached + wide) * weight.element_size() + 3 * 4 * config.vocab_size
    cuda = weight.device.type == "cuda"
    free = torch.cuda.mem_get_info(weight.device)[0] if cuda else machine_memory() // 4
    return int(min(MOST_ROWS, max(1, MEMORY_SHARE * free // row)))


def _size(config: Any, name: str, default: int) -> int:
    """A size of a model; the largest where layers differ."""
    said = getattr(config, name, None)
    return max(said, default=default) if isinstance(said, list | tuple) else said or default
