"""Standard SAE: f = ReLU(x @ W_enc + b_enc), penalty ‖f‖₁."""

from __future__ import annotations

import torch
from torch import Tensor

from fastzoo.saes.base import TrainableSAE


class StandardSAE(TrainableSAE):
    architecture = "standard"
    width_power = 0.5  # latents grow like the norm of x

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)

    def encode_latents(self, x: Tensor, latents_K: Tensor) -> Tensor:
        return torch.relu(x.to(self.W_enc.dtype) @ self.W_enc[:, latents_K] + self.b_enc[latents_K])

    def penalty(self, acts_BF: Tensor) -> Tensor:
        return acts_BF.sum()

    def activation_gradient_(
        self, pre_BF: Tensor, acts_BF: Tensor, grad_BF: Tensor, weight: float
    ) -> Tensor:
        return grad_BF.add_(weight).mul_(torch.sign(acts_BF))
