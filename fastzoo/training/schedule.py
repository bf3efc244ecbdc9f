"""Learning rate and sparsity coefficient of each step, as the paper's options define them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastzoo.config.recipe import TrainingSection


@dataclass(frozen=True)
class Schedule:
    """Three phases: linear warm-up to ``lr``, cosine to ``lr_end``, linear to 0 over the last steps."""

    steps: int
    lr: float
    lr_end: float
    warmup: int
    decay: int
    sparsity_warmup: int

    @classmethod
    def of(cls, training: TrainingSection) -> Schedule:
        spans = training.lr_warmup, training.lr_decay, training.sparsity_warmup
        return cls(training.steps, training.lr, training.lr_end, *map(training.in_steps, spans))

    def learning_rate(self, step: int) -> float:
        """Learning rate of ``step`` (from 0)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        decay_start = self.steps - self.decay
        if step >= decay_start:
            # Without a cosine phase the decay starts from the peak, not from lr_end.
            top = self.lr_end if decay_start > self.warmup else self.lr
            return top * (self.steps - step) / self.decay
        share = (step - self.warmup) / (decay_start - self.warmup)
        return self.lr_end + (self.lr - self.lr_end) * (1 + math.cos(math.pi * share)) / 2

    def sparsity_share(self, step: int) -> float:
        """Factor on the sparsity coefficient: 0 at step 0, growing linearly to 1."""
        return min(1.0, step / self.sparsity_warmup) if self.sparsity_warmup else 1.0
