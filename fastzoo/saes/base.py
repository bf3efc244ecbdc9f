"""What an SAE architecture must answer, and what all of them share.

``SAE`` is what loads, encodes, decodes and is saved; ``TrainableSAE`` adds the closed-form gradients,
written so that every optimiser step (reference, sparse, CUDA) works from the same few answers.

Shape suffixes: B tokens of a batch, C of a chunk, D residual width (``d_in``), F latents (``d_sae``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

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
    """Float: number of tokens on which each latent is active."""
    grad_norm: Tensor
    """Scalar: L2 norm of all gradients together, before clipping."""


class CudaForm(NamedTuple):
    """What the CUDA step's kernels compute: ReLU with an L1 penalty or, with ``threshold``, a learned
    threshold per latent and an L0 penalty."""

    threshold: str | None = None
    """The trained parameter behind the thresholds."""
    log: bool = False
    """It is their logarithm; else it is kept at or above ``least``."""
    bandwidth: float = 1.0
    least: float = 0.0


@dataclass(frozen=True)
class Sinks:
    """Attention sinks at a layer: tokens whose activation has an L2 norm above ``norm``.

    Most language models have a few, the first token above all, whose norm is up to hundreds of times
    that of the others (Sun et al. 2024, arXiv 2402.17762).
    """

    norm: float
    """In units of the residual stream: the training's ``sink_factor`` times ``median_norm``."""
    median_norm: float
    """Of the tokens in the first buffer of training."""
    skipped: bool
    """Whether the SAE was not trained on them, and passes them through unchanged."""

    @classmethod
    def of(cls, norm_N: Tensor, factor: float, *, skipped: bool) -> Sinks:
        """What counts as a sink among tokens with these norms: above ``factor`` times their median.

        The median hardly moves with a few outliers, however large. If most norms are 0, nothing is a sink.
        """
        median = norm_N.median().item() or norm_N.max().item() or 1.0
        return cls(factor * median, median, skipped)

    def mask(self, x: Tensor) -> Tensor:
        """bool (...,): which of the activations x (..., d_in) are sinks."""
        return torch.linalg.vector_norm(x.float(), dim=-1) > self.norm


class SAE(nn.Module):
    """A sparse autoencoder x̂ = encode(x) @ W_dec + b_dec.

    Weights: ``W_enc`` (d_in, d_sae), ``b_enc`` (d_sae,), ``W_dec`` (d_sae, d_in), ``b_dec`` (d_in,).
    ``sinks`` tells which activations are attention sinks, where that is known.
    """

    sinks: Sinks | None = None
    subtracts_b_dec: bool = False
    """Whether b_dec is taken from x first, as some libraries do; ours train without."""

    architecture: ClassVar[str]
    writable: ClassVar[bool] = True
    """Whether ``save_sae`` writes it, as SAELens' architecture of the same name."""

    def __init__(self, d_in: int, d_sae: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if d_in < 1 or d_sae < 1:
            raise ValueError(f"d_in and d_sae must be positive, got {d_in} and {d_sae}")
        self.d_in, self.d_sae = d_in, d_sae
        self.W_enc = nn.Parameter(torch.zeros(d_in, d_sae, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(d_sae, dtype=dtype))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(d_in, dtype=dtype))

    @classmethod
    def shapes(cls, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
        """The tensors of its file, which are its attributes, by name."""
        return {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}

    @classmethod
    def from_config(cls, d_in: int, d_sae: int, config: Mapping[str, Any]) -> SAE:
        """An SAE for a file's weights, by SAELens' or sparsify's cfg.json.

        Raises InputError: that asks for something else than this class computes.
        """
        return cls(d_in, d_sae)

    def apply_config_(self, config: Mapping[str, Any]) -> None:
        """What else SAELens' configuration does to latents, brought into the weights."""

    def pre_activations(self, x: Tensor, latents: Tensor | slice = slice(None)) -> Tensor:
        """x (..., d_in) to x @ W_enc + b_enc, (..., d_sae), or those of some ``latents``."""
        x = x.to(self.W_enc.dtype)
        if self.subtracts_b_dec:
            x = x - self.b_dec
        return x @ self.W_enc[:, latents] + self.b_enc[latents]

    def activate(self, pre: Tensor) -> Tensor:
        """Pre-activations (..., d_sae) to latents (..., d_sae), non-negative."""
        raise NotImplementedError

    def encode(self, x: Tensor, *, skip_sinks: bool = False) -> Tensor:
        """Activations x (..., d_in) to latents (..., d_sae); ``skip_sinks`` makes those of skipped sinks 0."""
        latents = self.activate(self.pre_activations(x))
        if not (skip_sinks and self.skips_sinks):
            return latents
        return latents.masked_fill(self.passed_through(x)[..., None], 0)

    def encode_latents(self, x: Tensor, latents_K: Tensor) -> Tensor:
        """Activations x (..., d_in) to the latents numbered ``latents_K``, (..., K)."""
        return self.encode(x)[..., latents_K]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (..., d_sae) to reconstructions (..., d_in)."""
        return latents @ self.W_dec + self.b_dec

    @property
    def skips_sinks(self) -> bool:
        """Whether it was not trained on attention sinks, and passes them through."""
        return self.sinks is not None and self.sinks.skipped

    def passed_through(self, x: Tensor) -> Tensor:
        """bool (...,): which activations x (..., d_in) are sinks that the SAE was not trained on."""
        if self.sinks is None or not self.sinks.skipped:
            return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
        return self.sinks.mask(x)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of x (..., d_in), same shape, in the SAE's dtype; skipped sinks come out as they are."""
        found = self.decode(self.encode(x))
        if not self.skips_sinks:
            return found
        return torch.where(self.passed_through(x)[..., None], x.to(found.dtype), found)

    @torch.no_grad()
    def rescale_(self, factor: float) -> SAE:
        """Turn the SAE of x into the SAE of factor · x, in place; decoder rows keep their norm.

        Exact because every architecture is positively homogeneous once its biases are scaled along.
        """
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        if self.sinks:
            norm, median = self.sinks.norm * factor, self.sinks.median_norm * factor
            self.sinks = Sinks(norm, median, self.sinks.skipped)
        return self


class TrainableSAE(SAE):
    """An SAE with closed-form gradients; the loss is ‖x − x̂‖² + λ · penalty, a mean over tokens.

    A subclass says what is active, what that costs and, if it has parameters of its own, how they
    start, learn and are kept in bounds.
    """

    width_power: ClassVar[float]
    """λ must grow with this power of the residual width to weigh as much in ‖x − x̂‖² as before."""
    whole_batch: ClassVar[bool] = False
    """What is active depends on all tokens of a batch, so it cannot be handled in chunks."""
    margin = 0.0
    """How near to its threshold a pre-activation moves that threshold; 0 where none is learned."""

    @classmethod
    def start(cls, d_in: int, d_sae: int, options: Mapping[str, Any]) -> TrainableSAE:
        """A new SAE by ``training`` of a recipe: its own parameters at their start, shared weights 0."""
        return cls(d_in, d_sae)

    @torch.no_grad()
    def start_sparse_(self, latents: slice, bound_F: Tensor) -> None:
        """Let these latents begin inactive where their pre-activation is at most their ``bound_F``."""
        self.b_enc[latents] -= bound_F

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimiser moves, by name."""
        return {n: getattr(self, n) for n in ("W_enc", "b_enc", "W_dec", "b_dec")}

    def constrain_(self) -> None:
        """Bring its own parameters back into their bounds after an update."""

    def finished(self) -> SAE:
        """A copy on the CPU as it is used and saved; it may be of another class (trained with a
        threshold per batch, used with a fixed one per latent)."""
        sae = type(self)(self.d_in, self.d_sae)
        for name in self.shapes(self.d_in, self.d_sae):
            getattr(sae, name).detach().copy_(getattr(self, name).detach())
        sae.sinks = self.sinks
        return sae

    def thresholds(self, pre_BF: Tensor) -> Tensor:
        """What a pre-activation must exceed to be active, and so the latent's value: (d_sae,) if each
        latent has its own threshold, (B, 1) if each token has, () if there is one for all."""
        raise NotImplementedError

    def penalty_terms(self, acts: Tensor) -> Tensor:
        """The penalty of each of some latents, in the shape of ``acts``; 0 for one that is 0."""
        raise NotImplementedError

    def penalty_slope(self, acts: Tensor) -> Tensor | float | None:
        """∂penalty/∂f of active latents, in the shape of ``acts`` or the same for all; None: 0."""
        raise NotImplementedError

    def activation_gradient_(self, pre_BF: Tensor, acts_BF: Tensor, grad_BF: Tensor, weight: float) -> Tensor:
        """Gradient at the latents to gradient at the pre-activations; adds to ``.grad`` of its own parameters.

        Args:
            grad_BF: of the squared error at the latents; may be overwritten.
            weight: λ / B, of the penalty.
        """
        slope = self.penalty_slope(acts_BF)
        if slope is not None:
            grad_BF.add_(slope, alpha=weight)
        return grad_BF.mul_(torch.sign(acts_BF))

    def threshold_gradient(self, near_F: Tensor, near_grad_F: Tensor, weight: float) -> dict[str, Tensor]:
        """Gradients of its own parameters from sums per latent over the tokens within ``margin``.

        Args:
            near_F: how many they are.
            near_grad_F: sum of the gradients of the squared error at the latent.
            weight: λ / B.
        """
        return {}

    def cuda_form(self) -> CudaForm | None:
        """What the kernels of the CUDA step are to compute; None if they cannot do this SAE."""
        return None

    def chunk_rows(self, x_BD: Tensor) -> int:
        """Rows of a batch whose pre-activations are held at once."""
        whole = self.whole_batch or x_BD.is_cuda
        return len(x_BD) if whole else max(64, CHUNK_ELEMENTS // self.d_sae)

    @torch.no_grad()
    def gradients(self, x_BD: Tensor, coefficient: float, first_pre_CF: Tensor | None = None) -> StepStats:
        """Set ``.grad`` of every trained parameter to the loss's gradient on a batch.

        Five matrix products in closed form, in chunks of rows that fit the cache; equal to autograd.

        Args:
            coefficient: λ.
            first_pre_CF: pre-activations of the first chunk of rows, when they are there already.
        """
        batch = x_BD.shape[0]
        grads: dict[str, Tensor] = {}
        for name, parameter in self.trained_parameters().items():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
            grads[name] = parameter.grad
        zero = x_BD.new_zeros(())
        stats = StepStats(zero, zero.clone(), x_BD.new_zeros(self.d_sae), zero.clone())
        for x_CD in x_BD.split(self.chunk_rows(x_BD)):
            pre_CF = torch.addmm(self.b_enc, x_CD, self.W_enc) if first_pre_CF is None else first_pre_CF
            first_pre_CF = None
            acts_CF = self.activate(pre_CF)
            error_CD = torch.addmm(self.b_dec, acts_CF, self.W_dec).sub_(x_CD)
            stats.squared_error += torch.linalg.vector_norm(error_CD).square()
            stats.penalty += self.penalty_terms(acts_CF).sum()
            stats.fired_F += torch.sign(acts_CF).sum(0)
            grad_CD = error_CD.mul_(2.0 / batch)
            grads["W_dec"].addmm_(acts_CF.t(), grad_CD)
            grads["b_dec"].add_(grad_CD.sum(0))
            grad_CF = self.activation_gradient_(
                pre_CF, acts_CF, grad_CD @ self.W_dec.t(), coefficient / batch
            )
            grads["W_enc"].addmm_(x_CD.t(), grad_CF)
            grads["b_enc"].add_(grad_CF.sum(0))
        stats.grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(grads.values()))))
        return stats

    @torch.no_grad()
    def after_update(self) -> None:
        """Restore the constraints: unit-norm decoder rows (before each forward and when saving)."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min_(1e-12))
        self.constrain_()
