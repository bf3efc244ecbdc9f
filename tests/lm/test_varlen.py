"""Attention by variable-length kernels: where it declines, and (on a GPU) what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastzoo.lm.attention import (
    OLDEST,
    boundaries,
    flash_kernel,
    segment_attention,
    torch_kernel,
    varlen_attention,
)

on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < OLDEST,
    reason="the kernels run on GPUs only",
)
LENGTHS = [1, 1, 7, 30, 64, 129]


def tensors(
    dtype: torch.dtype, device: str, kv_heads: int = 2, head_dim: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, sum(LENGTHS), head_dim, generator=generator).to(device, dtype)
        for heads in (4, kv_heads, kv_heads)
    )
    return q, k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_declines_on_a_cpu(dtype: torch.dtype) -> None:
    assert varlen_attention(*tensors(dtype, "cpu"), LENGTHS) is None


def test_boundaries() -> None:
    bounds = boundaries((3, 1, 4), torch.device("cpu"))
    assert bounds.tolist() == [0, 3, 4, 8]
    assert bounds.dtype == torch.int32
    assert boundaries((3, 1, 4), torch.device("cpu")) is bounds


def test_looking_for_kernels_never_fails() -> None:
    for kernel in (torch_kernel(), flash_kernel()):
        assert kernel is None or callable(kernel)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 5, 200])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_equals_attention_segment_by_segment(
    dtype: torch.dtype, kv_heads: int, window: int | None, softcap: float | None
) -> None:
    q, k, v = tensors(dtype, "cuda", kv_heads)
    found = varlen_attention(q, k, v, LENGTHS, scaling=0.4, sliding_window=window, softcap=softcap)
    if found is None:
        assert flash_kernel() is None and (softcap is not None or torch_kernel() is None)
        pytest.skip("no kernel for this here")
    # The tested way of packing, in float32.
    expected, _ = segment_attention(
        None,
        q.float(),
        k.float(),
        v.float(),
        None,
        scaling=0.4,
        sliding_window=window,
        softcap=softcap,
        segment_lengths=LENGTHS,
    )
    assert found.shape == expected.shape and found.is_contiguous()
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@on_gpu
def test_declines_what_the_kernels_cannot_do() -> None:
    assert varlen_attention(*tensors(torch.float32, "cuda"), LENGTHS) is None
    assert varlen_attention(*tensors(torch.float16, "cuda", head_dim=12), LENGTHS) is None
