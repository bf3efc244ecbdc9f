"""Optimiser steps: one file per way of computing the same thing."""

from __future__ import annotations

import importlib.util
import os

import torch

from fastzoo.config import ComputeSection, TrainingSection
from fastzoo.errors import InputError
from fastzoo.saes.base import TrainableSAE
from fastzoo.steps.base import Step
from fastzoo.steps.reference import ReferenceStep

__all__ = ["ReferenceStep", "Step", "step_for"]


def step_for(sae: TrainableSAE, training: TrainingSection, compute: ComputeSection) -> Step:
    """The step that ``compute.step`` asks for; ``auto`` is the fastest that runs on the SAE's device."""
    device = sae.W_enc.device
    if compute.step == "cuda" or (compute.step == "auto" and device.type == "cuda"):
        missing = cuda_lacks(device)
        if not missing:
            from fastzoo.steps.cuda import CudaStep

            return CudaStep(sae, training, compute)
        if compute.step == "cuda":
            raise InputError(
                f"compute.step: cuda needs {missing}; auto picks a step that runs here"
            )
    return ReferenceStep(sae, training, compute)


def cuda_lacks(device: torch.device) -> str:
    """What the CUDA step would need and does not find, in words; empty if nothing."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # slow, on a CPU: for tests
    if device.type != "cuda" and not interpreted:
        return f"an NVIDIA GPU, and these SAEs are on device '{device.type}'"
    if importlib.util.find_spec("triton") is None:
        return "Triton, which is not installed"
    return ""
