"""Starting values of an SAE: weights, decoder bias and activation scale from a sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastzoo.config.recipe import TrainingSection
from fastzoo.saes import architecture
from fastzoo.saes.base import TrainableSAE

CHUNK = 8192
"""Points converted to float64 at once."""


@torch.no_grad()
def geometric_median(
    points_ND: Tensor, *, max_iterations: int = 100, eps: float = 1e-6, ftol: float = 1e-20
) -> Tensor:
    """The point (D,) with the least mean distance to ``points_ND``, by Weiszfeld iterations.

    Each averages the points with weights 1 / max(dᵢ, eps); they stop once the objective changes by at
    most ftol times itself. In float64, returned in the points' dtype, half precision in float32.
    """
    median_D = points_ND.mean(0, dtype=torch.float64)
    previous = None
    for _ in range(max_iterations):
        total, weights, weighted_D = 0.0, 0.0, torch.zeros_like(median_D)
        for chunk_CD in points_ND.split(CHUNK):
            chunk_CD = chunk_CD.double()
            distances_C = torch.linalg.vector_norm(chunk_CD - median_D, dim=1)
            inverse_C = 1.0 / distances_C.clamp_min(eps)
            total += distances_C.sum().item()
            weights += inverse_C.sum().item()
            weighted_D += inverse_C @ chunk_CD
        if previous is not None and abs(previous - total) <= ftol * previous:
            break
        previous = total
        median_D = weighted_D / weights
    return median_D.to(torch.promote_types(points_ND.dtype, torch.float32))


@torch.no_grad()
def activation_scale(points_ND: Tensor, kind: str, counted_N: Tensor | None = None) -> float:
    """Factor that training multiplies activations with: 1, or what makes their mean square 1.

    Args:
        counted_N: bool, which points the mean is over; by default, or if it marks none, all.
    """
    if kind == "none":
        return 1.0
    # In chunks: a copy of a whole buffer would be large.
    square_N = torch.cat([c.double().square().mean(1) for c in points_ND.split(CHUNK)])
    if counted_N is not None and bool(counted_N.any()):
        square_N = square_N[counted_N]
    mean_square = square_N.mean().item()
    return mean_square**-0.5 if mean_square > 0 else 1.0


@torch.no_grad()
def decoder_bias(points_ND: Tensor, kind: str) -> Tensor:
    """The starting ``b_dec`` (D,), float32, from a sample of activations."""
    if kind == "geometric_median":
        return geometric_median(points_ND).float()
    if kind == "mean":
        return points_ND.mean(0, dtype=torch.float64).float()
    return torch.zeros_like(points_ND[0], dtype=torch.float32)


@torch.no_grad()
def new_sae(
    kind: str, d_in: int, d_sae: int, training: TrainingSection, generator: torch.Generator
) -> TrainableSAE:
    """A freshly initialised SAE on the CPU: weights Kaiming-uniform, decoder rows unit norm, biases 0."""
    cls = architecture(kind)
    assert issubclass(cls, TrainableSAE)
    sae = cls.start(d_in, d_sae, training.model_dump())
    nn.init.kaiming_uniform_(sae.W_enc, generator=generator)
    nn.init.kaiming_uniform_(sae.W_dec, generator=generator)
    sae.after_update()
    if training.encoder_init == "transposed":
        sae.W_enc.copy_(sae.W_dec.t())
    return sae
