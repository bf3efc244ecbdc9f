"""JumpReLU SAE: f = z · H(z − θ), z = x @ W_enc + b_enc, θ > 0 per latent, penalty ‖f‖₀.

Gradients of the step H by a rectangle straight-through estimator (Rajamanoharan et al. 2024,
arXiv 2407.14435): with K(u) = 1[|u| < ½] and bandwidth ε,
∂f/∂z = 1[z > θ], ∂f/∂θ = −(θ/ε) K((z − θ)/ε), ∂H/∂θ = −(1/ε) K((z − θ)/ε); the L0 term reaches only θ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastzoo.saes.base import SAE, CudaForm, TrainableSAE

SMALLEST_THRESHOLD = 1e-6
"""θ learned directly stays at or above this, so that training and inference agree."""


class JumpReLUSAE(TrainableSAE):
    """``threshold`` (d_sae,) is θ itself. Training may move log θ instead (``learn_log_threshold``)."""

    architecture = "jumprelu"
    width_power = 1.0  # a count does not grow, the squared norm does

    def __init__(
        self, d_in: int, d_sae: int, *, bandwidth: float = 0.001, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(d_in, d_sae, dtype=dtype)
        self.threshold = nn.Parameter(torch.full((d_sae,), 0.001, dtype=dtype))
        self.bandwidth, self.margin = bandwidth, bandwidth / 2
        self.log_threshold: nn.Parameter | None = None

    @classmethod
    def shapes(cls, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(d_in, d_sae), "threshold": (d_sae,)}

    @classmethod
    @torch.no_grad()
    def start(cls, d_in: int, d_sae: int, options: Mapping[str, Any]) -> JumpReLUSAE:
        sae = cls(d_in, d_sae, bandwidth=options["jumprelu_bandwidth"])
        sae.threshold.fill_(options["jumprelu_initial_threshold"])
        if options["jumprelu_threshold"] == "log":
            sae.learn_log_threshold()
        return sae

    @torch.no_grad()
    def start_sparse_(self, latents: slice, bound_F: Tensor) -> None:
        self.threshold[latents] = bound_F.clamp_min(SMALLEST_THRESHOLD)
        if self.log_threshold is not None:
            self.log_threshold[latents] = self.threshold[latents].log()

    def learn_log_threshold(self) -> None:
        """From now on log θ is what the optimiser moves, and ``threshold`` follows it."""
        self.log_threshold = nn.Parameter(self.threshold.detach().log())

    @property
    def _learned(self) -> str:
        return "threshold" if self.log_threshold is None else "log_threshold"

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return super().trained_parameters() | {self._learned: getattr(self, self._learned)}

    def cuda_form(self) -> CudaForm:
        return CudaForm(self._learned, self.log_threshold is not None, self.bandwidth, SMALLEST_THRESHOLD)

    @torch.no_grad()
    def constrain_(self) -> None:
        if self.log_threshold is not None:
            self.threshold.copy_(self.log_threshold.exp())
        else:
            self.threshold.clamp_min_(SMALLEST_THRESHOLD)

    @torch.no_grad()
    def rescale_(self, factor: float) -> SAE:
        super().rescale_(factor)
        self.threshold.mul_(factor)
        if self.log_threshold is not None:
            self.log_threshold.copy_(self.threshold.log())
        return self

    def activate(self, pre: Tensor) -> Tensor:
        return torch.where((pre > self.threshold) & (pre > 0), pre, 0.0)

    def encode_latents(self, x: Tensor, latents_K: Tensor) -> Tensor:
        pre = self.pre_activations(x, latents_K)
        return torch.where((pre > self.threshold[latents_K]) & (pre > 0), pre, 0.0)

    def thresholds(self, pre_BF: Tensor) -> Tensor:
        return self.threshold

    def penalty_terms(self, acts: Tensor) -> Tensor:
        return torch.sign(acts)

    def penalty_slope(self, acts: Tensor) -> None:
        return None

    def activation_gradient_(self, pre_BF: Tensor, acts_BF: Tensor, grad_BF: Tensor, weight: float) -> Tensor:
        theta_F, width = self.threshold, self.bandwidth
        near_BF = (pre_BF - theta_F).abs_().lt_(self.margin)  # 1 near the threshold, else 0
        grad_theta_F = near_BF.sum(0).mul_(-weight / width)
        grad_theta_F.addcmul_(near_BF.mul_(grad_BF).sum(0), theta_F, value=-1.0 / width)
        getattr(self, self._learned).grad.add_(self._chained(grad_theta_F))
        return super().activation_gradient_(pre_BF, acts_BF, grad_BF, weight)

    def threshold_gradient(self, near_F: Tensor, near_grad_F: Tensor, weight: float) -> dict[str, Tensor]:
        # The dense gradient's formula rounds otherwise; both stay, as results do to the last bit.
        grad_theta_F = (near_grad_F * self.threshold).add_(near_F * weight).div_(-self.bandwidth)
        return {self._learned: self._chained(grad_theta_F)}

    def _chained(self, grad_theta_F: Tensor) -> Tensor:
        """The gradient of θ as that of what is learned: ∂/∂(log θ) = θ · ∂/∂θ."""
        return grad_theta_F if self.log_threshold is None else grad_theta_F * self.threshold
