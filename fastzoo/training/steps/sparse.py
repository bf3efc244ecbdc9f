"""The step on a CPU: one dense product, then only what is active.

At 1% active latents four of the five dense products of the reference are work on zeros. Here the
encoder product stays dense; everything after it runs over a list of the latents that are active (or
near enough to a learned threshold to move it). Clipping, Adam and the unit norm of the decoder rows are
one pass over the weights. Each batch's measured density decides how much is dense, so that the beginning
of a run, where half of all latents are active, is fast, too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.saes.base import StepStats, TrainableSAE
from fastzoo.training.steps import sparse_kernels as kernels
from fastzoo.training.steps.base import Step

SPARSE_UP_TO = 0.2
"""Share of listed latents up to which lists are faster than dense products. Measured on two cores for
128 -> 1,024 and 896 -> 7,168 and batches of 128 and 1,024: they are even at 0.22 to 0.28."""

NEAR_UP_TO = 0.05
"""Share of latents near their thresholds or above up to which their gradients come one by one. A dense product gives
all gradients in the time that 0.04 of them take (576 -> 4,608, batches of 512)."""

SAMPLED_ROWS = 16
"""About how many tokens of a batch show its density."""

STORE_FROM = 4
"""Active tokens per latent from which its gradient is kept instead of being formed twice."""

SERIAL_BELOW = 1 << 17
"""Pre-activations per batch below which handing work to threads costs more than it gains."""

PARTS, SMALLEST_PART = 16, 8
"""Into how many parts a chunk's tokens are divided, and how many tokens one has at least. Not by the
number of threads: sums would depend on it."""

INDEX = np.dtype(np.int32)

PARTS_PER_THREAD = 8
"""Ranges per thread and kernel: some latents are active far more often than others."""


class Workspace(threading.local):
    """Arrays that are used again at every step, by all SAEs of a thread; each grows as needed."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, np.dtype[Any]], ndarray] = {}

    def __call__(self, name: str, dtype: np.dtype[Any], *shape: int) -> ndarray:
        """An uninitialised array; the one given out before under this name is lost."""
        size = math.prod(shape)
        held = self._arrays.get((name, dtype))
        if held is None or held.size < size:
            # Some more, so that lists of changing length soon find what they need.
            held = self._arrays[name, dtype] = np.empty(size + size // 4, dtype)
        return held[:size].reshape(shape)


WORKSPACE = Workspace()


class SparseStep(Step):
    kind = "sparse"

    def __init__(self, sae: TrainableSAE, training: TrainingSection, compute: ComputeSection) -> None:
        super().__init__(sae, training, compute)
        self._moments = {
            name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in sae.trained_parameters().items()
        }
        self.sparse_steps = 0
        """Steps that ran on lists; the others were too dense."""

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        return self._moments

    @torch.no_grad()
    def __call__(self, x_BD: Tensor, rate: float, coefficient: float) -> StepStats:
        sae = self.sae
        run = _serially if len(x_BD) * sae.d_sae < SERIAL_BELOW else _in_parts
        entries: _Entries | None = None
        for x_CD in x_BD.split(sae.chunk_rows(x_BD)):
            dtype = x_BD.numpy().dtype
            pre_CF = torch.from_numpy(WORKSPACE("pre", dtype, len(x_CD), sae.d_sae))
            torch.addmm(sae.b_enc, x_CD, sae.W_enc, out=pre_CF)
            if entries is None:
                theta = sae.thresholds(pre_CF).detach()
                if theta.dim() <= 1:  # else each token has its own; lists are of latents with one each
                    entries = _Entries(sae, x_BD, pre_CF, theta, run)
                if entries is None or entries.active_share > SPARSE_UP_TO:
                    return self._dense(x_BD, rate, coefficient, pre_CF, run)
            entries.add(x_CD, pre_CF)
        assert entries is not None
        self.sparse_steps += 1
        return self._sparse(x_BD, rate, coefficient, entries, run)

    def _dense(self, x_BD: Tensor, rate: float, coefficient: float, pre_CF: Tensor, run: Run) -> StepStats:
        sae, dtype = self.sae, x_BD.numpy().dtype
        grad_enc_FD, grad_dec_FD = self._gradient_rows(dtype)
        sae.W_enc.grad = torch.from_numpy(grad_enc_FD).t()
        sae.W_dec.grad = torch.from_numpy(grad_dec_FD)
        stats = sae.gradients(x_BD, coefficient, pre_CF)
        sae.W_enc.grad = sae.W_dec.grad = None  # the arrays are everyone's
        vectors = {name: p.grad.numpy() for name, p in sae.trained_parameters().items() if p.grad is not None}
        none = np.zeros(sae.d_sae + 1, np.int64), np.empty(0, np.int32), *[np.empty(0, dtype)] * 2
        rows = (x_BD.numpy(),) * 2, none, kernels.DENSE, (grad_enc_FD, grad_dec_FD)
        self._update(stats, rows, vectors, rate, run)
        return stats

    def _sparse(
        self, x_BD: Tensor, rate: float, coefficient: float, entries: _Entries, run: Run
    ) -> StepStats:
        sae, weight = self.sae, coefficient / len(x_BD)
        active_F, by_latent = entries.by_latent()
        act_M, grad_M = by_latent[2:]
        dtype, acts = act_M.dtype, torch.from_numpy(act_M)
        slope = sae.penalty_slope(acts)
        if slope is not None:
            torch.from_numpy(grad_M).add_(slope, alpha=weight)
        store = len(act_M) > STORE_FROM * sae.d_sae
        grads = self._gradient_rows(dtype) if store else (np.empty((0, 0), dtype),) * 2
        grad_b_F, squared_F = np.empty(sae.d_sae, dtype), np.empty(sae.d_sae, dtype)
        batch = x_BD.numpy(), entries.error_BD
        run(kernels.row_gradients, sae.d_sae, batch, by_latent, store, grads, (grad_b_F, squared_F))
        vectors = {"b_enc": grad_b_F, "b_dec": entries.error_BD.sum(0)}
        near_F, near_grad_F = torch.from_numpy(entries.near_F), torch.from_numpy(entries.near_grad_F)
        own = sae.threshold_gradient(near_F, near_grad_F, weight)
        vectors |= {name: gradient_F.numpy() for name, gradient_F in own.items()}
        # The encoder bias is in squared_F.
        squared = float(squared_F.sum(dtype=np.float64))
        squared += sum(
            float(np.square(v, dtype=np.float64).sum()) for n, v in vectors.items() if n != "b_enc"
        )
        stats = StepStats(
            x_BD.new_tensor(float(entries.squared_B.sum(dtype=np.float64))),
            x_BD.new_tensor(float(sae.penalty_terms(acts).numpy().sum(dtype=np.float64))),
            torch.from_numpy(active_F).to(x_BD.dtype),
            x_BD.new_tensor(math.sqrt(squared)),
        )
        source = kernels.STORED if store else kernels.RECOMPUTED
        self._update(stats, (batch, by_latent, source, grads), vectors, rate, run)
        return stats

    def _gradient_rows(self, dtype: np.dtype[Any]) -> kernels.Arrays:
        shape = self.sae.d_sae, self.sae.d_in
        return WORKSPACE("grad_enc", dtype, *shape), WORKSPACE("grad_dec", dtype, *shape)

    def _update(
        self, stats: StepStats, rows: tuple[Any, ...], vectors: dict[str, ndarray], rate: float, run: Run
    ) -> None:
        """Clipping, Adam, constraints."""
        norm = stats.grad_norm.item()
        if not math.isfinite(norm):
            return
        self.steps += 1
        sae, moments = self.sae, self._moments
        real = vectors["b_enc"].dtype.type
        hyper = (
            real(self.clip_norm / (norm + 1e-6) if norm > self.clip_norm else 1.0),
            real(1 - self.beta1),
            real(1 - self.beta2),
            real(rate / (1 - self.beta1**self.steps)),
            real(math.sqrt(1 - self.beta2**self.steps)),
            real(self.eps),
        )
        parameters = sae.trained_parameters()
        weights = {
            name: tuple(t.numpy() for t in (parameters[name].detach(), *moments[name]))
            for name in ("W_dec", *vectors)
        }
        encoder = tuple(t.t().numpy() for t in (sae.W_enc.detach(), *moments["W_enc"]))
        run(kernels.update_rows, sae.d_sae, *rows, encoder, weights["W_dec"], hyper)
        for name, gradient in vectors.items():
            kernels.adam(weights[name], gradient, hyper)
        sae.constrain_()


class _Entries:
    """The listed latents of a batch's tokens: those above θ − margin, token by token.

    ``margin`` is how far below its threshold a latent still moves it, unless too many are: then only
    active latents are listed, and what moves the thresholds is found from gradients at all latents.

    Args:
        pre_CF: pre-activations of the batch's first chunk, from which densities are estimated.
        theta: thresholds, of each latent or one for all.
    """

    def __init__(self, sae: TrainableSAE, x_BD: Tensor, pre_CF: Tensor, theta: Tensor, run: Run) -> None:
        self.sae, self.batch, self.run = sae, len(x_BD), run
        self.dtype = pre_CF.numpy().dtype
        self.theta_F = theta.expand(sae.d_sae).contiguous().numpy()
        self.margin = self.dtype.type(sae.margin)
        some_CF = pre_CF.numpy()[:: max(1, len(pre_CF) // SAMPLED_ROWS)] - self.theta_F
        self.active_share = float((some_CF > 0).mean())
        self.near_listed = float((some_CF > -self.margin).mean()) <= NEAR_UP_TO
        self.near_F = np.zeros(sae.d_sae, self.dtype)
        self.near_grad_F = np.zeros(sae.d_sae, self.dtype)
        self.error_BD = WORKSPACE("error", self.dtype, self.batch, sae.d_in)
        self.squared_B = np.empty(self.batch, self.dtype)
        # On how many of its tokens each latent is active, by part of the chunks so far.
        self.active_PF = WORKSPACE("active", INDEX, PARTS * -(-self.batch // len(pre_CF)), sae.d_sae)
        self._tokens, self._parts = 0, 0
        self._chunks: list[tuple[slice, int, int, kernels.Arrays]] = []
        """Of each: its parts, the tokens of one, its first token, its entries."""

    def add(self, x_CD: Tensor, pre_CF: Tensor) -> None:
        """List the entries of the next tokens, decode them and find the gradients at the latents."""
        sae, run, real = self.sae, self.run, self.dtype.type
        tokens, number = len(x_CD), len(self._chunks)
        of_batch = slice(self._tokens, self._tokens + tokens)
        pre, W_dec_FD = pre_CF.numpy(), sae.W_dec.detach().numpy()
        margin = self.margin if self.near_listed else real(0)
        count_C = np.empty(tokens, np.int32)
        run(kernels.count_entries, tokens, pre, self.theta_F, margin, count_C)
        offset_C = np.zeros(tokens + 1, np.int64)
        np.cumsum(count_C, out=offset_C[1:])
        latent_N, pre_N, grad_N = (
            WORKSPACE(f"{name} of chunk {number}", dtype, int(offset_C[-1]))
            for name, dtype in (("latents", INDEX), ("pre", self.dtype), ("grad", self.dtype))
        )
        size = max(SMALLEST_PART, -(-tokens // PARTS))
        parts = slice(self._parts, self._parts - (-tokens // size))
        batch, decoder = (x_CD.numpy(), pre), (W_dec_FD, sae.b_dec.detach().numpy())
        entries = offset_C, latent_N, pre_N, grad_N
        error_CD, active_PF = self.error_BD[of_batch], self.active_PF[parts]
        found = error_CD, self.squared_B[of_batch], active_PF
        wanted = self.theta_F, margin, real(2 / self.batch), self.near_listed
        run(kernels.read_tokens, len(active_PF), size, batch, decoder, *wanted, entries, found)
        if not self.near_listed:
            grad_CF = WORKSPACE("grad", self.dtype, tokens, sae.d_sae)
            torch.mm(torch.from_numpy(error_CD), sae.W_dec.t(), out=torch.from_numpy(grad_CF))
            near = self.near_F, self.near_grad_F
            run(kernels.near_threshold, sae.d_sae, pre, grad_CF, self.theta_F, self.margin, near)
            run(kernels.pick, tokens, grad_CF, entries)
        self._chunks.append((parts, size, self._tokens, entries))
        self._tokens, self._parts = of_batch.stop, parts.stop

    def by_latent(self) -> tuple[ndarray, kernels.Arrays]:
        """How often each latent is active (F,), and the active entries sorted by latent.

        The entries are: where each latent's begin (F + 1,), their tokens, activations and gradients
        of the squared error (M,).
        """
        d_sae = self.sae.d_sae
        first_F, place_PF = np.empty(d_sae + 1, np.int64), self.active_PF[: self._parts]
        kernels.start_places(place_PF, first_F)
        token_M, act_M, grad_M = (
            WORKSPACE(f"{name} by latent", dtype, int(first_F[-1]))
            for name, dtype in (("tokens", INDEX), ("acts", self.dtype), ("grad", self.dtype))
        )
        margin = self.margin if self.near_listed else self.dtype.type(0)
        rows = self._parts if margin else 0
        near_PF, near_grad_PF = (WORKSPACE(name, self.dtype, rows, d_sae) for name in ("near", "near grad"))
        found = first_F, token_M, act_M, grad_M
        for parts, size, first, entries in self._chunks:
            near = near_PF[parts], near_grad_PF[parts]
            listed = size, first, entries, self.theta_F, margin
            self.run(kernels.sort_by_latent, parts.stop - parts.start, *listed, place_PF[parts], found, near)
        if margin:
            self.near_F, self.near_grad_F = near_PF.sum(0), near_grad_PF.sum(0)
        return np.diff(first_F), found


Run = Callable[..., None]
"""``run(kernel, count, *arguments)``: the kernel over ``range(count)``."""


def _serially(kernel: Callable[..., None], count: int, *arguments: Any) -> None:
    kernel(0, count, *arguments)


def _in_parts(kernel: Callable[..., None], count: int, *arguments: Any) -> None:
    """Ranges of ``count`` on this thread's number of threads, itself among them."""
    threads = torch.get_num_threads()
    if threads == 1:
        kernel(0, count, *arguments)
        return
    size = -(-count // (PARTS_PER_THREAD * threads))
    starts = iter(range(0, count, size))  # shared: each thread takes the next range when it is free

    def work() -> None:
        for start in starts:
            kernel(start, min(start + size, count), *arguments)

    others = [_helpers(threading.get_ident(), threads).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@cache
def _helpers(owner: int, threads: int) -> ThreadPoolExecutor:
    """Threads that help thread ``owner``, and nobody else."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="fastzoo-step")
