"""Optimiser steps: one file per way of computing the same thing."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from fastzoo.config import ComputeSection, TrainingSection
from fastzoo.errors import InputError
from fastzoo.saes.base import TrainableSAE
from fastzoo.steps.base import Step
from fastzoo.steps.reference import ReferenceStep

__all__ = ["ReferenceStep", "Step", "step_for"]


def step_for(sae: TrainableSAE, training: TrainingSection, compute: ComputeSection) -> Step:
    """The step that ``compute.step`` asks for; ``auto`` is the fastest that runs on the SAE's device.

    Raises:
        InputError: that one does not run here.
    """
    device = sae.W_dec.device
    kind = compute.step
    if kind == "auto":
        kind = "cuda" if device.type == "cuda" else "sparse"
    if kind != "reference":
        lacks = sparse_lacks(device) if kind == "sparse" else cuda_lacks(device)
        if not lacks:
            if kind == "sparse":
                from fastzoo.steps.sparse import SparseStep

                return SparseStep(sae, training, compute)
            from fastzoo.steps.cuda import CudaStep

            return CudaStep(sae, training, compute)
        if compute.step != "auto":
            raise InputError(
                f"compute.step: '{kind}' needs {lacks}; 'auto' takes a step that runs here"
            )
    return ReferenceStep(sae, training, compute)


def sparse_lacks(device: torch.device) -> str:
    """What the sparse step would need and does not find, in words; empty if nothing."""
    if device.type != "cpu":
        return f"a CPU, and these SAEs are on device '{device.type}'"
    return "" if find_spec("numba") else "the package numba"


def cuda_lacks(device: torch.device) -> str:
    """The same of the CUDA step."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # slow, on a CPU: for tests
    if device.type != "cuda" and not interpreted:
        return f"an NVIDIA GPU, and these SAEs are on device '{device.type}'"
    return "" if find_spec("triton") else "the package triton"
