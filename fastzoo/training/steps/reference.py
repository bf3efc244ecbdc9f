"""The reference step: dense closed-form gradients and torch's own Adam, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.saes.base import StepStats, TrainableSAE
from fastzoo.training.steps.base import Step


class ReferenceStep(Step):
    kind = "reference"

    def __init__(self, sae: TrainableSAE, training: TrainingSection, compute: ComputeSection) -> None:
        super().__init__(sae, training, compute)
        self.optimizer = torch.optim.Adam(
            sae.trained_parameters().values(), betas=(self.beta1, self.beta2), eps=self.eps, fused=True
        )

    def __call__(self, x_BD: Tensor, rate: float, coefficient: float) -> StepStats:
        stats = self.sae.gradients(x_BD, coefficient)
        norm = stats.grad_norm.item()
        if not norm < float("inf"):
            return stats
        if norm > self.clip_norm:
            gradients = [p.grad for p in self.sae.trained_parameters().values() if p.grad is not None]
            torch._foreach_mul_(gradients, self.clip_norm / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.sae.after_update()
        self.steps += 1
        return stats

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        moments = {}
        for name, p in self.sae.trained_parameters().items():
            state = self.optimizer.state.get(p) or {n: torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq")}
            moments[name] = state["exp_avg"], state["exp_avg_sq"]
        return moments

    def go_on_from(self, steps: int) -> None:
        super().go_on_from(steps)
        moments = self.moments()
        for name, p in self.sae.trained_parameters().items():
            done = torch.tensor(float(steps), device=p.device)
            self.optimizer.state[p] = {
                "step": done,
                "exp_avg": moments[name][0],
                "exp_avg_sq": moments[name][1],
            }
