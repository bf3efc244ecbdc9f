"""Optimiser steps: one file per way of computing the same thing."""

from __future__ import annotations

from fastzoo.config import ComputeSection, TrainingSection
from fastzoo.saes.base import TrainableSAE
from fastzoo.steps.base import Step
from fastzoo.steps.reference import ReferenceStep

__all__ = ["ReferenceStep", "Step", "step_for"]


def step_for(sae: TrainableSAE, training: TrainingSection, compute: ComputeSection) -> Step:
    """The step that ``compute.step`` asks for; ``auto`` is the fastest that runs on the SAE's device."""
    return ReferenceStep(sae, training, compute)
