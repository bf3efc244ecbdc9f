"""Optimiser steps: one file per way of computing the same thing."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line
from fastzoo.saes.base import TrainableSAE
from fastzoo.training.steps.base import Step
from fastzoo.training.steps.reference import ReferenceStep

logger = logging.getLogger(__name__)

__all__ = ["ReferenceStep", "Step", "choose", "step_for"]


def step_for(sae: TrainableSAE, training: TrainingSection, compute: ComputeSection) -> Step:
    """The step that ``compute.step`` asks for, on the SAE's device; raises as ``choose`` does."""
    kind = choose(compute, sae.W_dec.device, sae)
    if kind == "cuda":
        from fastzoo.training.steps.cuda import CudaStep

        return CudaStep(sae, training, compute)
    if kind == "sparse":
        from fastzoo.training.steps.sparse import SparseStep

        return SparseStep(sae, training, compute)
    return ReferenceStep(sae, training, compute)


def choose(compute: ComputeSection, device: torch.device, sae: TrainableSAE | None = None) -> str:
    """The kind of step for SAEs, or for one ``sae``, on ``device``.

    ``auto`` is the one meant to be fastest there. On a GPU that is ``cuda``, which has been compiled
    for one and run in Triton's interpreter on a CPU, but never yet run on a GPU.

    Raises InputError if the kind or the precision that is asked for does not run there.
    """
    kind: str = compute.step
    if kind == "auto":
        kind = "cuda" if device.type == "cuda" else "sparse"
    lacks = ""
    if kind == "sparse":
        lacks = sparse_lacks(device)
    elif kind == "cuda":
        lacks = cuda_lacks(device)
        if not lacks and sae is not None and sae.cuda_form() is None:
            lacks = f"kernels for {sae.architecture} SAEs, and there are none"
    if lacks and compute.step != "auto":
        raise InputError(f"compute.step: '{kind}' needs {lacks}; 'auto' takes a step that runs here")
    if lacks:
        _say_once(f"SAEs train by the slower step 'reference': '{kind}' needs {lacks}")
        kind = "reference"
    if compute.precision != "float32" and kind != "cuda":
        raise InputError(
            f"compute.precision: '{compute.precision}' is for the step 'cuda', on a GPU with Triton; "
            f"the step here is '{kind}', which has float32"
        )
    return kind


def sparse_lacks(device: torch.device) -> str:
    """What the sparse step needs and does not find, in words; empty if nothing is missing."""
    if device.type != "cpu":
        return f"a CPU, and these SAEs are on device '{device.type}'"
    try:
        import fastzoo.training.steps.sparse_kernels  # noqa: F401
    except ImportError as error:  # missing, or not made for this NumPy
        return f"the package numba ({one_line(error, 120)})"
    return ""


def cuda_lacks(device: torch.device) -> str:
    """What the CUDA step needs and does not find, in words; empty if nothing is missing."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # slow, on a CPU: for tests
    if device.type != "cuda" and not interpreted:
        return f"an NVIDIA GPU, and these SAEs are on device '{device.type}'"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"the package triton ({one_line(error, 120)})"
    return ""


@cache
def _say_once(text: str) -> None:
    logger.warning(text)
