"""The sparsity coefficient λ of an SAE's next step: as given, or moved until L0 is as wanted (``training.l0``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastzoo.training.schedule import Schedule

UPDATES = 1000
"""About how often in a run λ is moved. Each time waits for a GPU."""

CHECKS = 40
"""About how often in a run L0 is counted on held-out tokens, which takes a forward of the encoder."""

START = 2.0
"""A run begins with up to so many times the wanted L0: a learned threshold rises more readily than it falls."""

REACH = 1.5
"""By how much ln L0 can be lowered for each unit that the learning rates of a run add up to, cautiously: Adam moves a
threshold by at most the learning rate in a step."""

UNTIL = 0.5
"""Share of the run after which the wanted L0 is to be reached; later the learning rate is small."""

PROPORTIONAL, INTEGRAL = 4.0, 20.0
"""Gains: of the error now, and of its integral over the run."""

RANGE = 30.0
"""λ stays within this factor of where it began: far beyond, it would only drown the other gradients."""


class Sparsity:
    """A coefficient that grows to what was given over the recipe's ``sparsity_warmup``."""

    active: Tensor | None = None
    """(2,), what a checkpoint has to keep: active latents since λ was moved, and the tokens that they are of."""
    first_l0: float | None = None
    """L0 to begin with; None: whatever the starting weights give."""

    def __init__(self, coefficient: float, schedule: Schedule) -> None:
        self._given, self._schedule = coefficient, schedule

    def coefficient(self, step: int) -> float:
        """λ of ``step`` (from 0), the next one."""
        return self._given * self._schedule.sparsity_share(step)

    held_out_l0: float | None = None
    """L0 on held-out tokens, when it was last counted."""

    def after_step(self, step: int, active: Tensor, held_out: Callable[[int], float] | None = None) -> None:
        """Take note of ``step``.

        Args:
            active: (2,): how many latents were active on all its tokens (but sinks), and how many tokens these are.
            held_out: counts L0 on tokens that are not trained on, likewise without sinks; is told how often it was
                asked.
        """

    def plain_state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, but for ``active``."""
        return {}

    def restore(self, plain: Mapping[str, Any], active: Tensor | None) -> None:
        """Go on from ``plain_state`` and ``active``."""
        vars(self).update(plain)
        self.active = active


class SparsityControl(Sparsity):
    """Moves λ after every ``every`` steps, by what L0 was in them and is on held-out tokens.

    With progress t from 0 to 1, the L0 to have by then, target · s^max(0, 1 − t/UNTIL), where s is START or what
    so short a run can make up for, and e = ln(r · L0 / that), it is a proportional-integral controller:
    ln λ = ln λ₀ + PROPORTIONAL · e + INTEGRAL · ∫ e dt, with e kept within ±1, and the integral and the whole
    within ±ln RANGE. The batches tell soon and often how L0 moves; but what is wanted is the L0 that is measured in
    the end, on dialogues, and an SAE trained on prose can have half as much again there. So r is what the held-out
    tokens have of the batches' L0, found anew every ``check_every`` steps. All of it is counts, so runs repeat exactly.

    Args:
        target: L0 on held-out tokens at the end of the run.
        coefficient: λ₀.
        schedule: says how many steps the run has.
    """

    def __init__(self, target: float, coefficient: float, schedule: Schedule) -> None:
        super().__init__(coefficient, schedule)
        self.target, self.steps = target, schedule.steps
        self.every = max(1, self.steps // UPDATES)
        self.check_every = self.every * max(1, self.steps // (CHECKS * self.every))
        reach = REACH * sum(map(schedule.learning_rate, range(int(UNTIL * self.steps))))
        self._start = min(math.log(START), reach)
        self.first_l0 = target * math.exp(self._start)
        self._change = self._integral = self._log_ratio = 0.0
        self.held_out_l0 = None
        self._counted = [0.0, 0.0]  # as ``active``, since L0 was last counted on held-out tokens

    def coefficient(self, step: int) -> float:
        return self._given * math.exp(self._change)

    def after_step(self, step: int, active: Tensor, held_out: Callable[[int], float] | None = None) -> None:
        self.active = active if self.active is None else self.active + active
        if (step + 1) % self.every:
            return
        latents, tokens = self.active.tolist()
        self.active = None
        l0 = _per_token(latents, tokens)
        self._counted = [self._counted[0] + latents, self._counted[1] + tokens]
        if held_out is not None and (step + 1) % self.check_every == 0:
            self.held_out_l0 = held_out((step + 1) // self.check_every)
            self._log_ratio = _within(math.log(max(self.held_out_l0, 1e-3) / _per_token(*self._counted)), 1.0)
            self._counted = [0.0, 0.0]
        left = max(0.0, 1.0 - (step + 1) / (UNTIL * self.steps))
        error = _within(self._log_ratio + math.log(l0 / self.target) - self._start * left, 1.0)
        most = math.log(RANGE)
        self._integral = _within(self._integral + INTEGRAL * error * self.every / self.steps, most)
        self._change = _within(self._integral + PROPORTIONAL * error, most)

    def plain_state(self) -> dict[str, Any]:
        kept = ("_change", "_integral", "_log_ratio", "_counted", "held_out_l0")
        return {key: vars(self)[key] for key in kept}


def _per_token(latents: float, tokens: float) -> float:
    return max(latents, 1.0) / max(tokens, 1.0)


def _within(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))
