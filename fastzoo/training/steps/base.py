"""What every optimiser step has in common; ``reference.py`` is the one to read first.

A step moves one SAE by one batch: closed-form gradients, their norm clipped, Adam, decoder rows back
to unit norm. All implementations compute the same; they differ in what they make use of.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.saes.base import StepStats, TrainableSAE


class Step:
    """The step of one SAE, which is on its device already, with its Adam state.

    ``W_enc`` is kept latent-major, as ``W_dec`` is: still (d_in, d_sae), but each latent is contiguous.
    """

    kind: ClassVar[str]
    side_by_side: ClassVar[bool] = True
    """Whether the steps of several SAEs may run at the same time, in threads."""
    precision: str = "float32"
    """Of the matrix products."""

    def __init__(self, sae: TrainableSAE, training: TrainingSection, compute: ComputeSection) -> None:
        self.sae = sae
        self.beta1, self.beta2 = training.adam_betas
        self.eps, self.clip_norm = training.adam_eps, training.clip_norm
        self.steps = 0
        sae.W_enc = nn.Parameter(sae.W_enc.detach().t().contiguous().t())

    def __call__(self, x_BD: Tensor, rate: float, coefficient: float) -> StepStats:
        """One step on a batch, on the SAE's device; nothing here waits for a GPU.

        A gradient whose norm (``StepStats.grad_norm``) is NaN or infinite leaves the SAE, and its
        Adam state, as they were.
        """
        raise NotImplementedError

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Adam's running mean and mean square per trained parameter, in that parameter's shape.

        From the first step on, or after ``go_on_from``, these are the tensors that steps use.
        """
        raise NotImplementedError

    def go_on_from(self, steps: int) -> None:
        """Count on from so many steps; what ``moments`` gives can then be overwritten."""
        self.steps = steps
