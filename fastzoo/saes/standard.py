"""Standard SAE: f = ReLU(x @ W_enc + b_enc), penalty ‖f‖₁."""

from __future__ import annotations

import torch
from torch import Tensor

from fastzoo.saes.base import CudaForm, TrainableSAE


class StandardSAE(TrainableSAE):
    architecture = "standard"
    width_power = 0.5  # latents grow like the norm of x

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)

    def encode_latents(self, x: Tensor, latents_K: Tensor) -> Tensor:
        return self.activate(self.pre_activations(x, latents_K))

    def thresholds(self, pre_BF: Tensor) -> Tensor:
        return pre_BF.new_zeros(self.d_sae)

    def penalty_terms(self, acts: Tensor) -> Tensor:
        return acts

    def penalty_slope(self, acts: Tensor) -> float:
        return 1.0

    def cuda_form(self) -> CudaForm:
        return CudaForm()
