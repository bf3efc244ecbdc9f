"""Attention in which packed dialogues do not see each other: segment by segment on a CPU, by
variable-length kernels on a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import import_module
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IMPLEMENTATION = "fastzoo_segments"
"""Name of the attention function in transformers' registry."""


IGNORED = {"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k"}
"""Tensors that models hand to every attention function, and that change no score."""


def register() -> None:
    """Make the attention function known to transformers (once)."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, segment_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, SegmentMask)


@dataclass(frozen=True)
class Sight:
    """What tokens of a segment see, for segments of up to ``length`` tokens."""

    length: int
    horizon: int
    """In segments of up to so many tokens, each token sees all before it."""
    window: int | None
    """How many tokens each one sees, itself included; None: all, or as ``mask`` says."""
    mask: Tensor | None = None
    """(length, length) bool, where that is no window."""

    def of(self, length: int, device: torch.device) -> Tensor | None:
        """(L, L) bool for a segment, None for plain causality."""
        if length <= self.horizon:
            return None
        return _window_mask(length, self.window, device) if self.mask is None else self.mask[:length, :length]


class SegmentMask:
    """In place of a mask: the rule by which transformers would make it.

    A window or a chunk stands in the mask only, with many models. One that changes its masks fails with
    this, as it should: what it would do to them is not done here.
    """

    def __init__(self, *, mask_function: Callable[..., Tensor], device: Any, **others: Any) -> None:
        if others.get("use_vmap"):
            raise RuntimeError("this model has a mask of its own kind, which is not computed per segment")
        self._sees, self._device = mask_function, device
        self._sight: Sight | None = None

    def sight(self, lengths: Sequence[int]) -> Sight:
        """What the longest of consecutive segments sees; a shorter one sees the same of its first tokens."""
        if self._sight is None:
            length = max(lengths)
            start = sum(lengths[: list(lengths).index(length)])
            place = torch.arange(start, start + length, device=self._device)
            zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=self._device)
            mask = self._sees(zero, zero, place[None, None, :, None], place[None, None, None, :])
            self._sight = _sight_of(mask.expand(1, 1, length, length)[0, 0])
        return self._sight


def _sight_of(mask: Tensor) -> Sight:
    length = len(mask)
    plain = torch.ones_like(mask).tril_()
    if torch.equal(mask, plain):
        return Sight(length, length, None)
    horizon = int((mask == plain).all(1).int().cumprod(0).sum())
    window = int(mask[-1].sum())
    if horizon == window and torch.equal(mask, plain.triu_(1 - window)):
        return Sight(length, horizon, window)
    return Sight(length, horizon, None, mask)


def segment_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: SegmentMask | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    segment_lengths: list[int] | None = None,
    segment_kernel: str = "sdpa",
    segment_sights: dict[Any, Sight] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the consecutive segments of ``segment_lengths``.

    Args:
        query: (1, heads, T, head_dim); ``key`` and ``value`` may have fewer heads.
        attention_mask: what else than plain causality holds; without it, ``sliding_window`` does.
        s_aux: (heads,) logits of learned attention sinks.
        segment_kernel: ``sdpa`` or ``eager``; soft-capped scores and sinks are always computed eagerly.
        segment_sights: filled with what each module sees, and asked first; masks depend on lengths only.

    Returns:
        (1, T, heads, head_dim), as transformers expects it.

    Raises RuntimeError: the model did not pass ``segment_lengths`` on, or attends in a way not known here.
    """
    if segment_lengths is None:
        raise RuntimeError("this model does not pass keyword arguments on to its attention")
    unknown = [k for k, v in kwargs.items() if isinstance(v, Tensor) and k not in IGNORED]
    if unknown or query.shape[2] != sum(segment_lengths) or key.shape[2] != query.shape[2]:
        what = f"takes {unknown[0]}" if unknown else "runs over other tokens than its input"
        raise RuntimeError(f"this model's attention {what}, which is not computed per segment")
    sights = {} if segment_sights is None else segment_sights
    sight = sights.get(module)
    if sight is None or sight.length < max(segment_lengths):
        sight = sights[module] = _sight(attention_mask, segment_lengths, sliding_window)
    eager = segment_kernel == "eager" or softcap is not None or s_aux is not None
    windowed = sight.mask is None or max(segment_lengths) <= sight.horizon
    if segment_kernel != "eager" and s_aux is None and windowed:
        how: Any = {"scaling": scaling, "sliding_window": sight.window, "softcap": softcap}
        if (output := varlen_attention(query, key, value, segment_lengths, **how)) is not None:
            return output, None
    eagerly = partial(_eager, scaling=scaling, cap=softcap, sinks_H=s_aux)
    core = eagerly if eager else partial(_fused, scaling=scaling)
    return _by_segment(query, key, value, segment_lengths, sight, core)[None], None


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    sight: Sight,
    core: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
) -> Tensor:
    """(T, heads, head_dim): ``core`` of each run of equally long segments, as one batched call."""
    parts = []
    start = 0
    for length, run in groupby(lengths):
        count = sum(1 for _ in run)
        stop = start + length * count
        # (1, H, count·L, d) seen as (count, H, L, d).
        q, k, v = (
            x[0, :, start:stop].unflatten(1, (count, length)).transpose(0, 1) for x in (query, key, value)
        )
        start = stop
        parts.append(core(q, k, v, sight.of(length, q.device)).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scaling: float | None) -> Tensor:
    """Torch's attention, causal where no mask says otherwise."""
    causal, grouped = mask is None and q.shape[2] > 1, k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
    )


def _sight(mask: Any, lengths: Sequence[int], window: int | None) -> Sight:
    if isinstance(mask, SegmentMask):
        return mask.sight(lengths)
    if mask is not None:
        raise RuntimeError("this model makes its masks itself, which is not done per segment")
    longest = max(lengths)
    return Sight(longest, longest if window is None else window, window)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(L, L) bool of a causal sliding window, None where plain causality is the same."""
    if window is None or length <= window:
        return None
    rows = torch.arange(length, device=device)
    distance = rows[:, None] - rows[None, :]
    return (distance >= 0) & (distance < window)


def _eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    cap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Softmax attention written out, with scores soft-capped at ``cap`` and the softmax in float32.

    ``sinks_H`` are logits beside the scores that take a share of the weight, and have no value."""
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
    if sinks_H is not None:
        sinks = sinks_H.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return weights[..., : k.shape[2]] @ v


OLDEST = (8, 0)
"""Compute capability that the variable-length kernels need (Ampere)."""

WIDEST = 256
"""Their largest head dimension; it must be a multiple of 8."""


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor | None:
    """Causal attention within each of the consecutive segments of ``lengths``.

    Args:
        query: (1, heads, T, head_dim); ``key`` and ``value`` may have fewer heads.
        scaling: of the scores; 1/√head_dim by default.
        sliding_window: how many tokens each one sees, itself included.

    Returns:
        (1, T, heads, head_dim) contiguous, or None where no kernel can do it: on a CPU, in float32, on
        an old GPU, or for soft-capped scores without flash-attn.
    """
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    old = torch.cuda.get_device_capability(query.device) < OLDEST
    if old or query.shape[-1] % 8 or query.shape[-1] > WIDEST:
        return None
    longest = max(lengths)
    bounds = boundaries(tuple(lengths), query.device)
    # (1, H, T, d) seen as (T, H, d), which is how the kernels index tokens.
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    arguments = (q, k, v, bounds, bounds, longest, longest)
    left = -1 if sliding_window is None or sliding_window >= longest else sliding_window - 1
    own, flash = torch_kernel(), flash_kernel()
    if own is not None and softcap is None:
        grouped = k.shape[1] != q.shape[1]
        output = own(*arguments, scale=scaling, window_size=(left, 0), enable_gqa=grouped)
    elif flash is not None:
        window = (left, 0 if left >= 0 else -1)
        output = flash(
            *arguments, softmax_scale=scaling, causal=True, window_size=window, softcap=softcap or 0.0
        )
    else:
        return None
    return output[None].contiguous()


@lru_cache(maxsize=4)
def boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(segments + 1,) int32: where each segment starts, and the end. The layers of a model share it."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def torch_kernel() -> Callable[..., Any] | None:
    """Torch's own kernel; None where it lacks grouped heads or windows, or was built for ROCm."""
    known = _function("torch.nn.attention.varlen", "varlen_attn", "scale", "window_size", "enable_gqa")
    return None if torch.version.hip is not None else known


def flash_kernel() -> Callable[..., Any] | None:
    """flash-attn's kernel, if a version that knows soft-capping is installed."""
    return _function("flash_attn", "flash_attn_varlen_func", "softcap")


@cache
def _function(module: str, name: str, *parameters: str) -> Callable[..., Any] | None:
    """A function of a library, if that is installed and the function has these parameters."""
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return None
    return found if set(parameters) <= set(inspect.signature(found).parameters) else None
