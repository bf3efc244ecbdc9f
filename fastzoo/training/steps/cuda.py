"""The step for NVIDIA GPUs: closed-form gradients in as few passes over memory as they take.

At small batches memory traffic is what a step costs, so the weights' gradients are never written:
one kernel forms a tile of xᵀg in registers and applies Adam to it at once. Clipping needs the norm
of a gradient before that; it comes from two small Gram matrices, ‖XᵀG‖² = Σ (XXᵀ) ∘ (GGᵀ). Per step
and parameter that leaves the weights read by the products, three float32 numbers read and three
written. Nothing waits for the GPU, and the whole step is one CUDA graph.

It has been compiled for an H100 and run in Triton's interpreter, but never yet run on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor

from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.saes.base import CudaForm, StepStats, TrainableSAE
from fastzoo.training.steps import cuda_kernels as kernels
from fastzoo.training.steps.base import Step

INTERPRETED = not isinstance(kernels.activate, triton.runtime.JITFunction)
"""Kernels run in Triton's interpreter, on a CPU (TRITON_INTERPRET=1)."""

FUSED_BATCH = 256
"""Up to this many tokens gradients are formed where they are used: 2 · batch operations per
parameter, which tensor cores do while the 24 bytes of Adam's state pass. Larger batches have theirs
made by cuBLAS, which is better at arithmetic, for 8 bytes more per parameter."""

WARMUP = 3
"""Steps before the graph is captured: they compile kernels and let cuBLAS set itself up."""

# Blocks, for an H100 (132 processors of 65,536 registers and 228 KiB shared memory, 50 MiB L2).
# Chosen by reasoning, not by measurement.
#
# Sums over tokens: one program owns BLOCK_F columns. 32 float32 are one 128-byte line per token,
# and the narrowest SAE of the zoo (d_sae 7,168) still makes 224 programs.
BLOCK_B, BLOCK_F = 32, 32

# Updating weights: fewer rows than 32 would have the right operand (batch, d_in) read from L2 more
# than Adam's state from memory: at 128 tokens 512 bytes per column against 24 per row and column.
# A tile of (32, 64) for 256 threads is 8 numbers each of gradient, weight and two moments; for sm_90 a
# thread needs up to 140 registers, and capped at 128 two programs (24 KiB of shared memory each) share
# a processor, one waiting for memory while the other computes: all 7,168 / 32 = 224 are resident at once.
UPDATE_B, UPDATE_F, UPDATE_D = 32, 32, 64
UPDATE = {"num_warps": 8, "maxnreg": 128}

VECTOR = 1024


class _Work:
    """Buffers for batches of one size, and the graph that uses them."""

    def __init__(self, step: CudaStep, batch: int) -> None:
        sae, product = step.sae, step.product_dtype
        d_in, d_sae = sae.d_in, sae.d_sae

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=sae.W_enc.device)

        self.batch, self.runs = batch, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.x_BD = new(batch, d_in)
        self.pre_BF = new(batch, d_sae)
        self.reconstruction_BD = new(batch, d_in)
        self.latent_grad_BF = new(batch, d_sae)
        self.acts_BF = new(batch, d_sae, dtype=product)
        # Operands of products: the float32 buffers themselves where products are of float32.
        own = product != torch.float32
        self.operand_BD = new(batch, d_in, dtype=product) if own else self.x_BD
        self.error_BD = new(batch, d_in, dtype=product) if own else self.reconstruction_BD
        self.grad_BF = new(batch, d_sae, dtype=product) if own else self.latent_grad_BF
        self.fired_F = new(d_sae)
        self.errors = new(triton.cdiv(d_in, BLOCK_F))
        self.penalties = new(triton.cdiv(d_sae, BLOCK_F))
        self.stats = new(3)
        # Gradients of everything but the two weights, one after the other.
        sizes = {n: p.numel() for n, p in sae.trained_parameters().items() if p.dim() == 1}
        self.vector_grads = new(sum(sizes.values()))
        views = self.vector_grads.split(list(sizes.values()))
        self.vector_grad = dict(zip(sizes, views, strict=True))
        self.fused = batch <= FUSED_BATCH
        if self.fused:
            self.grams = [new(batch, batch) for _ in range(4)]
        else:
            self.enc_grad_FD, self.dec_grad_FD = new(d_sae, d_in), new(d_sae, d_in)


class CudaStep(Step):
    """Adam's moments are stored as the weights are, latent-major; ``moments()`` turns them."""

    kind = "cuda"
    side_by_side = False  # Triton's interpreter runs one kernel at a time

    def __init__(self, sae: TrainableSAE, training: TrainingSection, compute: ComputeSection) -> None:
        super().__init__(sae, training, compute)
        device = sae.W_enc.device
        form = sae.cuda_form()
        assert form is not None  # ``choose`` gives no other SAEs to this step
        self.form: CudaForm = form
        self.jump = form.threshold is not None
        self.precision = compute.precision
        half = compute.precision == "bfloat16"
        self.product_dtype = torch.bfloat16 if half else torch.float32
        self.float32_products = "tf32" if compute.precision == "tf32" else "ieee"
        self.W_enc_FD, self.W_dec_FD = sae.W_enc.detach().t(), sae.W_dec.detach()
        self.vectors = {n: p.detach() for n, p in sae.trained_parameters().items() if p.dim() == 1}
        stored = {"W_enc": self.W_enc_FD, "W_dec": self.W_dec_FD} | self.vectors
        self.state = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in stored.items()}
        self.inputs = torch.zeros(2, device=device)
        self.rate, self.coefficient = self.inputs.unbind()
        self.control = torch.zeros(4, device=device)
        # What products read: bfloat16 copies that the update keeps in step, or the weights.
        self.encoder_FD, self.decoder_FD = self.W_enc_FD, self.W_dec_FD
        if half:
            self.encoder_FD, self.decoder_FD = self.W_enc_FD.bfloat16(), self.W_dec_FD.bfloat16()
        self.versions = self._versions()
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.work: _Work | None = None

    @property
    def steps(self) -> int:
        """Steps that were applied; reading it waits for the GPU."""
        return int(self.applied.item())

    @steps.setter
    def steps(self, count: int) -> None:
        if not hasattr(self, "applied"):
            self.applied = torch.zeros(1, dtype=torch.int64, device=self.sae.W_enc.device)
        self.applied.fill_(count)  # in place: the graph holds its address

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        mean_FD, square_FD = self.state["W_enc"]
        return self.state | {"W_enc": (mean_FD.t(), square_FD.t())}

    @torch.no_grad()
    def __call__(self, x_BD: Tensor, rate: float, coefficient: float) -> StepStats:
        self._follow()
        if self.work is None or self.work.batch != len(x_BD):
            self.work = _Work(self, len(x_BD))
        work = self.work
        self.rate.fill_(rate)
        self.coefficient.fill_(coefficient)
        work.x_BD.copy_(x_BD)
        if self.stream is None:
            self._compute(work)
        else:
            with torch.cuda.device(x_BD.device):
                self._run(work, self.stream)
        # Copies: the next step writes over the buffers.
        squared_error, penalty, norm = work.stats.clone().unbind()
        return StepStats(squared_error, penalty, work.fired_F.clone(), norm)

    def _run(self, work: _Work, stream: torch.cuda.Stream) -> None:
        """One step on a GPU: the first few as they come, then a graph of one, replayed."""
        if work.graph is None and work.runs == WARMUP:
            work.graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may go on using the GPU, to compute activations for example.
            with torch.cuda.graph(work.graph, stream=stream, capture_error_mode="thread_local"):
                self._compute(work)
        if work.graph is not None:
            work.graph.replay()
            return
        # On the stream that will capture: what libraries keep per stream is then in place.
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._compute(work)
        current.wait_stream(stream)
        work.runs += 1

    def _compute(self, work: _Work) -> None:
        """The step itself, from ``work.x_BD`` and ``inputs``: launches only."""
        if work.operand_BD is not work.x_BD:
            work.operand_BD.copy_(work.x_BD)
        with float32_products(self.float32_products):
            self._gradients(work)
        with float32_products("ieee"):  # norms are always exact to float32
            self._conclude(work)
        enc_grad_FD, dec_grad_FD = self.W_enc_FD, self.W_dec_FD  # unread where gradients are formed in place
        if not work.fused:
            enc_grad_FD, dec_grad_FD = work.enc_grad_FD, work.dec_grad_FD
        encoder = (
            self.W_enc_FD,
            *self.state["W_enc"],
            self.encoder_FD,
            work.grad_BF,
            work.operand_BD,
            enc_grad_FD,
        )
        decoder = (
            self.W_dec_FD,
            *self.state["W_dec"],
            self.decoder_FD,
            work.acts_BF,
            work.error_BD,
            dec_grad_FD,
        )
        sizes = work.batch, self.sae.d_sae, self.sae.d_in
        # What is kept of each moment, what is new in it, and Adam's ε.
        adam = self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2, self.eps
        for pointers, unit_rows in ((encoder, False), (decoder, True)):
            kernels.update_weight[(triton.cdiv(self.sae.d_sae, UPDATE_F),)](
                *pointers,
                self.control,
                *sizes,
                *adam,
                FUSED=work.fused,
                UNIT_ROWS=unit_rows,
                SHADOW=self.product_dtype != torch.float32,
                PRECISION=self.float32_products,
                UPCAST=INTERPRETED,
                BLOCK_B=UPDATE_B,
                BLOCK_F=UPDATE_F,
                BLOCK_D=UPDATE_D,
                **UPDATE,
            )
        for name, weight in self.vectors.items():
            kernels.update_vector[(triton.cdiv(weight.numel(), VECTOR),)](
                weight,
                *self.state[name],
                work.vector_grad[name],
                self._threshold_F(),
                self.control,
                weight.numel(),
                *adam,
                self.form.least,
                CLAMP=name == self.form.threshold and not self.form.log,
                LOG=name == self.form.threshold and self.form.log,
                BLOCK=VECTOR,
            )

    def _gradients(self, work: _Work) -> None:
        """Everything up to the gradients; of the weights only where they are not formed in place."""
        sae, batch, threshold_F = self.sae, work.batch, self._threshold_F()
        per_latent = (triton.cdiv(sae.d_sae, BLOCK_F),)
        blocks = {"BLOCK_B": BLOCK_B, "BLOCK_F": BLOCK_F}
        product_(work.pre_BF, work.operand_BD, self.encoder_FD.t())
        pre = work.pre_BF, self.vectors["b_enc"], threshold_F
        found = work.acts_BF, work.fired_F, work.penalties
        kernels.activate[per_latent](*pre, *found, batch, sae.d_sae, JUMP=self.jump, **blocks)
        product_(work.reconstruction_BD, work.acts_BF, self.decoder_FD)
        given = work.reconstruction_BD, self.vectors["b_dec"], work.x_BD
        found = work.error_BD, work.vector_grad["b_dec"], work.errors
        kernels.reconstruction_error[(triton.cdiv(sae.d_in, BLOCK_F),)](
            *given, *found, batch, sae.d_in, 2.0 / batch, BLOCK_B=BLOCK_B, BLOCK_D=BLOCK_F
        )
        product_(work.latent_grad_BF, work.error_BD, self.decoder_FD.t())
        kernels.pre_activation_gradient[per_latent](
            *pre,
            work.latent_grad_BF,
            work.grad_BF,
            work.vector_grad["b_enc"],
            work.vector_grad[self.form.threshold or "b_enc"],  # unwritten without thresholds
            self.inputs,
            batch,
            sae.d_sae,
            self.form.bandwidth,
            JUMP=self.jump,
            LOG=self.form.log,
            **blocks,
        )
        if not work.fused:
            product_(work.enc_grad_FD, work.grad_BF.t(), work.operand_BD)
            product_(work.dec_grad_FD, work.acts_BF.t(), work.error_BD)

    def _conclude(self, work: _Work) -> None:
        """The norm of all gradients together, and what follows from it.

        Gram matrices in float32 lose what large products cancel: with activations whose mean is 30
        times their spread, and gradients that sum to 0, the norm is good to about 1e-5.
        """
        if work.fused:
            operands = (work.operand_BD, work.grad_BF, work.error_BD, work.acts_BF)
            for gram_BB, operand in zip(work.grams, operands, strict=True):
                product_(gram_BB, operand, operand.t())
            squares = *work.grams, work.batch**2, work.batch**2
        else:
            both = (work.enc_grad_FD, work.dec_grad_FD)
            norms = torch.stack([torch.linalg.vector_norm(grad_FD) for grad_FD in both])
            squares = *[norms] * 4, 2, 0
        parts = [x for part in (work.vector_grads, work.errors, work.penalties) for x in (part, part.numel())]
        state = self.inputs, self.control, work.stats, self.applied
        log2_betas = [math.log2(b) if b else -math.inf for b in (self.beta1, self.beta2)]
        kernels.conclude[(1,)](*squares, *parts, *state, self.clip_norm, *log2_betas, BLOCK=2048, num_warps=8)

    def _threshold_F(self) -> Tensor:
        """θ; something harmless for SAEs that have none, where kernels do not read it."""
        bias_F = self.vectors["b_enc"]
        return self.sae.thresholds(bias_F).detach() if self.jump else bias_F

    def _versions(self) -> tuple[int, int]:
        """Torch's count of changes to the weights; kernels here are not counted."""
        return self.sae.W_enc._version, self.sae.W_dec._version

    def _follow(self) -> None:
        """Renew the bfloat16 copies where someone else has written to the weights."""
        if self.versions != self._versions():
            self.versions = self._versions()
            if self.product_dtype != torch.float32:
                self.encoder_FD.copy_(self.W_enc_FD)
                self.decoder_FD.copy_(self.W_dec_FD)


def product_(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out (float32) = a @ b, accumulated in float32 where the operands are bfloat16."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif not a.is_cuda:
        torch.mm(a.float(), b.float(), out=out)
    elif hasattr(torch.ops.aten.mm, "dtype_out"):
        torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)
    else:  # torch before 2.8 rounds the results to bfloat16
        out.copy_(torch.mm(a, b))


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """How cuBLAS multiplies float32 within this block: ``ieee`` or ``tf32``."""
    settings = torch.backends.cuda.matmul
    # Torch 2.9 renamed the setting, and reading the old name after the new was used is an error.
    renamed = hasattr(settings, "fp32_precision")
    name, wanted = ("fp32_precision", precision) if renamed else ("allow_tf32", precision == "tf32")
    before = getattr(settings, name)
    setattr(settings, name, wanted)
    try:
        yield
    finally:
        setattr(settings, name, before)
