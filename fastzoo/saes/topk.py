"""TopK SAE: the k largest ReLU'd pre-activations of each token (Gao et al. 2024). Inference only."""

from __future__ import annotations

import torch
from torch import Tensor

from fastzoo.saes.base import SAE


class TopKSAE(SAE):
    architecture = "topk"

    def __init__(
        self, d_in: int, d_sae: int, *, k: int = 32, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(d_in, d_sae, dtype=dtype)
        if not 1 <= k <= d_sae:
            raise ValueError(f"k must be between 1 and d_sae={d_sae}, got {k}")
        self.k = k

    def activate(self, pre: Tensor) -> Tensor:
        top = torch.relu(pre).topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
