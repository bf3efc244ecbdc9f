"""One optimiser step of one SAE: fastzoo's trainer beside sae-lens's, about 1% of latents active.

Same shapes, batches, dtype (float32), learning rate, betas, clipping and sparsity coefficients, and
the same starting weights. Both are timed as a user calls them: ``Trainer.step``, ``SAETrainer.step``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from rounds import Ratio, interleave, ratio
from torch import Tensor

from fastzoo.config.reading import preset_values
from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.saes.names import SAEName
from fastzoo.training.trainer import Trainer

ARCHITECTURES = ("standard", "jumprelu")
CPU = torch.device("cpu")
BIAS = -2.326
"""Pre-activations are standard normal plus this: 1% of them are positive."""


def measure(*, quick: bool) -> dict[str, Any]:
    """All figures of this benchmark; nothing where sae-lens is missing."""
    if importlib.util.find_spec("sae_lens") is None:
        print("step: sae-lens is not installed, so there is nothing to compare with", file=sys.stderr)
        return {}
    # name: (d_in, expansion, batch, about how many seconds to measure each architecture)
    shapes = {
        "step_ratio_128": (896, 8, 128, 15.0),
        "step_ratio_4096": (896, 8, 4096, 45.0),
        "step_ratio_tiny": (128, 8, 4096, 6.0),
    }
    if quick:
        shapes = dict.fromkeys(shapes, (16, 8, 64, 0.1))
    figures: dict[str, Any] = {"step_over_floor": {}}
    for name, (d_in, expansion, batch, seconds) in shapes.items():
        compared = {kind: compare(kind, d_in, expansion, batch, seconds) for kind in ARCHITECTURES}
        figures[name] = {kind: over for kind, (over, _) in compared.items()}
        size = name.removeprefix("step_ratio_")
        figures["step_over_floor"][size] = {kind: floor for kind, (_, floor) in compared.items()}
    if torch.cuda.is_available():
        import step_cuda

        figures |= step_cuda.measure(quick=quick)
    return figures


def compare(kind: str, d_in: int, expansion: int, batch: int, seconds: float) -> tuple[Ratio, Ratio]:
    """How many times faster fastzoo's step is than sae-lens's, and how many times the floor it takes."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(batch, d_in, generator=generator) for _ in range(4)]
    encoder = torch.randn(d_in, d_in * expansion, generator=generator)
    encoder /= encoder.norm(dim=0)
    training = TrainingSection(**preset_values("paper") | {"batch_size": batch})
    ours = fastzoo_step(kind, encoder, training, batches)
    theirs = sae_lens_step(kind, encoder, training, batches)
    floor = floor_step(encoder, training, batches)
    times = interleave({"sae-lens": theirs, "fastzoo": ours, "floor": floor}, seconds=seconds)
    return ratio(times["sae-lens"], times["fastzoo"]), ratio(times["fastzoo"], times["floor"])


def floor_step(encoder: Tensor, training: TrainingSection, batches: list[Tensor]) -> Callable[[], object]:
    """What no step can do without: one encoder product, and one pass of torch's fused Adam."""
    weight, bias = encoder.t().contiguous(), torch.zeros(encoder.shape[1])
    parameters = [torch.nn.Parameter(torch.randn_like(weight)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    adam = torch.optim.Adam(parameters, lr=training.lr, fused=True)
    endless = cycle(batches)

    @torch.no_grad()
    def step() -> None:
        torch.addmm(bias, next(endless), weight.t())
        adam.step()

    return step


def fastzoo_step(
    kind: str,
    encoder: Tensor,
    training: TrainingSection,
    batches: list[Tensor],
    device: torch.device = CPU,
    compute: ComputeSection | None = None,
) -> Callable[[], object]:
    d_in, d_sae = encoder.shape
    name = SAEName("benchmark", 0, d_sae // d_in, kind, "fast")
    columns = [{"L0": batch, "position": torch.arange(len(batch))} for batch in batches]
    trainer = Trainer([name], d_in, training, columns[0], seed=0, device=device, compute=compute)
    start_at(trainer.learners[0].sae, encoder)
    endless = cycle(columns)
    return lambda: trainer.step(next(endless))


def sae_lens_step(
    kind: str,
    encoder: Tensor,
    training: TrainingSection,
    batches: list[Tensor],
    device: torch.device = CPU,
    *,
    compiled: bool = False,
) -> Callable[[], object]:
    from sae_lens import (
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d_in, d_sae = encoder.shape
    common: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": d_sae,
        "device": str(device),
        "dtype": "float32",
        "apply_b_dec_to_input": False,
    }
    sae: Any
    if kind == "jumprelu":
        sae = JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(
                **common,
                jumprelu_init_threshold=training.jumprelu_initial_threshold,
                jumprelu_bandwidth=training.jumprelu_bandwidth,
                l0_coefficient=training.sparsity_coefficient["jumprelu"],
                l0_warm_up_steps=training.in_steps(training.sparsity_warmup),
            )
        )
    else:
        sae = StandardTrainingSAE(
            StandardTrainingSAEConfig(
                **common,
                l1_coefficient=training.sparsity_coefficient["standard"],
                l1_warm_up_steps=training.in_steps(training.sparsity_warmup),
            )
        )
    start_at(sae, encoder)
    if compiled:  # as its own training runner does with `compile_sae`
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    config = SAETrainerConfig(
        total_training_samples=training.tokens,
        train_batch_size_samples=training.batch_size,
        lr=training.lr,
        lr_end=training.lr_end,
        lr_warm_up_steps=training.in_steps(training.lr_warmup),
        adam_beta1=training.adam_betas[0],
        adam_beta2=training.adam_betas[1],
        device=str(device),
        dead_feature_window=training.dead_window,
        feature_sampling_window=training.feature_sampling_window,
    )
    endless = cycle(batches)
    trainer = SAETrainer(config, sae, endless)
    return lambda: trainer.step(next(endless))


@torch.no_grad()
def start_at(sae: Any, encoder: Tensor) -> None:
    """Unit-norm encoder columns, the decoder their transpose, biases for 1% active latents."""
    sae.W_enc.copy_(encoder)
    sae.W_dec.copy_(encoder.t())
    sae.b_enc.fill_(BIAS)
    sae.b_dec.zero_()
