"""Attention over packed sequences in one call, on GPUs: kernels that take sequences of any length.

Torch has one of its own (``torch.nn.attention.varlen``, from about 2.11 with all that is needed
here), and so has the package flash-attn, which also knows soft-capped scores.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

OLDEST = (8, 0)
"""Compute capability that the kernels need (Ampere)."""

WIDEST = 256
"""Head dimension that they go up to; it must be a multiple of 8."""


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
        (1, T, heads, head_dim) contiguous, or None where no kernel does this: on a CPU, in float32, on
        an old GPU, or for soft-capped scores without flash-attn.
    """
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    if torch.cuda.get_device_capability(query.device) < OLDEST:
        return None
    if query.shape[-1] % 8 or query.shape[-1] > WIDEST:
        return None
    own, flash = torch_kernel(), flash_kernel()
    # (1, H, T, d) seen as (T, H, d), which is how the kernels index tokens.
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    longest = max(lengths)
    bounds = boundaries(tuple(lengths), query.device)
    left = -1 if sliding_window is None or sliding_window >= longest else sliding_window - 1
    if own is not None and softcap is None:
        output = own(
            q,
            k,
            v,
            bounds,
            bounds,
            longest,
            longest,
            scale=scaling,
            window_size=(left, 0),
            enable_gqa=k.shape[1] != q.shape[1],
        )
    elif flash is not None:
        output = flash(
            q,
            k,
            v,
            bounds,
            bounds,
            longest,
            longest,
            softmax_scale=scaling,
            causal=True,
            window_size=(left, 0 if left >= 0 else -1),
            softcap=softcap or 0.0,
        )
    else:
        return None
    return output[None].contiguous()


@lru_cache(maxsize=4)
def boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(segments + 1,) int32: where each segment starts, and the end. The layers of a model share it."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


@cache
def torch_kernel() -> Callable[..., Any] | None:
    """Torch's own kernel; None where it lacks grouped heads or windows, or was built for ROCm."""
    if torch.version.hip is not None:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    kernel: Callable[..., Any] = varlen_attn
    return kernel if {"scale", "window_size", "enable_gqa"} <= set(known) else None


@cache
def flash_kernel() -> Callable[..., Any] | None:
    """The package's kernel, where one is installed that knows soft-capping."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    kernel: Callable[..., Any] = flash_attn_varlen_func
    return kernel if "softcap" in inspect.signature(kernel).parameters else None
