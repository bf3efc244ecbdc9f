"""Starting values of an SAE: weights, decoder bias and activation scale from a sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastzoo.config.recipe import TrainingSection
from fastzoo.saes import architecture
from fastzoo.saes.base import Sinks, TrainableSAE

CHUNK = 8192
"""Points converted to float64 at once."""

SAMPLE, CHUNK_LATENTS, CHUNK_POINTS = 8192, 2048, 256
"""Points that a sparse beginning is measured on; latents, and then points, that are looked at together."""


@dataclass(frozen=True)
class Points:
    """Activations (N, D) of which those that ``counted_N`` marks count; by default, or if it marks none, all.

    Read in chunks, in float64: a copy of a whole buffer would be large.
    """

    all_ND: Tensor
    counted_N: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        counted_N = self.counted_N
        if counted_N is None or not counted_N.any():
            yield from (chunk_CD.double() for chunk_CD in self.all_ND.split(CHUNK))
            return
        for chunk_CD, counted_C in zip(self.all_ND.split(CHUNK), counted_N.split(CHUNK), strict=True):
            yield chunk_CD[counted_C].double()

    def sample(self, count: int) -> Tensor:
        """At most ``count`` of them, spread over all."""
        counted_N = self.counted_N
        if counted_N is None or not counted_N.any():
            counted_N = torch.ones(len(self.all_ND), dtype=torch.bool, device=self.all_ND.device)
        places_N = counted_N.nonzero().squeeze(1)
        return self.all_ND[places_N[:: -(-len(places_N) // count)]]

    def mean(self) -> Tensor:
        """(D,) float64."""
        totals = [(len(chunk_CD), chunk_CD.sum(0)) for chunk_CD in self]
        return torch.stack([total_D for _, total_D in totals]).sum(0) / sum(count for count, _ in totals)


@torch.no_grad()
def find_sinks(points_ND: Tensor, training: TrainingSection) -> tuple[Sinks, Points]:
    """What counts as an attention sink among a layer's activations, and the others of them."""
    norm_N = torch.cat([torch.linalg.vector_norm(c.float(), dim=1) for c in points_ND.split(CHUNK)])
    sinks = Sinks.of(norm_N, training.sink_factor, skipped=training.sinks == "skip")
    return sinks, Points(points_ND, norm_N <= sinks.norm)


@torch.no_grad()
def geometric_median(
    points: Points, *, max_iterations: int = 100, eps: float = 1e-6, ftol: float = 1e-20
) -> Tensor:
    """The point (D,) with the least mean distance to ``points``, by Weiszfeld iterations.

    Each averages the points with weights 1 / max(dᵢ, eps); they stop once the objective changes by at
    most ftol times itself. In float64, returned in the points' dtype, half precision in float32.
    """
    median_D = points.mean()
    previous = None
    for _ in range(max_iterations):
        total, weights, weighted_D = 0.0, 0.0, torch.zeros_like(median_D)
        for chunk_CD in points:
            distances_C = torch.linalg.vector_norm(chunk_CD - median_D, dim=1)
            inverse_C = 1.0 / distances_C.clamp_min(eps)
            total += distances_C.sum().item()
            weights += inverse_C.sum().item()
            weighted_D += inverse_C @ chunk_CD
        if previous is not None and abs(previous - total) <= ftol * previous:
            break
        previous = total
        median_D = weighted_D / weights
    return median_D.to(torch.promote_types(points.all_ND.dtype, torch.float32))


@torch.no_grad()
def activation_scale(points: Points, kind: str) -> float:
    """Factor that training multiplies activations with: 1, or what makes their mean square 1."""
    if kind == "none":
        return 1.0
    square, count = 0.0, 0
    for chunk_CD in points:
        square += chunk_CD.square().sum().item()
        count += chunk_CD.numel()
    return (count / square) ** 0.5 if square > 0 else 1.0


@torch.no_grad()
def decoder_bias(points: Points, kind: str) -> Tensor:
    """The starting ``b_dec`` (D,), float32, from a sample of activations."""
    if kind == "geometric_median":
        return geometric_median(points).float()
    return (
        points.mean().float() if kind == "mean" else torch.zeros_like(points.all_ND[0], dtype=torch.float32)
    )


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


@torch.no_grad()
def start_sparse(sae: TrainableSAE, points: Points, scale: float, l0: float) -> None:
    """Let a new SAE, whose ``b_dec`` is set, begin with about ``l0`` active latents per token.

    Each fires as often as the others on a sample of ``points`` times ``scale``, and their reconstruction has the
    length that fits best. Otherwise half of all latents begin active: the slowest steps of a run; and as latents
    overlap, they give too much together, so that the first steps turn off most of them for good.
    """
    x_ND = points.sample(SAMPLE).float() * scale
    sae.b_enc.copy_(-(sae.b_dec @ sae.W_enc))
    kept = min(len(x_ND) - 1, max(1, round(len(x_ND) * l0 / sae.d_sae)))
    for start in range(0, sae.d_sae, CHUNK_LATENTS):
        latents = slice(start, start + CHUNK_LATENTS)
        pre_NF = sae.pre_activations(x_ND, latents)
        sae.start_sparse_(latents, pre_NF.topk(kept + 1, dim=0).values[-1])
    product = square = 0.0
    for x_CD in x_ND.split(CHUNK_POINTS):
        found_CD = sae(x_CD) - sae.b_dec
        product += ((x_CD - sae.b_dec) * found_CD).sum().item()
        square += found_CD.square().sum().item()
    if product > 0:
        b_dec_D = sae.b_dec.clone()
        sae.rescale_(product / square)
        sae.W_enc.mul_(product / square)
        sae.b_dec.copy_(b_dec_D)
