"""Triton kernels of the CUDA step: everything between and after its matrix products.

All tensors are contiguous: activations (batch, d_sae) or (batch, d_in), weights latent-major
(d_sae, d_in). Where a kernel adds over tokens, one program owns the columns it adds up, so sums need
no atomics and come out the same every time. Sums over columns are left as one figure per program.

Triton runs all of this on a CPU as well, slowly, with TRITON_INTERPRET=1 in the environment.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Slots of the scalars that live on the device.
RATE, COEFFICIENT = tl.constexpr(0), tl.constexpr(1)  # `inputs`

FACTOR, STEP_SIZE, ROOT, GO = (tl.constexpr(i) for i in range(4))  # `control`

SQUARED_ERROR, PENALTY, NORM = (tl.constexpr(i) for i in range(3))  # `stats`


@triton.jit
def activate(
    pre_ptr,  # (batch, d_sae) float32: x @ W_enc, without bias
    bias_ptr,  # (d_sae,)
    threshold_ptr,  # (d_sae,); unread unless JUMP
    acts_ptr,  # (batch, d_sae) out, in the products' dtype
    fired_ptr,  # (d_sae,) out: tokens on which each latent is active
    penalties_ptr,  # (programs,) out: the penalty, a part per program
    batch,
    d_sae,
    JUMP: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Bias and activation; one program per block of latents, over all tokens."""
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    valid_f = f < d_sae
    bias = tl.load(bias_ptr + f, mask=valid_f, other=0.0)
    if JUMP:
        threshold = tl.load(threshold_ptr + f, mask=valid_f, other=0.0)
    fired = tl.zeros((BLOCK_F,), tl.float32)
    total = tl.zeros((BLOCK_F,), tl.float32)
    for start in range(0, batch, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        at = b[:, None].to(tl.int64) * d_sae + f[None, :]
        valid = (b < batch)[:, None] & valid_f[None, :]
        pre = tl.load(pre_ptr + at, mask=valid, other=0.0) + bias[None, :]
        if JUMP:
            acts = tl.where((pre > threshold[None, :]) & (pre > 0), pre, 0.0)
        else:
            acts = tl.where(pre <= 0, 0.0, pre)  # NaN stays NaN
        acts = tl.where(valid, acts, 0.0)
        fired += tl.sum((acts > 0).to(tl.float32), axis=0)
        total += tl.sum(acts, axis=0)
        tl.store(acts_ptr + at, acts.to(acts_ptr.dtype.element_ty), mask=valid)
    tl.store(fired_ptr + f, fired, mask=valid_f)
    tl.store(penalties_ptr + tl.program_id(0), tl.sum(fired if JUMP else total, axis=0))


@triton.jit
def reconstruction_error(
    product_ptr,  # (batch, d_in) float32: acts @ W_dec, without bias
    bias_ptr,  # (d_in,)
    x_ptr,  # (batch, d_in) float32
    grad_ptr,  # (batch, d_in) out, in the products' dtype: 2/batch (x̂ − x)
    grad_bias_ptr,  # (d_in,) out
    errors_ptr,  # (programs,) out: the squared error, a part per program
    batch,
    d_in,
    scale,  # 2 / batch
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Reconstruction error and its gradients; one program per block of columns, over all tokens."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    valid_d = d < d_in
    bias = tl.load(bias_ptr + d, mask=valid_d, other=0.0)
    grad_bias = tl.zeros((BLOCK_D,), tl.float32)
    squares = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, batch, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        at = b[:, None].to(tl.int64) * d_in + d[None, :]
        valid = (b < batch)[:, None] & valid_d[None, :]
        product = tl.load(product_ptr + at, mask=valid, other=0.0)
        error = product + bias[None, :] - tl.load(x_ptr + at, mask=valid, other=0.0)
        error = tl.where(valid, error, 0.0)
        squares += tl.sum(error * error, axis=0)
        error = error * scale
        grad_bias += tl.sum(error, axis=0)
        tl.store(grad_ptr + at, error.to(grad_ptr.dtype.element_ty), mask=valid)
    tl.store(grad_bias_ptr + d, grad_bias, mask=valid_d)
    tl.store(errors_ptr + tl.program_id(0), tl.sum(squares, axis=0))


@triton.jit
def pre_activation_gradient(
    pre_ptr,  # (batch, d_sae) float32: x @ W_enc, without bias
    bias_ptr,  # (d_sae,)
    threshold_ptr,  # (d_sae,); unread unless JUMP
    product_ptr,  # (batch, d_sae) float32: gradient at the latents, without the penalty
    grad_ptr,  # (batch, d_sae) out, in the products' dtype; may be product_ptr
    grad_bias_ptr,  # (d_sae,) out
    grad_threshold_ptr,  # (d_sae,) out, of θ or log θ; unwritten unless JUMP
    inputs_ptr,
    batch,
    d_sae,
    bandwidth,
    JUMP: tl.constexpr,
    LOG: tl.constexpr,  # log θ is what is learned
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Gradient at the pre-activations and its sums; one program per block of latents."""
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    valid_f = f < d_sae
    weight = tl.load(inputs_ptr + COEFFICIENT) / batch
    bias = tl.load(bias_ptr + f, mask=valid_f, other=0.0)
    if JUMP:
        threshold = tl.load(threshold_ptr + f, mask=valid_f, other=0.0)
        window_count = tl.zeros((BLOCK_F,), tl.float32)
        window_grad = tl.zeros((BLOCK_F,), tl.float32)
    grad_bias = tl.zeros((BLOCK_F,), tl.float32)
    for start in range(0, batch, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        at = b[:, None].to(tl.int64) * d_sae + f[None, :]
        valid = (b < batch)[:, None] & valid_f[None, :]
        pre = tl.load(pre_ptr + at, mask=valid, other=0.0) + bias[None, :]
        grad = tl.load(product_ptr + at, mask=valid, other=0.0)
        # Products with a mask, not selections: an infinite gradient must not go unnoticed.
        if JUMP:
            near = (tl.abs(pre - threshold[None, :]) < bandwidth / 2) & valid
            near = near.to(tl.float32)
            window_count += tl.sum(near, axis=0)
            window_grad += tl.sum(near * grad, axis=0)
            grad *= ((pre > threshold[None, :]) & (pre > 0) & valid).to(tl.float32)
        else:
            grad = (grad + weight) * ((pre > 0) & valid).to(tl.float32)
        grad_bias += tl.sum(grad, axis=0)
        tl.store(grad_ptr + at, grad.to(grad_ptr.dtype.element_ty), mask=valid)
    tl.store(grad_bias_ptr + f, grad_bias, mask=valid_f)
    if JUMP:
        grad_threshold = -(weight * window_count + threshold * window_grad) / bandwidth
        if LOG:
            grad_threshold *= threshold
        tl.store(grad_threshold_ptr + f, grad_threshold, mask=valid_f)


@triton.jit
def _dot(a_ptr, b_ptr, n, BLOCK: tl.constexpr):
    """Σ aᵢ bᵢ of two float32 vectors, in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + i, mask=i < n, other=0.0).to(tl.float64)
        total += a * tl.load(b_ptr + i, mask=i < n, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def _sum(a_ptr, n, BLOCK: tl.constexpr):
    """Σ aᵢ of a float32 vector, in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(a_ptr + i, mask=i < n, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def conclude(
    first_ptr,  # two pairs of vectors whose inner products are, together,
    second_ptr,  # the squared norm of both weights' gradients
    third_ptr,
    fourth_ptr,
    pair_size,
    other_pair_size,
    biases_ptr,  # gradients of all biases and thresholds, one after the other
    biases_size,
    errors_ptr,
    errors_size,
    penalties_ptr,
    penalties_size,
    inputs_ptr,
    control_ptr,  # (4,) out: what the update kernels need
    stats_ptr,  # (3,) out
    applied_ptr,  # (1,) int64: steps that were applied
    clip_norm,
    log2_beta1,
    log2_beta2,
    BLOCK: tl.constexpr,
):
    """Gradient norm, clipping factor, Adam's corrections, sums of the parts. One program: a few µs.

    A norm that is NaN or infinite sets GO to 0, and the update kernels then do nothing.
    """
    square = _dot(first_ptr, second_ptr, pair_size, BLOCK)
    square += _dot(third_ptr, fourth_ptr, other_pair_size, BLOCK)
    # Inner products of Gram matrices may miss 0 by a rounding; NaN stays NaN.
    square = tl.where(square < 0, 0.0, square)
    square += _dot(biases_ptr, biases_ptr, biases_size, BLOCK)
    norm = tl.sqrt(square).to(tl.float32)
    finite = norm < float("inf")
    applied = tl.load(applied_ptr) + finite.to(tl.int64)
    tl.store(applied_ptr, applied)
    # In float64: 1 − β₂ᵗ of the first steps is a small difference of large numbers.
    count = applied.to(tl.float64)
    correction1 = 1.0 - tl.exp2(count * log2_beta1)
    correction2 = 1.0 - tl.exp2(count * log2_beta2)
    rate = tl.load(inputs_ptr + RATE)
    tl.store(control_ptr + FACTOR, tl.where(norm > clip_norm, clip_norm / (norm + 1e-6), 1.0))
    tl.store(control_ptr + STEP_SIZE, (rate / correction1).to(tl.float32))
    tl.store(control_ptr + ROOT, tl.sqrt(correction2).to(tl.float32))
    tl.store(control_ptr + GO, finite.to(tl.float32))
    tl.store(stats_ptr + SQUARED_ERROR, _sum(errors_ptr, errors_size, BLOCK).to(tl.float32))
    tl.store(stats_ptr + PENALTY, _sum(penalties_ptr, penalties_size, BLOCK).to(tl.float32))
    tl.store(stats_ptr + NORM, norm)


@triton.jit
def _adam(weight, mean, square, grad, control_ptr, keep1, new1, keep2, new2, eps):
    """One Adam update, with the clipped gradient; returns weight, mean, square."""
    grad = grad * tl.load(control_ptr + FACTOR)
    mean = keep1 * mean + new1 * grad
    square = keep2 * square + new2 * grad * grad
    denominator = tl.sqrt(square) / tl.load(control_ptr + ROOT) + eps
    return weight - tl.load(control_ptr + STEP_SIZE) * mean / denominator, mean, square


@triton.jit
def update_vector(
    weight_ptr,  # (n,)
    mean_ptr,
    square_ptr,
    grad_ptr,
    threshold_ptr,  # (n,) out where LOG: exp(weight)
    control_ptr,
    n,
    keep1,
    new1,
    keep2,
    new2,
    eps,
    least,
    CLAMP: tl.constexpr,  # keep weights at or above `least`
    LOG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adam for a bias or a threshold."""
    if tl.load(control_ptr + GO) != 0:
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        valid = i < n
        weight = tl.load(weight_ptr + i, mask=valid, other=0.0)
        mean = tl.load(mean_ptr + i, mask=valid, other=0.0)
        square = tl.load(square_ptr + i, mask=valid, other=0.0)
        grad = tl.load(grad_ptr + i, mask=valid, other=0.0)
        weight, mean, square = _adam(weight, mean, square, grad, control_ptr, keep1, new1, keep2, new2, eps)
        if CLAMP:
            weight = tl.maximum(weight, least)
        tl.store(weight_ptr + i, weight, mask=valid)
        tl.store(mean_ptr + i, mean, mask=valid)
        tl.store(square_ptr + i, square, mask=valid)
        if LOG:
            tl.store(threshold_ptr + i, tl.exp(weight), mask=valid)


@triton.jit
def update_weight(
    weight_ptr,  # (d_sae, d_in) float32, as are its two moments
    mean_ptr,
    square_ptr,
    shadow_ptr,  # (d_sae, d_in) bfloat16 copy of the weight; unwritten unless SHADOW
    left_ptr,  # (batch, d_sae): the gradient is leftᵀ @ right, formed here if FUSED
    right_ptr,  # (batch, d_in)
    grad_ptr,  # (d_sae, d_in) float32: the gradient; unread if FUSED
    control_ptr,
    batch,
    d_sae,
    d_in,
    keep1,
    new1,
    keep2,
    new2,
    eps,
    FUSED: tl.constexpr,
    UNIT_ROWS: tl.constexpr,  # bring rows back to unit norm
    SHADOW: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of float32: ieee or tf32
    UPCAST: tl.constexpr,  # multiply in float32: Triton's interpreter knows no other way
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adam for a weight matrix; one program per block of latents, over all of d_in."""
    if tl.load(control_ptr + GO) != 0:
        f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
        valid_f = f < d_sae
        row = f[:, None].to(tl.int64) * d_in
        norms = tl.zeros((BLOCK_F,), tl.float32)
        for start in range(0, d_in, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            at = row + d[None, :]
            valid = valid_f[:, None] & (d < d_in)[None, :]
            # Asked for before the product, so that memory and arithmetic overlap. The moments are
            # not needed again in this step: they should not push weights out of the L2 cache.
            weight = tl.load(weight_ptr + at, mask=valid, other=0.0)
            mean = tl.load(mean_ptr + at, mask=valid, other=0.0, eviction_policy="evict_first")
            square = tl.load(square_ptr + at, mask=valid, other=0.0, eviction_policy="evict_first")
            if FUSED:
                grad = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
                for first in range(0, batch, BLOCK_B):
                    b = first + tl.arange(0, BLOCK_B)[:, None]
                    left_at = left_ptr + b.to(tl.int64) * d_sae + f[None, :]
                    left = tl.load(left_at, mask=(b < batch) & valid_f[None, :], other=0.0)
                    right_at = right_ptr + b.to(tl.int64) * d_in + d[None, :]
                    right = tl.load(right_at, mask=(b < batch) & (d < d_in)[None, :], other=0.0)
                    if UPCAST:
                        left, right = left.to(tl.float32), right.to(tl.float32)
                    grad = tl.dot(tl.trans(left), right, grad, input_precision=PRECISION)
            else:
                grad = tl.load(grad_ptr + at, mask=valid, other=0.0, eviction_policy="evict_first")
            weight, mean, square = _adam(
                weight, mean, square, grad, control_ptr, keep1, new1, keep2, new2, eps
            )
            tl.store(weight_ptr + at, weight, mask=valid)
            tl.store(mean_ptr + at, mean, mask=valid, eviction_policy="evict_first")
            tl.store(square_ptr + at, square, mask=valid, eviction_policy="evict_first")
            if UNIT_ROWS:
                norms += tl.sum(tl.where(valid, weight * weight, 0.0), axis=1)
            elif SHADOW:
                tl.store(shadow_ptr + at, weight.to(tl.bfloat16), mask=valid)
        if UNIT_ROWS:
            tl.debug_barrier()  # what one thread wrote above, another may read below
            norms = tl.maximum(tl.sqrt(norms), 1e-12)
            # Backwards: what was written last is the likeliest to be in the L2 cache still.
            blocks = tl.cdiv(d_in, BLOCK_D)
            for i in range(blocks):
                d = (blocks - 1 - i) * BLOCK_D + tl.arange(0, BLOCK_D)
                at = row + d[None, :]
                valid = valid_f[:, None] & (d < d_in)[None, :]
                weight = tl.load(weight_ptr + at, mask=valid, other=0.0) / norms[:, None]
                tl.store(weight_ptr + at, weight, mask=valid)
                if SHADOW:
                    tl.store(shadow_ptr + at, weight.to(tl.bfloat16), mask=valid)
