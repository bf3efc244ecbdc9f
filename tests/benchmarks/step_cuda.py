"""One optimiser step on a GPU, at the paper's batch: fastzoo's trainer beside a compiled sae-lens.

For every residual width of the paper's grid, at expansion 8. Timed by CUDA events over whole steps,
as a user calls them. Part of the benchmark ``step`` where there is a GPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from rounds import Ratio, Seconds, median_seconds, ratio
from step import ARCHITECTURES, fastzoo_step, sae_lens_step
from torch import Tensor

from fastzoo.config.reading import preset_values
from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.saes.names import GRID

WIDTHS = sorted({row.d_model for row in GRID})
EXPANSION = 8
DEVICE = torch.device("cuda")

BYTES_PER_PARAMETER = 30
"""Least traffic of a step: the products read a parameter one and a half times (the encoder once, the
decoder twice), Adam reads and writes it and its two moments; all of 4 bytes."""

BYTES_PER_SECOND = 3e12
"""Taken for the GPU's memory, whichever it is: about an H100's."""

CALLS = 20
"""Steps per timing: launches overlap, as in training."""


def measure(*, quick: bool) -> dict[str, Any]:
    """Ratios in float32; the share of bandwidth with products in TF32, which arithmetic does not limit."""
    figures: dict[str, Any] = {"step_ratio_cuda": {}, "bandwidth_share_cuda": {}}
    training = TrainingSection(**preset_values("paper"))
    for width in WIDTHS:
        d_in, rounds = (64, 3) if quick else (width, 15)
        figures["step_ratio_cuda"][str(width)] = {
            kind: compare(kind, d_in, training, rounds) for kind in ARCHITECTURES
        }
        figures["bandwidth_share_cuda"][str(width)] = bandwidth_share(d_in, training, rounds)
    return figures


def compare(kind: str, d_in: int, training: TrainingSection, rounds: int) -> Ratio:
    """How many times faster fastzoo's step is."""
    encoder, batches = start(d_in, training.batch_size)
    variants = {
        "sae-lens": sae_lens_step(kind, encoder, training, batches, DEVICE, compiled=True),
        "fastzoo": fastzoo_step(kind, encoder, training, batches, DEVICE),
    }
    times = interleave_on_gpu(variants, rounds)
    return ratio(times["sae-lens"], times["fastzoo"])


def bandwidth_share(d_in: int, training: TrainingSection, rounds: int) -> float:
    """The least bytes of a step, over what the memory could move in the time that it takes."""
    encoder, batches = start(d_in, training.batch_size)
    compute = ComputeSection(precision="tf32")
    step = fastzoo_step("standard", encoder, training, batches, DEVICE, compute)
    seconds = median_seconds(interleave_on_gpu({"fastzoo": step}, rounds)["fastzoo"])
    return 2 * encoder.numel() * BYTES_PER_PARAMETER / BYTES_PER_SECOND / seconds


def start(d_in: int, batch: int) -> tuple[Tensor, list[Tensor]]:
    """A unit-norm encoder (d_in, d_sae) and a few batches, on the GPU; what was there before is freed."""
    gc.collect()
    torch.cuda.empty_cache()
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = [(d_in, d_in * EXPANSION), *[(batch, d_in)] * 4]
    encoder, *batches = (torch.randn(s, generator=generator, device=DEVICE) for s in shapes)
    return encoder / encoder.norm(dim=0), batches


def interleave_on_gpu(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[Seconds]]:
    """Seconds per call, the variants taking turns, each round starting with another one."""
    names = list(variants)
    for name in names:
        timed(variants[name])  # compiles, captures graphs
    times: dict[str, list[Seconds]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(timed(variants[name]))
    return times


def timed(call: Callable[[], object]) -> Seconds:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu = time.process_time()
    begin.record()
    for _ in range(CALLS):
        call()
    end.record()
    cpu = time.process_time() - cpu
    end.synchronize()
    return Seconds(begin.elapsed_time(end) / 1e3 / CALLS, cpu / CALLS)
