"""Trains all SAEs of a recipe on the same batches, each with its own optimiser state."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.core.errors import TrainingError
from fastzoo.core.threads import workers
from fastzoo.lm.activations import Columns
from fastzoo.saes.base import Sinks, StepStats, TrainableSAE
from fastzoo.saes.names import SAEName
from fastzoo.training.initialise import (
    Points,
    activation_scale,
    decoder_bias,
    find_sinks,
    new_sae,
    start_sparse,
)
from fastzoo.training.learner import Learner
from fastzoo.training.schedule import Schedule
from fastzoo.training.sparsity import CHECKS, Sparsity, SparsityControl
from fastzoo.training.steps import step_for

SIDE_BY_SIDE_UP_TO = 1 << 22
"""Pre-activations per batch up to which SAEs step at the same time on a CPU. Larger ones keep all
threads busy by themselves, and each thread would need its own working memory."""

HELD_OUT_SHARE, HELD_OUT_LEAST = 1 / 16, 512
"""About so many held-out tokens are encoded in a run, as a share of its own, to count L0 on them; each time a part
of them, in turn, of at least so many."""

HELD_OUT_CHUNK = {"cpu": 64, "cuda": 4096}
"""Held-out tokens that are encoded at once: on a CPU what its cache takes, which is a third faster."""


def derived_seed(seed: int, *salt: object) -> int:
    """A separate 63-bit seed for every purpose, from the recipe's seed."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *salt))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Trainer:
    """Owns some of a recipe's SAEs and moves them all by one step per batch.

    Args:
        sample: columns ``L<layer>`` of the first activations, for what counts as a sink, the starting
            biases and the scale; None where ``restore`` follows.
        held_out: columns ``L<layer>`` of tokens that are not trained on, on which ``training.l0`` is to hold; None:
            it holds on the batches.
    """

    def __init__(
        self,
        names: Sequence[SAEName],
        d_in: int,
        training: TrainingSection,
        sample: Columns | None,
        *,
        seed: int,
        device: torch.device,
        log_every: int = 10,
        compute: ComputeSection | None = None,
        held_out: Columns | None = None,
    ) -> None:
        self.compute = compute or ComputeSection()
        self.training, self.device, self.log_every = training, device, log_every
        self._held_out = held_out
        self.schedule = Schedule.of(training)
        self.step_number = 0
        self._started = time.perf_counter()
        self._last_log = (0.0, 0)
        starts = {
            layer: _start(layer, d_in, sample, training) for layer in sorted({name.layer for name in names})
        }
        self.learners = [
            self._learner(name, d_in, starts[name.layer], derived_seed(seed, "sae", name)) for name in names
        ]

    def _learner(self, name: SAEName, d_in: int, start: _Start, seed: int) -> Learner:
        training = self.training
        generator = torch.Generator().manual_seed(seed)
        sae = new_sae(name.architecture, d_in, d_in * name.expansion, training, generator)
        with torch.no_grad():
            sae.b_dec.copy_(start.b_dec)
        sae.to(self.device)
        coefficient = training.sparsity_coefficient[name.architecture]
        assert coefficient is not None  # ``check_recipe`` saw to it
        if training.sparsity_width is not None:
            coefficient *= (d_in / training.sparsity_width) ** sae.width_power
        sparsity = Sparsity(coefficient, self.schedule)
        if training.l0 is not None:
            sparsity = SparsityControl(training.l0, coefficient, self.schedule)
        if sparsity.first_l0 is not None and start.others is not None:
            start_sparse(sae, start.others, start.scale, sparsity.first_l0)
            if self._held_out is not None:
                found = self._l0(self._held_out[f"L{name.layer}"], sae, start.sinks, start.scale)
                share = max(found / sparsity.first_l0, 1 / math.e)
                start_sparse(sae, start.others, start.scale, sparsity.first_l0 / share)
        return Learner(
            name,
            sae,
            step_for(sae, training, self.compute),
            sparsity,
            start.scale,
            start.sinks,
            torch.zeros(sae.d_sae, dtype=torch.int64, device=self.device),
            torch.zeros(sae.d_sae, device=self.device),
        )

    def step(self, batch: Columns) -> bool:
        """Take one optimiser step of every SAE on one batch; returns whether a log row was written.

        Raises:
            TrainingError: a gradient is NaN or infinite; that SAE is as it was before the batch.
        """
        rate = self.schedule.learning_rate(self.step_number)
        scaled: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, learner in {x.name.layer: x for x in self.learners}.items():
            x_BD = batch[f"L{layer}"].to(self.device, torch.float32)
            if learner.sinks.skipped:
                x_BD = without_sinks(x_BD, learner.sinks)
            x_BD = x_BD * learner.scale
            # Σ‖x − mean‖², the denominator of FVU.
            scaled[layer] = x_BD, (x_BD - x_BD.mean(0)).square_().sum()
        self._update_all(scaled, rate)
        self.step_number += 1
        log = self.step_number % self.log_every == 0 or self.step_number == self.schedule.steps
        if log:
            self._write_rows(len(batch["position"]))
        return log

    def _update_all(self, scaled: dict[int, tuple[Tensor, Tensor]], rate: float) -> None:
        """Update each SAE on its layer's batch; small ones on a CPU at the same time, in threads."""

        def update(learner: Learner) -> None:
            x_BD, variance = scaled[learner.name.layer]
            limit = learner.sinks.norm * learner.scale
            at_sinks = None if learner.sinks.skipped else sink_share(learner.sae, x_BD, limit)
            learner.coefficient = learner.sparsity.coefficient(self.step_number)
            stats = learner.step(x_BD, rate, learner.coefficient)
            if not x_BD.is_cuda and not math.isfinite(stats.grad_norm.item()):
                raise self._not_finite(learner)
            self._count(learner, stats, variance, at_sinks, len(x_BD))

        threads = torch.get_num_threads()
        at_once = min(len(self.learners), threads)
        sizes = [len(scaled[x.name.layer][0]) * x.sae.d_sae for x in self.learners]
        small = self.device.type == "cpu" and all(size <= SIDE_BY_SIDE_UP_TO for size in sizes)
        if at_once <= 1 or not small or not all(x.step.side_by_side for x in self.learners):
            for learner in self.learners:
                update(learner)
            return
        futures = [workers(at_once, threads).submit(update, learner) for learner in self.learners]
        try:
            for future in futures:
                future.result()
        finally:
            # Even after an error no SAE is left in the middle of a step.
            wait(futures)

    def _not_finite(self, learner: Learner) -> TrainingError:
        seen, last = learner.sums_steps, self.step_number
        steps = f"steps {last - seen} to {last}" if self.device.type == "cuda" and seen else f"step {last}"
        return TrainingError(f"{steps}: the gradient of {learner.name} is NaN or infinite")

    def _count(
        self, learner: Learner, stats: StepStats, variance: Tensor, at_sinks: Tensor | None, batch: int
    ) -> None:
        learner.since_fired_F.add_(1).masked_fill_(stats.fired_F > 0, 0)
        learner.window_F.add_(stats.fired_F)
        learner.window_steps += 1
        # The last window ends with the run, so the first one may be longer.
        left, window = self.schedule.steps - self.step_number - 1, self.training.feature_sampling_window
        if left % window == 0 and learner.window_steps >= window:
            learner.frequency_F = learner.window_F / (learner.window_steps * batch)
            learner.window_F = torch.zeros_like(learner.window_F)
            learner.window_steps = 0
        figures = stats.squared_error, stats.penalty, stats.fired_F.sum(), variance, stats.grad_norm
        active = torch.stack([figures[2], variance.new_full((), batch)])
        sums = torch.stack(figures)
        if at_sinks is not None:
            active -= at_sinks[1:3]
            sums = torch.cat([sums, at_sinks])
        held_out = None if self._held_out is None else partial(self._held_out_part_l0, learner)
        learner.sparsity.after_step(self.step_number, active, held_out)
        learner.sums = sums if learner.sums is None else learner.sums + sums
        learner.sums_steps += 1

    def _held_out_part_l0(self, learner: Learner, number: int) -> float:
        """L0 of an SAE in training on a part of the held-out tokens; which one, its ``number`` says."""
        assert self._held_out is not None
        x_ND = self._held_out[f"L{learner.name.layer}"]
        most = HELD_OUT_SHARE * self.training.tokens / CHECKS
        parts = max(1, min(math.ceil(len(x_ND) / most), len(x_ND) // HELD_OUT_LEAST))
        return self._l0(x_ND[number % parts :: parts], learner.sae, learner.sinks, learner.scale)

    @torch.no_grad()
    def _l0(self, x_ND: Tensor, sae: TrainableSAE, sinks: Sinks, scale: float) -> float:
        """L0 of an SAE in training on activations but sinks."""
        active = tokens = 0.0
        for x_CD in x_ND.split(HELD_OUT_CHUNK.get(self.device.type, 512)):
            usual_CD = x_CD[~sinks.mask(x_CD)].to(self.device, torch.float32)
            active += (sae.encode(usual_CD * scale) > 0).sum().item()
            tokens += len(usual_CD)
        return active / max(tokens, 1.0)

    def _write_rows(self, batch: int) -> None:
        step = self.step_number - 1
        seconds = time.perf_counter() - self._started
        before, tokens_before = self._last_log
        tokens = self.step_number * batch
        speed = (tokens - tokens_before) / max(1e-9, seconds - before)
        self._last_log = (seconds, tokens)
        for learner in self.learners:
            assert learner.sums is not None
            squared_error, penalty, fired, variance, grad_norm, *at_sinks = learner.sums.tolist()
            if not math.isfinite(grad_norm):
                raise self._not_finite(learner)
            seen, coefficient = learner.sums_steps * batch, learner.coefficient
            error, active, sinks, usual_variance = at_sinks or (0.0, 0.0, 0.0, variance)
            learner.log.append(
                {
                    "step": step,
                    "tokens": tokens,
                    "lr": self.schedule.learning_rate(step),
                    "sparsity_coefficient": coefficient,
                    "loss": squared_error / seen + coefficient * (penalty / seen),
                    "squared_error": squared_error / seen,
                    "penalty": penalty / seen,
                    "l0": fired / seen,
                    "fvu": squared_error / max(variance, 1e-30),
                    "l0_without_sinks": (fired - active) / max(seen - sinks, 1),
                    "fvu_without_sinks": max(squared_error - error, 0) / max(usual_variance, 1e-30),
                    "grad_norm": grad_norm / learner.sums_steps,
                    "dead_latents": self.dead_latents(learner),
                    "seconds": round(seconds, 3),
                    "tokens_per_second": round(speed, 1),
                }
            )
            if learner.sparsity.held_out_l0 is not None:
                learner.log[-1]["l0_held_out"] = learner.sparsity.held_out_l0
            learner.sums, learner.sums_steps = None, 0

    def dead_latents(self, learner: Learner) -> int:
        """How many latents have not fired for ``dead_window`` steps."""
        return int((learner.since_fired_F >= self.training.dead_window).sum().item())

    def guarded(self, batches: Iterable[Columns]) -> Iterator[Columns]:
        """Iterate ``batches``; an error in the model's activations names the step."""
        iterator = iter(batches)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except TrainingError as error:
                raise TrainingError(f"step {self.step_number}: {error}") from None
            yield batch

    def note(self) -> str:
        """The last log row, averaged over the SAEs, for a progress bar."""
        rows = [learner.log[-1] for learner in self.learners]
        if not rows:
            return ""
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        fvu, with_sinks = f"{mean['fvu_without_sinks']:.3f}", f"{mean['fvu']:.3f}"
        if with_sinks != fvu:
            fvu += f" ({with_sinks} with sinks)"
        return (
            f"{mean['tokens_per_second']:.0f} tokens/s  loss {mean['loss']:.3g}  "
            f"L0 {mean.get('l0_held_out', mean['l0_without_sinks']):.1f}  FVU {fvu}  dead {mean['dead_latents']:.0f}"
        )

    def tracked(self) -> dict[str, float]:
        """The last log rows, flat, for trackers: ``<name>/<column>``."""
        return {
            f"{learner.name}/{column}": value
            for learner in self.learners
            for column, value in learner.log[-1].items()
            if column != "step"
        }

    def plain_state(self) -> dict[str, Any]:
        """The state that is neither a learner's nor in the recipe."""
        return {"step": self.step_number, "seconds": self.seconds(), "last_log": list(self._last_log)}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from ``plain_state``; the learners are restored one by one."""
        self.step_number = plain["step"]
        self._started = time.perf_counter() - plain["seconds"]
        self._last_log = tuple(plain["last_log"])

    def seconds(self) -> float:
        """How long training has taken, without time lost to interruptions."""
        return time.perf_counter() - self._started

    def tokens_per_second(self) -> float:
        """Training tokens per second since the start, activations and all SAEs included."""
        seconds, tokens = self._last_log
        return tokens / seconds if seconds else 0.0


@dataclass(frozen=True)
class _Start:
    """What the SAEs of a layer begin with."""

    scale: float
    b_dec: Tensor
    """(d_in,), in scaled units."""
    sinks: Sinks
    others: Points | None = None
    """The first activations but for the sinks."""


def _start(layer: int, d_in: int, sample: Columns | None, training: TrainingSection) -> _Start:
    """From the first activations of a layer; its sinks have no part in it."""
    if sample is None:
        return _Start(1.0, torch.zeros(d_in), Sinks(1.0, 1.0, False))
    sinks, others = find_sinks(sample[f"L{layer}"], training)
    scale = activation_scale(others, training.activation_scale)
    return _Start(scale, decoder_bias(others, training.b_dec_init) * scale, sinks, others)


@torch.no_grad()
def sink_share(sae: TrainableSAE, x_BD: Tensor, limit: float) -> Tensor:
    """What attention sinks, rows with a norm above ``limit``, add to the sums over a batch.

    Returns (4,): their squared error, how many latents are active on them, how many they are, and the other
    rows' Σ‖x − mean‖². They are sought among the sixteenth of the rows with the largest norms: a fixed
    number, so that nothing waits for a GPU.
    """
    norm_K, rows_K = torch.linalg.vector_norm(x_BD, dim=1).topk(max(1, len(x_BD) // 16))
    sink_K, x_KD = (norm_K > limit).to(x_BD.dtype), x_BD[rows_K]
    acts_KF = sae.encode(x_KD)
    error_K = (sae.decode(acts_KF) - x_KD).square().sum(1)
    active_K = (acts_KF > 0).sum(1).to(x_BD.dtype)
    usual_B = x_BD.new_ones(len(x_BD)).index_copy(0, rows_K, 1 - sink_K)
    mean_D = usual_B @ x_BD / usual_B.sum().clamp_min(1)
    variance = usual_B @ (x_BD - mean_D).square().sum(1)
    return torch.stack([sink_K @ error_K, sink_K @ active_K, sink_K.sum(), variance])


def without_sinks(x_BD: Tensor, sinks: Sinks) -> Tensor:
    """A batch in which the nearest usual token before each sink takes its place (where none comes before, the
    first of the batch), so that the batch keeps its size and nothing waits for a GPU."""
    sink_B = sinks.mask(x_BD)
    places_B = torch.arange(len(x_BD), device=x_BD.device)
    before_B = torch.where(sink_B, -1, places_B).cummax(0).values
    return x_BD[torch.where(before_B < 0, sink_B.int().argmin(), before_B)]
