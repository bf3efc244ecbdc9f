"""What of a model depends on the lengths of the dialogues that go through it together, by its configuration."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

from fastzoo.data.sequences import TokenSequence

SWITCHES = re.compile(r"window|chunk|block|position|floor_scale|max_seq|context_len")
"""Words in the keys of a configuration that say at which length something switches."""

GROWTH = 1.25
"""How much longer than any proven before a dialogue, or a pack, is when it is proven again."""


@dataclass(frozen=True)
class LengthRules:
    """Which dialogues may go through a model together, and which packs show nothing new about it."""

    boundaries: tuple[int, ...] = ()
    """Lengths up to which a mechanism is one thing, and beyond which it may be another."""
    sides: tuple[int, ...] = ()
    """The longest of a pack decides for all of it on which side of these it is: none has both."""
    scaled_beyond: int | None = None
    """A dialogue longer than this decides with its own length for all of its pack: it goes alone."""

    @classmethod
    def of(cls, config: Any) -> LengthRules:
        """Of a model's configuration."""
        text = config.get_text_config()
        found = {n for key, n in _numbers(text.to_dict()) if SWITCHES.search(key) and n > 1}
        longest = int(getattr(text, "max_position_embeddings", None) or 0)
        sides, scaled = set(), None
        for rope in _ropes(getattr(text, "rope_parameters", None)):
            if rope.get("rope_type") == "longrope":
                sides.add(int(rope.get("original_max_position_embeddings") or longest))
            elif "dynamic" in str(rope.get("rope_type")):
                scaled = longest
        return cls(tuple(sorted(found)), tuple(sorted(sides)), scaled)

    @property
    def remembers(self) -> bool:
        """Whether a forward leaves something in the model that changes the next one."""
        return bool(self.sides) or self.scaled_beyond is not None

    def together(self, group: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
        """Consecutive sequences of a pack that may go through the model together."""
        runs = [list(run) for _, run in groupby(group, lambda s: self.side(len(s)))]
        return [
            part for run in runs for part in ([[s] for s in run] if self.side(len(run[0])) < 0 else [run])
        ]

    def side(self, length: int) -> int:
        """Which lengths it may be with; below 0: none."""
        if self.scaled_beyond is not None and length > self.scaled_beyond:
            return -1
        return bisect_left(self.sides, length)

    def key(self, first: int, last: int) -> tuple[int, ...] | None:
        """Equal for rows that may be a batch while they grow from ``first`` tokens to ``last``; None: it goes alone."""
        side = self.side(first)
        return (side,) if side >= 0 and side == self.side(last) else None

    def regime(self, length: int) -> int:
        """Between which boundaries a length is."""
        return bisect_left(self.boundaries, length)


@dataclass
class Proven:
    """The packs that were seen to give the same as their dialogues alone; what is like them need not be."""

    rules: LengthRules
    kinds: set[tuple[int, ...]] = field(default_factory=set)
    longest: list[int] = field(default_factory=lambda: [0, 0])

    def knows(self, group: Sequence[TokenSequence]) -> bool:
        """Whether a pack like this was proven: as many sides of every boundary, and hardly shorter."""
        kind, sizes = self._described(group)
        return kind in self.kinds and all(n <= GROWTH * m for n, m in zip(sizes, self.longest, strict=True))

    def add(self, group: Sequence[TokenSequence]) -> None:
        kind, sizes = self._described(group)
        self.kinds.add(kind)
        self.longest = [max(pair) for pair in zip(sizes, self.longest, strict=True)]

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return {"kinds": sorted(map(list, self.kinds)), "longest": self.longest}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kinds, self.longest = set(map(tuple, state["kinds"])), list(state["longest"])

    def _described(self, group: Sequence[TokenSequence]) -> tuple[tuple[int, ...], list[int]]:
        # A sequence alone in its pack does not show whether neighbours are seen.
        lengths, regime = [len(s) for s in group], self.rules.regime
        kind = (int(len(group) > 1), regime(min(lengths)), regime(max(lengths)), regime(sum(lengths)))
        return kind, [max(lengths), sum(lengths)]


def _numbers(values: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration, with the key that it, or the list it is in, stands under."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _numbers(value, str(name))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _numbers(value, key)
    elif isinstance(values, (int, float)) and not isinstance(values, bool) and values == values // 1:
        yield key, int(values)


def _ropes(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of rotary embeddings: of all layers, or by kind of layer."""
    if isinstance(parameters, Mapping):
        yield parameters
        for part in parameters.values():
            yield from _ropes(part)


def forget(model: nn.Module) -> None:
    """Take the rotary embeddings that grow with the longest dialogue so far back to their start."""
    for module in model.modules():
        start = getattr(module, "original_max_seq_len", None)
        if start is None:
            continue
        for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
            setattr(module, name, start)
        for name, _ in list(module.named_buffers(recurse=False)):
            original = getattr(module, name.removesuffix("inv_freq") + "original_inv_freq", None)
            if name.endswith("inv_freq") and not name.endswith("original_inv_freq") and original is not None:
                with torch.inference_mode(False):  # a model in use elsewhere could not change such a tensor
                    module.register_buffer(name, original.clone(), persistent=False)


def other_mixers(layers: nn.ModuleList) -> str | None:
    """What beside attention mixes tokens in some layer: convolutions and recurrences see the neighbour."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
                return f"layer {index} has a convolution or a recurrence, which sees the dialogue before"
    return None
