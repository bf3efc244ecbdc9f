"""TopK SAE: the k largest ReLU'd pre-activations of each token (Gao et al. 2024). Inference only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line
from fastzoo.saes.base import SAE


class TopKSAE(SAE):
    architecture = "topk"
    writable = False

    def __init__(self, d_in: int, d_sae: int, *, k: int = 32, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(d_in, d_sae, dtype=dtype)
        if not 1 <= k <= d_sae:
            raise ValueError(f"k must be between 1 and d_sae={d_sae}, got {k}")
        self.k = k

    @classmethod
    def from_config(cls, d_in: int, d_sae: int, config: Mapping[str, Any]) -> SAE:
        k = config.get("k")
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= d_sae:
            raise InputError(f"k is {one_line(k, 40)}, not a number from 1 to {d_sae}, the latents there are")
        return cls(d_in, d_sae, k=k)

    def activate(self, pre: Tensor) -> Tensor:
        top = torch.relu(pre).topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, top.indices, top.values)

    @torch.no_grad()
    def apply_config_(self, config: Mapping[str, Any]) -> None:
        """Latents of unit decoder rows: each grows by the norm that its row loses."""
        if config.get("rescale_acts_by_decoder_norm", False):
            norm_F = torch.linalg.vector_norm(self.W_dec, dim=1).clamp_min(1e-8)
            self.W_dec.div_(norm_F[:, None])
            self.W_enc.mul_(norm_F)
            self.b_enc.mul_(norm_F)
