"""Standard SAE: f = ReLU(x @ W_enc + b_enc), penalty ‖f‖₁."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line
from fastzoo.saes.base import SAE, CudaForm, TrainableSAE


class StandardSAE(TrainableSAE):
    architecture = "standard"
    width_power = 0.5  # latents grow like the norm of x

    @classmethod
    def from_config(cls, d_in: int, d_sae: int, config: Mapping[str, Any]) -> SAE:
        function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
        if function != "relu":
            raise InputError(f"activation '{one_line(function, 40)}' is not read")
        return cls(d_in, d_sae)

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
