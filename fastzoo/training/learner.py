"""One SAE in training: its optimiser step, its schedule, its log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastzoo.saes.base import SAE, Sinks, TrainableSAE
from fastzoo.saes.names import SAEName
from fastzoo.training.sparsity import Sparsity
from fastzoo.training.steps import Step


@dataclass
class Learner:
    """One SAE in training: it lives in scaled units, ``finished()`` is the SAE of raw activations."""

    name: SAEName
    sae: TrainableSAE
    step: Step
    sparsity: Sparsity
    scale: float
    sinks: Sinks
    """In raw activation units."""
    since_fired_F: Tensor
    """(d_sae,) int64: steps since each latent last fired."""
    window_F: Tensor
    """(d_sae,) float: how often each fired in the current feature-sampling window."""
    window_steps: int = 0
    frequency_F: Tensor | None = None
    """(d_sae,) firing frequency over the last complete window."""
    log: list[dict[str, float]] = field(default_factory=list)
    sums: Tensor | None = None
    """Since the last log row: squared error, penalty, active latents, variance, gradient norm; and, where
    attention sinks are trained on, what ``sink_share`` gives."""
    sums_steps: int = 0
    coefficient: float = 0.0
    """λ of the last step."""

    def finished(self) -> SAE:
        """A copy in raw activation units, on the CPU; decoder rows have unit norm."""
        sae = self.sae.finished().rescale_(1.0 / self.scale)
        sae.sinks = self.sinks
        return sae.eval().requires_grad_(False)

    def log_sparsity(self, batch_size: int) -> Tensor:
        """(d_sae,) log10 of the firing frequency (floor 1e-10) over the last complete window of training."""
        frequency = self.frequency_F
        if frequency is None:
            frequency = self.window_F / max(1, self.window_steps * batch_size)
        return torch.log10(frequency.cpu() + 1e-10)

    def plain_state(self) -> dict[str, Any]:
        """What is neither a tensor nor in the recipe."""
        return {
            "scale": self.scale,
            "sinks": vars(self.sinks),
            "steps": self.step.steps,
            "sparsity": self.sparsity.plain_state(),
            "window_steps": self.window_steps,
            "sums_steps": self.sums_steps,
            "log": self.log,
        }

    def tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The rest, on the SAE's device, in groups that are no larger than the SAE."""
        yield "weights", _as_stored({name: p.detach() for name, p in self.sae.named_parameters()})
        moments = self.step.moments()
        for index, group in enumerate(("exp_avg", "exp_avg_sq")):
            yield group, _as_stored({name: pair[index] for name, pair in moments.items()})
        counters = {"since_fired": self.since_fired_F, "window": self.window_F}
        there = ("frequency", self.frequency_F), ("sums", self.sums), ("active", self.sparsity.active)
        counters |= {name: tensor for name, tensor in there if tensor is not None}
        yield "counters", counters

    @torch.no_grad()
    def restore(self, plain: Mapping[str, Any], read: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Become the learner that ``plain_state`` and ``tensors`` (``read``, by group) were taken from."""
        self.scale, self.log = plain["scale"], plain["log"]
        self.sinks = Sinks(**plain["sinks"])
        self.window_steps, self.sums_steps = plain["window_steps"], plain["sums_steps"]
        self.step.go_on_from(plain["steps"])
        for group, targets in self.tensors():
            saved = read(group)
            if group == "counters":
                here = {name: counter.to(self.since_fired_F.device) for name, counter in saved.items()}
                self.since_fired_F, self.window_F = here["since_fired"], here["window"]
                self.frequency_F, self.sums = here.get("frequency"), here.get("sums")
                self.sparsity.restore(plain["sparsity"], here.get("active"))
            else:
                for name, target in targets.items():
                    target.copy_(saved[name])


def _as_stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous views: ``W_enc`` is latent-major."""
    return {n: t if t.is_contiguous() else t.t() for n, t in tensors.items()}
