"""Many dialogues in one forward pass, without padding, none seeing another.

Dense layers run over all tokens of a pack at once, attention per segment (``lm.attention``). That is
exact (``difference_from_alone`` tells it of a model) and, on a CPU, several times faster than a block-diagonal mask,
whose empty blocks are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastzoo.core.text import one_line
from fastzoo.data.sequences import TokenSequence, column

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference between packed and alone that a check accepts, relative to the same
token's largest activation (an attention sink must not excuse the others)."""


@dataclass(frozen=True)
class Pack:
    """Sequences laid end to end, T tokens in all."""

    sequences: list[TokenSequence]
    input_ids: Tensor
    """(1, T) int64."""
    position_ids: Tensor
    """(1, T) int64, starting again at 0 with each sequence."""
    lengths: list[int]

    @classmethod
    def of(cls, sequences: list[TokenSequence], device: torch.device) -> Pack:
        lengths = [len(s) for s in sequences]
        ids = torch.from_numpy(column(sequences, "ids"))[None]
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        return cls(sequences, to_device(ids, device), to_device(positions, device), lengths)

    def column(self, name: str) -> Tensor:
        """(T,) ``position``, ``dialogue`` or ``special`` of all tokens, on the CPU."""
        return torch.from_numpy(column(self.sequences, name))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values from the CPU to ``device``, without waiting for a GPU."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def packs(sequences: Iterable[TokenSequence], budget: int) -> Iterator[list[TokenSequence]]:
    """Consecutive sequences of at most ``budget`` tokens together; a longer one stays alone."""
    held: list[TokenSequence] = []
    tokens = 0
    for sequence in sequences:
        if held and tokens + len(sequence) > budget:
            yield held
            held, tokens = [], 0
        held.append(sequence)
        tokens += len(sequence)
    if held:
        yield held


def difference_from_alone(
    group: list[TokenSequence], read: Callable[[list[TokenSequence], bool], Tensor]
) -> str | None:
    """In what a pack's activations differ from those of its sequences one by one; None: in nothing.

    Args:
        read: activations (T, D) of sequences, and whether as a pack.
    """
    try:
        together = read(group, True)
    except Exception as error:  # whatever a model does with attention that it does not know
        return one_line(error, 200)
    for sequence, part in zip(group, together.split([len(s) for s in group]), strict=True):
        share, allowed = difference(read([sequence], False), part)
        if not share <= allowed:
            return f"packed, a dialogue of {len(sequence)} tokens differs by a share of {share:.2g}"
    return None


def difference(expected_TD: Tensor, found_TD: Tensor) -> tuple[float, float]:
    """By how much states differ, relative to the same token's largest; and how much is rounding."""
    largest_T1 = expected_TD.abs().amax(1, keepdim=True).clamp_min(1e-6)
    share = ((expected_TD - found_TD).abs() / largest_T1).max().item()
    return share, TOLERANCE.get(expected_TD.dtype, 1e-4)
