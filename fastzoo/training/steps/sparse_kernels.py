"""Compiled loops of the sparse step: what torch has no fast operation for.

Every kernel works on a range ``start:stop`` of tokens or of latents and releases the interpreter
lock, so that threads can share the work. Each result belongs to one token or one latent and is summed
in a fixed order: it does not depend on how the ranges were cut.

B tokens of a batch, C of a chunk, D residual width, F latents, N listed entries (by token), M active
entries (by latent), K some entries, P parts of the tokens. Weights and moments are latent-major (F, D);
floats are all float32, or all float64. What always goes together is a tuple:

    entries    where each token's begin (C + 1,); (N,) latent, pre-activation, gradient at the latent
    by_latent  where each latent's begin (F + 1,); (M,) token, activation, gradient before it
    encoder, decoder, weights   the weights, and Adam's mean and mean square of their gradient
    hyper      clipping factor, 1 − β₁, 1 − β₂, lr / (1 − β₁ᵗ), √(1 − β₂ᵗ), ε
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy import float32, int32, int64, ndarray, sqrt, uint8

Arrays = tuple[ndarray, ...]

# Sums may be reordered (that is what makes vectors of them), but NaN and infinity stay what they are.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def _kernel(function: Callable[..., Any]) -> Any:
    return numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)


@_kernel
def count_entries(
    start: int, stop: int, pre_CF: ndarray, theta_F: ndarray, margin: float, count_C: ndarray
) -> None:
    """How many latents of each token lie above θ − margin."""
    for c in range(start, stop):
        row_F = pre_CF[c]
        n = int32(0)
        for i in range(row_F.shape[0]):
            n += int32(row_F[i] - theta_F[i] > -margin)
        count_C[c] = n


def _count_trailing_zeros(context: Any, word: Any) -> Any:
    """Place of the lowest bit that is set, an instruction of its own; undefined for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


_lowest_bit: Any = intrinsic(_count_trailing_zeros)


@_kernel
def read_tokens(
    start: int,
    stop: int,
    tokens: int,
    batch: Arrays,
    decoder: Arrays,
    theta_F: ndarray,
    margin: float,
    scale: float,
    gradients: bool,
    entries: Arrays,
    found: Arrays,
) -> None:
    """List the latents above θ − margin of each token, in parts of ``tokens``, with their pre-activations.

    From the active ones: the reconstruction error, times ``scale``, and its unscaled square. If asked,
    the gradient of the squared error at each listed latent.
    ``batch`` is x (C, D) and pre-activations (C, F); ``decoder`` its weight (F, D) and bias (D,);
    ``found`` errors (C, D), their squares (C,), and how often each latent is active (P, F).
    """
    x_CD, pre_CF = batch
    W_dec_FD, b_dec_D = decoder
    offset_C, latent_N, pre_N, grad_N = entries
    error_CD, squared_C, active_PF = found
    width = pre_CF.shape[1]
    # One byte per latent, looked at eight at a time: almost all of them are zero.
    words = np.zeros((width + 7) // 8, dtype=int64)
    listed_F = words.view(uint8)
    act_F = np.empty_like(theta_F)  # of a token's listed latents, one after the other
    for part in range(start, stop):
        active_F = active_PF[part]
        active_F[:] = 0
        for c in range(part * tokens, min((part + 1) * tokens, pre_CF.shape[0])):
            row_F = pre_CF[c]
            for i in range(width):
                listed_F[i] = row_F[i] - theta_F[i] > -margin
            low, high = offset_C[c], offset_C[c + 1]
            k = low
            for j in range(words.shape[0]):
                word = words[j]
                while word:
                    i = 8 * j + (_lowest_bit(word) >> 3)  # little-endian, as all that torch runs on
                    word &= word - 1
                    latent_N[k] = i
                    pre_N[k] = row_F[i]
                    active = row_F[i] > theta_F[i]
                    active_F[i] += active
                    act_F[k - low] = row_F[i] if active else float32(0)
                    k += 1
            x_D, error_D = x_CD[c], error_CD[c]
            for d in range(error_D.shape[0]):
                error_D[d] = b_dec_D[d] - x_D[d]
            _add_rows(latent_N[low:high], act_F[: high - low], W_dec_FD, error_D)
            squared = float32(0)
            for d in range(error_D.shape[0]):
                squared += error_D[d] * error_D[d]
                error_D[d] *= scale
            squared_C[c] = squared
            if gradients:
                _products(latent_N[low:high], W_dec_FD, error_D, grad_N[low:high])


@_kernel
def _add_rows(index_K: ndarray, weight_K: ndarray, rows_ND: ndarray, sum_D: ndarray) -> None:
    """sum_D += Σ weight · row, over the rows that ``index_K`` names."""
    entries, width = index_K.shape[0], sum_D.shape[0]
    k = 0
    # Four rows at a time: the sum is loaded and stored a quarter as often.
    while k + 4 <= entries:
        i0, i1, i2, i3 = index_K[k], index_K[k + 1], index_K[k + 2], index_K[k + 3]
        w0, w1, w2, w3 = weight_K[k], weight_K[k + 1], weight_K[k + 2], weight_K[k + 3]
        for d in range(width):
            sum_D[d] += w0 * rows_ND[i0, d] + w1 * rows_ND[i1, d] + w2 * rows_ND[i2, d] + w3 * rows_ND[i3, d]
        k += 4
    while k < entries:
        i0, w0 = index_K[k], weight_K[k]
        for d in range(width):
            sum_D[d] += w0 * rows_ND[i0, d]
        k += 1


@_kernel
def _products(latent_K: ndarray, W_dec_FD: ndarray, error_D: ndarray, grad_K: ndarray) -> None:
    """Error · decoder row of each listed latent of one token."""
    entries, width = latent_K.shape[0], error_D.shape[0]
    k = 0
    while k + 4 <= entries:
        i0, i1, i2, i3 = latent_K[k], latent_K[k + 1], latent_K[k + 2], latent_K[k + 3]
        s0, s1, s2, s3 = float32(0), float32(0), float32(0), float32(0)
        for d in range(width):
            e = error_D[d]
            s0 += e * W_dec_FD[i0, d]
            s1 += e * W_dec_FD[i1, d]
            s2 += e * W_dec_FD[i2, d]
            s3 += e * W_dec_FD[i3, d]
        grad_K[k], grad_K[k + 1], grad_K[k + 2], grad_K[k + 3] = s0, s1, s2, s3
        k += 4
    while k < entries:
        i0 = latent_K[k]
        s0 = float32(0)
        for d in range(width):
            s0 += error_D[d] * W_dec_FD[i0, d]
        grad_K[k] = s0
        k += 1


@_kernel
def pick(start: int, stop: int, grad_CF: ndarray, entries: Arrays) -> None:
    """The gradients at listed latents from those at all latents."""
    offset_C, latent_N, _, grad_N = entries
    for c in range(start, stop):
        for k in range(offset_C[c], offset_C[c + 1]):
            grad_N[k] = grad_CF[c, latent_N[k]]


@_kernel
def near_threshold(
    start: int, stop: int, pre_CF: ndarray, grad_CF: ndarray, theta_F: ndarray, margin: float, near: Arrays
) -> None:
    """Add, per latent, how many pre-activations are within ``margin`` of θ, and their gradients."""
    near_F, near_grad_F = near
    # Sums in arrays of its own: the compiler then sees that nothing overlaps, and uses vectors.
    theta_W = theta_F[start:stop].copy()
    near_W, near_grad_W = np.zeros_like(theta_W), np.zeros_like(theta_W)
    for c in range(pre_CF.shape[0]):
        pre_W, grad_W = pre_CF[c, start:stop], grad_CF[c, start:stop]
        for i in range(theta_W.shape[0]):
            inside = float32(abs(pre_W[i] - theta_W[i]) < margin)
            near_W[i] += inside
            near_grad_W[i] += inside * grad_W[i]
    for i in range(theta_W.shape[0]):
        near_F[start + i] += near_W[i]
        near_grad_F[start + i] += near_grad_W[i]


@_kernel
def start_places(active_PF: ndarray, first_F: ndarray) -> None:
    """``first_F`` (F + 1,): where each latent's entries begin; ``active_PF``: where each part's do."""
    width = active_PF.shape[1]
    next_F = np.zeros_like(active_PF[0])
    for part in range(active_PF.shape[0]):
        for i in range(width):
            next_F[i] += active_PF[part, i]
    first_F[0] = 0
    for i in range(width):
        first_F[i + 1] = first_F[i] + next_F[i]
        next_F[i] = first_F[i]
    for part in range(active_PF.shape[0]):
        for i in range(width):
            count = active_PF[part, i]
            active_PF[part, i] = next_F[i]
            next_F[i] += count


@_kernel
def sort_by_latent(
    start: int,
    stop: int,
    tokens: int,
    first: int,
    entries: Arrays,
    theta_F: ndarray,
    margin: float,
    place_PF: ndarray,
    by_latent: Arrays,
    near: Arrays,
) -> None:
    """Sort the active entries of a chunk's parts ``start:stop`` by latent, tokens in order.

    A part has so many ``tokens``; ``first`` is the batch's number of the chunk's first one. With a
    margin, entries within it of θ are added up per part for the threshold's gradient.
    """
    offset_C, latent_N, pre_N, grad_N = entries
    _, token_M, act_M, grad_M = by_latent
    near_PF, near_grad_PF = near
    for part in range(start, stop):
        place_F = place_PF[part]
        if margin > 0:
            near_PF[part] = 0
            near_grad_PF[part] = 0
        for c in range(part * tokens, min((part + 1) * tokens, offset_C.shape[0] - 1)):
            for k in range(offset_C[c], offset_C[c + 1]):
                i = latent_N[k]
                distance = pre_N[k] - theta_F[i]
                if distance > 0:
                    m = place_F[i]
                    place_F[i] = m + 1
                    token_M[m] = first + c
                    act_M[m] = pre_N[k]
                    grad_M[m] = grad_N[k]
                if abs(distance) < margin:
                    near_PF[part, i] += float32(1)
                    near_grad_PF[part, i] += grad_N[k]


RECOMPUTED, STORED, DENSE = 0, 1, 2
"""Where the update finds the gradient of a latent's two rows: it forms it again from the entries;
in the stored rows of latents that were active; or in the stored rows of all."""


@_kernel
def row_gradients(
    start: int, stop: int, batch: Arrays, by_latent: Arrays, store: bool, grads: Arrays, found: Arrays
) -> None:
    """Each latent's squared gradient norm (two rows and bias), its bias gradient and, if asked, rows.

    ``batch`` is x and the errors (B, D); ``grads`` are gradients of the encoder's and the decoder's rows
    (F, D), unwritten unless ``store``; ``found`` those of the encoder bias, and squared norms (F,).
    """
    x_BD, error_BD = batch
    first_F, token_M, act_M, grad_M = by_latent
    grad_enc_FD, grad_dec_FD = grads
    grad_b_F, squared_F = found
    scratch_D = np.empty_like(x_BD[0])
    for i in range(start, stop):
        low, high = first_F[i], first_F[i + 1]
        bias = float32(0)
        for m in range(low, high):
            bias += grad_M[m]
        grad_b_F[i] = bias
        squared = bias * bias
        if high > low:
            row_D = grad_enc_FD[i] if store else scratch_D
            row_D[:] = 0
            _add_rows(token_M[low:high], grad_M[low:high], x_BD, row_D)
            for d in range(row_D.shape[0]):
                squared += row_D[d] * row_D[d]
            row_D = grad_dec_FD[i] if store else scratch_D
            row_D[:] = 0
            _add_rows(token_M[low:high], act_M[low:high], error_BD, row_D)
            for d in range(row_D.shape[0]):
                squared += row_D[d] * row_D[d]
        squared_F[i] = squared


@_kernel
def adam(weights: Arrays, grad_N: ndarray, hyper: tuple[float, ...]) -> None:
    """Adam on one row."""
    p_N, m_N, v_N = weights
    clip, gain1, gain2, rate, root, eps = hyper
    keep1, keep2 = float32(1) - gain1, float32(1) - gain2
    for n in range(p_N.shape[0]):
        g = grad_N[n] * clip
        m = keep1 * m_N[n] + gain1 * g
        v = keep2 * v_N[n] + gain2 * g * g
        m_N[n], v_N[n] = m, v
        p_N[n] -= rate * m / (sqrt(v) / root + eps)


@_kernel
def _adam_without_gradient(weights: Arrays, hyper: tuple[float, ...]) -> None:
    """Adam where the gradient is exactly zero."""
    p_N, m_N, v_N = weights
    _, gain1, gain2, rate, root, eps = hyper
    keep1, keep2 = float32(1) - gain1, float32(1) - gain2
    for n in range(p_N.shape[0]):
        m = keep1 * m_N[n]
        v = keep2 * v_N[n]
        m_N[n], v_N[n] = m, v
        p_N[n] -= rate * m / (sqrt(v) / root + eps)


@_kernel
def update_rows(
    start: int,
    stop: int,
    batch: Arrays,
    by_latent: Arrays,
    source: int,
    grads: Arrays,
    encoder: Arrays,
    decoder: Arrays,
    hyper: tuple[float, ...],
) -> None:
    """Adam on each latent's encoder and decoder row, the latter brought back to unit norm."""
    x_BD, error_BD = batch
    first_F, token_M, act_M, grad_M = by_latent
    grad_enc_FD, grad_dec_FD = grads
    W_enc_FD, m_enc_FD, v_enc_FD = encoder
    W_dec_FD, m_dec_FD, v_dec_FD = decoder
    scratch_D = np.empty_like(x_BD[0])
    for i in range(start, stop):
        low, high = first_F[i], first_F[i + 1]
        enc, dec = (W_enc_FD[i], m_enc_FD[i], v_enc_FD[i]), (W_dec_FD[i], m_dec_FD[i], v_dec_FD[i])
        if source == DENSE or high > low:
            row_D = scratch_D if source == RECOMPUTED else grad_enc_FD[i]
            if source == RECOMPUTED:
                row_D[:] = 0
                _add_rows(token_M[low:high], grad_M[low:high], x_BD, row_D)
            adam(enc, row_D, hyper)
            row_D = scratch_D if source == RECOMPUTED else grad_dec_FD[i]
            if source == RECOMPUTED:
                row_D[:] = 0
                _add_rows(token_M[low:high], act_M[low:high], error_BD, row_D)
            adam(dec, row_D, hyper)
        else:
            _adam_without_gradient(enc, hyper)
            _adam_without_gradient(dec, hyper)
        w_D = W_dec_FD[i]
        squared = float32(0)
        for d in range(w_D.shape[0]):
            squared += w_D[d] * w_D[d]
        scale = float32(1) / max(sqrt(squared), float32(1e-12))
        for d in range(w_D.shape[0]):
            w_D[d] *= scale
