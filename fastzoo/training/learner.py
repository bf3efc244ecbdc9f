"""One SAE in training: its optimiser step, its schedule, its log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastzoo.saes.base import SAE, TrainableSAE
from fastzoo.saes.names import SAEName
from fastzoo.training.steps import Step


@dataclass
class Sums:
    """Running sums since the last log row, on the device until a row is written."""

    squared_error: Tensor
    penalty: Tensor
    fired: Tensor
    variance: Tensor
    grad_norm: Tensor
    steps: int = 0

    NAMES: ClassVar = ("squared_error", "penalty", "fired", "variance", "grad_norm")

    def stacked(self) -> Tensor:
        return torch.stack([getattr(self, name) for name in self.NAMES])

    @classmethod
    def of(cls, stacked: Tensor, steps: int) -> Sums:
        return cls(**dict(zip(cls.NAMES, stacked.unbind(), strict=True)), steps=steps)


@dataclass
class Learner:
    """One SAE in training: it lives in scaled units, ``finished()`` is the SAE of raw activations."""

    name: SAEName
    sae: TrainableSAE
    step: Step
    coefficient: float
    scale: float
    since_fired_F: Tensor
    """(d_sae,) int64: steps since each latent last fired."""
    window_F: Tensor
    """(d_sae,) float: how often each fired in the current feature-sampling window."""
    window_steps: int = 0
    frequency_F: Tensor | None = None
    """(d_sae,) firing frequency over the last complete window."""
    log: list[dict[str, float]] = field(default_factory=list)
    sums: Sums | None = None

    def finished(self) -> SAE:
        """A copy in raw activation units, on the CPU; decoder rows have unit norm."""
        sae = self.sae.finished().rescale_(1.0 / self.scale)
        return sae.eval().requires_grad_(False)

    def log_sparsity(self, batch_size: int) -> Tensor:
        """(d_sae,) log10 of the firing frequency (floor 1e-10) over the last window."""
        frequency = self.frequency_F
        if frequency is None:
            frequency = self.window_F / max(1, self.window_steps * batch_size)
        return torch.log10(frequency.cpu() + 1e-10)

    # --- saving ---

    def plain_state(self) -> dict[str, Any]:
        """What is neither a tensor nor in the recipe."""
        return {
            "scale": self.scale,
            "steps": self.step.steps,
            "window_steps": self.window_steps,
            "sums_steps": self.sums.steps if self.sums else 0,
            "log": self.log,
        }

    def tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The rest, on the SAE's device, in groups that are no larger than the SAE."""
        weights = {name: p.detach() for name, p in self.sae.named_parameters()}
        yield "weights", _as_stored(weights)
        moments = self.step.moments()
        for index, group in enumerate(("exp_avg", "exp_avg_sq")):
            yield group, _as_stored({name: pair[index] for name, pair in moments.items()})
        counters = {"since_fired": self.since_fired_F, "window": self.window_F}
        if self.frequency_F is not None:
            counters["frequency"] = self.frequency_F
        if self.sums is not None:
            counters["sums"] = self.sums.stacked()
        yield "counters", counters

    @torch.no_grad()
    def restore(self, plain: Mapping[str, Any], read: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Become the learner that ``plain_state`` and ``tensors`` were taken from.

        Args:
            read: gives a group's tensors by name.
        """
        self.scale, self.window_steps = plain["scale"], plain["window_steps"]
        self.log = plain["log"]
        self.step.go_on_from(plain["steps"])
        for group, targets in self.tensors():
            saved = read(group)
            if group == "counters":
                self._restore_counters(saved, plain["sums_steps"])
            else:
                for name, target in targets.items():
                    target.copy_(saved[name])

    def _restore_counters(self, saved: Mapping[str, Tensor], sums_steps: int) -> None:
        here = {name: counter.to(self.since_fired_F.device) for name, counter in saved.items()}
        self.since_fired_F, self.window_F = here["since_fired"], here["window"]
        self.frequency_F = here.get("frequency")
        self.sums = Sums.of(here["sums"], sums_steps) if sums_steps else None


def _as_stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous views: ``W_enc`` is latent-major."""
    return {n: t if t.is_contiguous() else t.t() for n, t in tensors.items()}
