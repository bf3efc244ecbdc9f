"""What all SAEs share: four weights, encode, decode, and the closed-form gradients of training.

Shape suffixes: B tokens of a batch, D residual width (``d_in``), F latents (``d_sae``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

CHUNK_ELEMENTS = 1 << 23
"""Pre-activations handled at once while training on a CPU (32 MB in float32): enough rows for fast
products, few enough for the cache."""


@dataclass
class StepStats:
    """Sums over one batch, on the SAE's device; nothing here forces a synchronisation."""

    squared_error: Tensor
    """Scalar: sum over tokens and dimensions of (x̂ − x)²."""
    penalty: Tensor
    """Scalar: sum over tokens of the unweighted sparsity penalty."""
    fired_F: Tensor
    """(d_sae,) float: number of tokens on which each latent is active."""
    grad_norm: Tensor
    """Scalar: L2 norm of the gradients of all trained parameters together, before clipping."""


class SAE(nn.Module):
    """A sparse autoencoder x̂ = encode(x) @ W_dec + b_dec.

    Weights: ``W_enc`` (d_in, d_sae), ``b_enc`` (d_sae,), ``W_dec`` (d_sae, d_in), ``b_dec`` (d_in,).
    """

    architecture: ClassVar[str]

    def __init__(self, d_in: int, d_sae: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if d_in < 1 or d_sae < 1:
            raise ValueError(f"d_in and d_sae must be positive, got {d_in} and {d_sae}")
        self.d_in, self.d_sae = d_in, d_sae
        self.W_enc = nn.Parameter(torch.zeros(d_in, d_sae, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(d_sae, dtype=dtype))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(d_in, dtype=dtype))

    def pre_activations(self, x: Tensor) -> Tensor:
        """x (..., d_in) to x @ W_enc + b_enc, (..., d_sae)."""
        return x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc

    def activate(self, pre: Tensor) -> Tensor:
        """Pre-activations (..., d_sae) to latents (..., d_sae), non-negative."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Activations x (..., d_in) to latents (..., d_sae)."""
        return self.activate(self.pre_activations(x))

    def encode_latents(self, x: Tensor, latents_K: Tensor) -> Tensor:
        """Activations x (..., d_in) to some of the latents (..., K), those numbered ``latents_K``."""
        return self.encode(x)[..., latents_K]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (..., d_sae) to reconstructions (..., d_in)."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of x (..., d_in), same shape, in the SAE's dtype."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def rescale_(self, factor: float) -> SAE:
        """Turn the SAE of x into the SAE of factor · x, in place.

        Latents and reconstructions grow by ``factor``; decoder rows keep their norm. Exact because
        every architecture here is positively homogeneous once its biases are scaled along.
        """
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        return self


class TrainableSAE(SAE):
    """An SAE with closed-form gradients; the loss is ‖x − x̂‖² + λ · penalty, a mean over tokens."""

    width_power: ClassVar[float]
    """λ must grow with this power of the residual width to weigh as much in ‖x − x̂‖² as before."""

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimiser moves, by name."""
        return {n: getattr(self, n) for n in ("W_enc", "b_enc", "W_dec", "b_dec")}

    def penalty(self, acts_BF: Tensor) -> Tensor:
        """Scalar: the sparsity penalty summed over tokens."""
        raise NotImplementedError

    def activation_gradient_(
        self, pre_BF: Tensor, acts_BF: Tensor, grad_BF: Tensor, weight: float
    ) -> Tensor:
        """Gradient at the latents to gradient at the pre-activations, penalty included.

        Args:
            grad_BF: gradient of the squared-error term at the latents; may be overwritten.
            weight: λ / B. Gradients of the architecture's own parameters are added to their
                ``.grad``.
        """
        raise NotImplementedError

    def chunk_rows(self, x_BD: Tensor) -> int:
        """Rows of a batch whose pre-activations are held at once."""
        return len(x_BD) if x_BD.is_cuda else max(64, CHUNK_ELEMENTS // self.d_sae)

    @torch.no_grad()
    def gradients(
        self, x_BD: Tensor, coefficient: float, first_pre_CF: Tensor | None = None
    ) -> StepStats:
        """Set ``.grad`` of every trained parameter to the loss's gradient on a batch.

        Five matrix products in closed form, in chunks of rows that fit the cache; equal to autograd.

        Args:
            first_pre_CF: pre-activations of the first chunk of rows, when they are there already.
        """
        batch = x_BD.shape[0]
        for parameter in self.trained_parameters().values():
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.zero_()
        zero = x_BD.new_zeros(())
        stats = StepStats(zero, zero.clone(), x_BD.new_zeros(self.d_sae), zero.clone())
        for x_CD in x_BD.split(self.chunk_rows(x_BD)):
            pre_CF = first_pre_CF
            if pre_CF is None:
                pre_CF = torch.addmm(self.b_enc, x_CD, self.W_enc)
            first_pre_CF = None
            acts_CF = self.activate(pre_CF)
            error_CD = torch.addmm(self.b_dec, acts_CF, self.W_dec).sub_(x_CD)
            stats.squared_error += torch.linalg.vector_norm(error_CD).square()
            stats.penalty += self.penalty(acts_CF)
            stats.fired_F += torch.sign(acts_CF).sum(0)
            grad_CD = error_CD.mul_(2.0 / batch)
            self.W_dec.grad.addmm_(acts_CF.t(), grad_CD)  # type: ignore[union-attr]
            self.b_dec.grad.add_(grad_CD.sum(0))  # type: ignore[union-attr]
            grad_CF = self.activation_gradient_(
                pre_CF, acts_CF, grad_CD @ self.W_dec.t(), coefficient / batch
            )
            self.W_enc.grad.addmm_(x_CD.t(), grad_CF)  # type: ignore[union-attr]
            self.b_enc.grad.add_(grad_CF.sum(0))  # type: ignore[union-attr]
        gradients = [p.grad for p in self.trained_parameters().values() if p.grad is not None]
        stats.grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return stats

    @torch.no_grad()
    def after_update(self) -> None:
        """Restore the constraints: unit-norm decoder rows (before each forward and when saving)."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min_(1e-12))
