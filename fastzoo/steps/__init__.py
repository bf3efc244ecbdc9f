"""Optimiser steps: one file per way of computing the same thing."""

from __future__ import annotations

from importlib.util import find_spec

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
    device = sae.W_dec.device.type
    numba = find_spec("numba") is not None
    if compute.step == "sparse" and (device != "cpu" or not numba):
        lacks = "runs on a CPU only" if device != "cpu" else "needs the package numba"
        raise InputError(f"compute.step: 'sparse' {lacks}; 'auto' takes what runs here")
    if compute.step == "sparse" or (compute.step == "auto" and device == "cpu" and numba):
        from fastzoo.steps.sparse import SparseStep

        return SparseStep(sae, training, compute)
    return ReferenceStep(sae, training, compute)
