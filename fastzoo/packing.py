"""Many dialogues in one forward pass, none seeing another, no padding.

Dense layers run over all tokens of a pack at once; attention runs per segment (on a GPU in one call,
where a kernel knows segments). That is exact and, on a CPU, several times faster than a block-diagonal
mask, which computes the blocks it throws away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastzoo.streams import TokenSequence
from fastzoo.varlen import varlen_attention

IMPLEMENTATION = "fastzoo_segments"
"""Name of the attention function in transformers' registry."""


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
        ids = torch.cat([torch.from_numpy(s.ids) for s in sequences])[None]
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        return cls(sequences, to_device(ids, device), to_device(positions, device), lengths)

    def column(self, name: str) -> Tensor:
        """(T,) ``position``, ``dialogue`` or ``special`` of all tokens, on the CPU."""
        return torch.cat([torch.from_numpy(getattr(s, name)) for s in self.sequences])


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values from the CPU on ``device``; a GPU is not waited for."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def packs(sequences: Iterable[TokenSequence], budget: int) -> Iterator[list[TokenSequence]]:
    """Consecutive sequences, in order, of together at most ``budget`` tokens; a longer one alone."""
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


def register() -> None:
    """Make the attention function known to transformers (once)."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, segment_attention)
    # Segments are causal by construction: no mask is built.
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *args, **kwargs: None)


def segment_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    segment_lengths: list[int] | None = None,
    segment_kernel: str = "sdpa",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the consecutive segments of ``segment_lengths``.

    Args:
        query: (1, heads, T, head_dim); ``key`` and ``value`` may have fewer heads.
        segment_kernel: ``sdpa`` or ``eager``; soft-capped scores are always computed eagerly.

    Returns:
        (1, T, heads, head_dim), as transformers expects it.

    Raises:
        RuntimeError: the model did not pass ``segment_lengths`` on.
    """
    if segment_lengths is None:
        raise RuntimeError("this model does not pass keyword arguments on to its attention")
    if kwargs.get("s_aux") is not None:
        raise RuntimeError("attention with learned sinks is not computed per segment")
    eager = softcap is not None or segment_kernel == "eager"
    if segment_kernel != "eager":
        output = varlen_attention(
            query,
            key,
            value,
            segment_lengths,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
        )
        if output is not None:
            return output, None
    heads, tokens = query.shape[1:3]
    output_THd = query.new_empty((tokens, heads, value.shape[-1]))
    start = 0
    for length, count in _runs(segment_lengths):
        stop = start + length * count
        # (1, H, count·L, d) seen as (count, H, L, d): equal segments are one batched call.
        q, k, v = (
            x[0, :, start:stop].unflatten(1, (count, length)).transpose(0, 1)
            for x in (query, key, value)
        )
        mask = _window_mask(length, sliding_window, q.device)
        if eager:
            part = _eager(q, k, v, mask, scaling, softcap)
        else:
            part = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None and length > 1,
                scale=scaling,
                enable_gqa=k.shape[1] != q.shape[1],
            )
        output_THd[start:stop] = part.transpose(1, 2).flatten(0, 1)
        start = stop
    return output_THd[None], None


def _runs(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Run-length encoding: (length, how many in a row)."""
    count = 0
    for i, length in enumerate(lengths):
        count += 1
        if i + 1 == len(lengths) or lengths[i + 1] != length:
            yield length, count
            count = 0


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(L, L) bool of a causal sliding window, None where plain causality is the same."""
    if window is None or length <= window:
        return None
    rows = torch.arange(length, device=device)
    distance = rows[:, None] - rows[None, :]
    return (distance >= 0) & (distance < window)


def _eager(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, cap: float | None
) -> Tensor:
    """Softmax attention written out, scores soft-capped at ``cap``; softmax in float32."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    if mask is None:
        length = q.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril_()
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
