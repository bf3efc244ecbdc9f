"""JumpReLU SAE: f = z · H(z − θ), z = x @ W_enc + b_enc, θ > 0 per latent, penalty ‖f‖₀.

Gradients of the step H by a rectangle straight-through estimator (Rajamanoharan et al. 2024,
arXiv 2407.14435): with K(u) = 1[|u| < ½] and bandwidth ε,
∂f/∂z = 1[z > θ], ∂f/∂θ = −(θ/ε) K((z − θ)/ε), ∂H/∂θ = −(1/ε) K((z − θ)/ε); the L0 term reaches only θ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastzoo.saes.base import SAE, TrainableSAE

SMALLEST_THRESHOLD = 1e-6
"""θ learned directly is kept at or above this, so that training and inference agree."""


class JumpReLUSAE(TrainableSAE):
    """``threshold`` (d_sae,) is θ itself. Training may move log θ instead (``learn_log_threshold``)."""

    architecture = "jumprelu"
    width_power = 1.0  # a count does not grow, the squared norm does

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        bandwidth: float = 0.001,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(d_in, d_sae, dtype=dtype)
        self.threshold = nn.Parameter(torch.full((d_sae,), 0.001, dtype=dtype))
        self.bandwidth = bandwidth
        self.log_threshold: nn.Parameter | None = None

    def learn_log_threshold(self) -> None:
        """From now on log θ is what the optimiser moves, and ``threshold`` follows it."""
        self.log_threshold = nn.Parameter(self.threshold.detach().log())

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        own = {"threshold": self.threshold}
        if self.log_threshold is not None:
            own = {"log_threshold": self.log_threshold}
        return super().trained_parameters() | own

    def activate(self, pre: Tensor) -> Tensor:
        return torch.where((pre > self.threshold) & (pre > 0), pre, 0.0)

    def encode_latents(self, x: Tensor, latents_K: Tensor) -> Tensor:
        pre = x.to(self.W_enc.dtype) @ self.W_enc[:, latents_K] + self.b_enc[latents_K]
        return torch.where((pre > self.threshold[latents_K]) & (pre > 0), pre, 0.0)

    def penalty(self, acts_BF: Tensor) -> Tensor:
        return torch.sign(acts_BF).sum()

    def activation_gradient_(
        self, pre_BF: Tensor, acts_BF: Tensor, grad_BF: Tensor, weight: float
    ) -> Tensor:
        theta, width = self.threshold, self.bandwidth
        window_BF = (pre_BF - theta).abs_().lt_(width / 2)  # 1 near the threshold, else 0
        grad_theta = window_BF.sum(0).mul_(-weight / width)
        grad_theta.addcmul_(window_BF.mul_(grad_BF).sum(0), theta, value=-1.0 / width)
        if self.log_threshold is None:
            self.threshold.grad.add_(grad_theta)  # type: ignore[union-attr]
        else:
            self.log_threshold.grad.add_(grad_theta.mul_(theta))  # type: ignore[union-attr]
        return grad_BF.mul_(torch.sign(acts_BF))

    @torch.no_grad()
    def after_update(self) -> None:
        super().after_update()
        self.constrain_threshold_()

    @torch.no_grad()
    def constrain_threshold_(self) -> None:
        """``threshold`` follows log θ, or stays above zero."""
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
