"""Compiled loops of the sparse step: what torch has no fast operation for.

Every kernel works on a range ``start:stop`` of tokens or of latents and releases the interpreter
lock, so that threads can share the work. Each result belongs to one token or one latent and is summed
in a fixed order: it does not depend on how the ranges were cut.

B tokens of a batch, C of a chunk, D residual width, F latents, N listed entries (by token), M active
entries (by latent). Weights and moments are latent-major (F, D); floats are all
float32, or all float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy import float32, int32, int64, ndarray, sqrt

# Sums may be reordered (that is what makes vectors of them), but NaN and infinity stay what they are.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def _kernel(function: Callable[..., Any]) -> Any:
    compiler = numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
    return compiler(function)


# --- which latents matter for which token ---


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


@_kernel
def list_entries(
    start: int,
    stop: int,
    pre_CF: ndarray,
    theta_F: ndarray,
    margin: float,
    offset_C: ndarray,
    latent_N: ndarray,
    pre_N: ndarray,
) -> None:
    """List those latents and their pre-activations, token by token from ``offset_C``."""
    width = pre_CF.shape[1]
    groups = width - width % 16
    for c in range(start, stop):
        row_F = pre_CF[c]
        k, high = offset_C[c], offset_C[c + 1]
        for j in range(0, groups, 16):
            # Almost all groups have none: a test of 16 at once skips them.
            some = int32(0)
            for i in range(16):
                some |= int32(row_F[j + i] - theta_F[j + i] > -margin)
            if some:
                for i in range(j, j + 16):
                    # Written whether or not it is listed, and kept by moving on: no branch to guess.
                    if k < high:
                        latent_N[k] = i
                        pre_N[k] = row_F[i]
                        k += int64(row_F[i] - theta_F[i] > -margin)
        for i in range(groups, width):
            if row_F[i] - theta_F[i] > -margin:
                latent_N[k] = i
                pre_N[k] = row_F[i]
                k += 1


@_kernel
def decode(
    start: int,
    stop: int,
    x_CD: ndarray,
    W_dec_FD: ndarray,
    b_dec_D: ndarray,
    theta_F: ndarray,
    offset_C: ndarray,
    latent_N: ndarray,
    pre_N: ndarray,
    scale: float,
    error_CD: ndarray,
    squared_C: ndarray,
) -> None:
    """Reconstruction error times ``scale``, and its unscaled square, from the active entries."""
    width = x_CD.shape[1]
    for c in range(start, stop):
        low, high = offset_C[c], offset_C[c + 1]
        row_D = error_CD[c]
        for d in range(width):
            row_D[d] = b_dec_D[d] - x_CD[c, d]
        k = low
        # Four decoder rows at a time: the sum is loaded and stored a quarter as often.
        while k + 4 <= high:
            i0, i1, i2, i3 = latent_N[k], latent_N[k + 1], latent_N[k + 2], latent_N[k + 3]
            a0 = pre_N[k] if pre_N[k] > theta_F[i0] else float32(0)
            a1 = pre_N[k + 1] if pre_N[k + 1] > theta_F[i1] else float32(0)
            a2 = pre_N[k + 2] if pre_N[k + 2] > theta_F[i2] else float32(0)
            a3 = pre_N[k + 3] if pre_N[k + 3] > theta_F[i3] else float32(0)
            for d in range(width):
                row_D[d] += (
                    a0 * W_dec_FD[i0, d]
                    + a1 * W_dec_FD[i1, d]
                    + a2 * W_dec_FD[i2, d]
                    + a3 * W_dec_FD[i3, d]
                )
            k += 4
        while k < high:
            i0 = latent_N[k]
            a0 = pre_N[k] if pre_N[k] > theta_F[i0] else float32(0)
            for d in range(width):
                row_D[d] += a0 * W_dec_FD[i0, d]
            k += 1
        squared = float32(0)
        for d in range(width):
            squared += row_D[d] * row_D[d]
        squared_C[c] = squared
        for d in range(width):
            row_D[d] *= scale


@_kernel
def latent_gradients(
    start: int,
    stop: int,
    error_CD: ndarray,
    W_dec_FD: ndarray,
    offset_C: ndarray,
    latent_N: ndarray,
    grad_N: ndarray,
) -> None:
    """Gradient of the squared error at each listed latent: error · decoder row."""
    width = error_CD.shape[1]
    for c in range(start, stop):
        high = offset_C[c + 1]
        row_D = error_CD[c]
        k = offset_C[c]
        while k + 4 <= high:
            i0, i1, i2, i3 = latent_N[k], latent_N[k + 1], latent_N[k + 2], latent_N[k + 3]
            s0, s1, s2, s3 = float32(0), float32(0), float32(0), float32(0)
            for d in range(width):
                e = row_D[d]
                s0 += e * W_dec_FD[i0, d]
                s1 += e * W_dec_FD[i1, d]
                s2 += e * W_dec_FD[i2, d]
                s3 += e * W_dec_FD[i3, d]
            grad_N[k], grad_N[k + 1], grad_N[k + 2], grad_N[k + 3] = s0, s1, s2, s3
            k += 4
        while k < high:
            i0 = latent_N[k]
            s0 = float32(0)
            for d in range(width):
                s0 += row_D[d] * W_dec_FD[i0, d]
            grad_N[k] = s0
            k += 1


@_kernel
def pick(
    start: int,
    stop: int,
    grad_CF: ndarray,
    offset_C: ndarray,
    latent_N: ndarray,
    grad_N: ndarray,
) -> None:
    """The same from gradients at all latents."""
    for c in range(start, stop):
        for k in range(offset_C[c], offset_C[c + 1]):
            grad_N[k] = grad_CF[c, latent_N[k]]


@_kernel
def near_threshold(
    start: int,
    stop: int,
    pre_CF: ndarray,
    grad_CF: ndarray,
    theta_F: ndarray,
    margin: float,
    near_F: ndarray,
    near_grad_F: ndarray,
) -> None:
    """Add, per latent, how many pre-activations are within ``margin`` of θ, and their gradients."""
    for c in range(pre_CF.shape[0]):
        pre_F = pre_CF[c]
        grad_F = grad_CF[c]
        for i in range(start, stop):
            inside = abs(pre_F[i] - theta_F[i]) < margin
            near_F[i] += float32(inside)
            near_grad_F[i] += grad_F[i] if inside else float32(0)


# --- the same entries by latent ---


@_kernel
def count_active(
    offset_B: ndarray, latent_N: ndarray, pre_N: ndarray, theta_F: ndarray, active_F: ndarray
) -> None:
    """How many tokens each latent is active on."""
    for k in range(offset_B[0], offset_B[-1]):
        i = latent_N[k]
        active_F[i] += pre_N[k] > theta_F[i]


@_kernel
def by_latent(
    start: int,
    stop: int,
    offset_B: ndarray,
    latent_N: ndarray,
    pre_N: ndarray,
    grad_N: ndarray,
    theta_F: ndarray,
    margin: float,
    weight: float,
    cursor_F: ndarray,
    token_M: ndarray,
    act_M: ndarray,
    grad_M: ndarray,
    near_F: ndarray,
    near_grad_F: ndarray,
) -> None:
    """Sort active entries by latent (tokens in order), ``weight`` added to their gradients.

    Entries within ``margin`` of θ are added to the sums for the threshold's gradient.
    """
    for b in range(offset_B.shape[0] - 1):
        for k in range(offset_B[b], offset_B[b + 1]):
            i = latent_N[k]
            if i < start or i >= stop:
                continue
            if pre_N[k] > theta_F[i]:
                m = cursor_F[i]
                cursor_F[i] = m + 1
                token_M[m] = b
                act_M[m] = pre_N[k]
                grad_M[m] = grad_N[k] + weight
            if abs(pre_N[k] - theta_F[i]) < margin:
                near_F[i] += float32(1)
                near_grad_F[i] += grad_N[k]


@_kernel
def _weighted_sum(
    low: int, high: int, token_M: ndarray, weight_M: ndarray, rows_BD: ndarray, sum_D: ndarray
) -> None:
    """sum_D = Σ weight · row of the token, over entries ``low:high``."""
    width = rows_BD.shape[1]
    for d in range(width):
        sum_D[d] = float32(0)
    m = low
    while m + 4 <= high:
        b0, b1, b2, b3 = token_M[m], token_M[m + 1], token_M[m + 2], token_M[m + 3]
        w0, w1, w2, w3 = weight_M[m], weight_M[m + 1], weight_M[m + 2], weight_M[m + 3]
        for d in range(width):
            sum_D[d] += (
                w0 * rows_BD[b0, d]
                + w1 * rows_BD[b1, d]
                + w2 * rows_BD[b2, d]
                + w3 * rows_BD[b3, d]
            )
        m += 4
    while m < high:
        b0, w0 = token_M[m], weight_M[m]
        for d in range(width):
            sum_D[d] += w0 * rows_BD[b0, d]
        m += 1


# --- gradients of the weights, and the update ---

RECOMPUTED, STORED, DENSE = 0, 1, 2
"""Where the update finds the gradient of a latent's two rows: it forms it again from the entries;
in the stored rows of latents that were active; or in the stored rows of all."""


@_kernel
def row_gradients(
    start: int,
    stop: int,
    x_BD: ndarray,
    error_BD: ndarray,
    first_F: ndarray,
    token_M: ndarray,
    act_M: ndarray,
    grad_M: ndarray,
    store: bool,
    grad_enc_FD: ndarray,
    grad_dec_FD: ndarray,
    grad_b_F: ndarray,
    squared_F: ndarray,
) -> None:
    """Each latent's squared gradient norm (two rows and bias), its bias gradient and, if asked, rows."""
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
            _weighted_sum(low, high, token_M, grad_M, x_BD, row_D)
            for d in range(row_D.shape[0]):
                squared += row_D[d] * row_D[d]
            row_D = grad_dec_FD[i] if store else scratch_D
            _weighted_sum(low, high, token_M, act_M, error_BD, row_D)
            for d in range(row_D.shape[0]):
                squared += row_D[d] * row_D[d]
        squared_F[i] = squared


@_kernel
def adam(
    p_N: ndarray,
    m_N: ndarray,
    v_N: ndarray,
    grad_N: ndarray,
    clip: float,
    gain1: float,
    gain2: float,
    rate: float,
    root: float,
    eps: float,
) -> None:
    """Adam on one row: gains are 1 − β, ``rate`` is lr / (1 − β₁ᵗ), ``root`` is √(1 − β₂ᵗ)."""
    keep1, keep2 = float32(1) - gain1, float32(1) - gain2
    for n in range(p_N.shape[0]):
        g = grad_N[n] * clip
        m = keep1 * m_N[n] + gain1 * g
        v = keep2 * v_N[n] + gain2 * g * g
        m_N[n], v_N[n] = m, v
        p_N[n] -= rate * m / (sqrt(v) / root + eps)


@_kernel
def _adam_without_gradient(
    p_N: ndarray,
    m_N: ndarray,
    v_N: ndarray,
    gain1: float,
    gain2: float,
    rate: float,
    root: float,
    eps: float,
) -> None:
    """Adam where the gradient is exactly zero."""
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
    x_BD: ndarray,
    error_BD: ndarray,
    first_F: ndarray,
    token_M: ndarray,
    act_M: ndarray,
    grad_M: ndarray,
    source: int,
    grad_enc_FD: ndarray,
    grad_dec_FD: ndarray,
    W_enc_FD: ndarray,
    m_enc_FD: ndarray,
    v_enc_FD: ndarray,
    W_dec_FD: ndarray,
    m_dec_FD: ndarray,
    v_dec_FD: ndarray,
    clip: float,
    gain1: float,
    gain2: float,
    rate: float,
    root: float,
    eps: float,
) -> None:
    """Adam on each latent's encoder and decoder row, the latter brought back to unit norm."""
    scratch_D = np.empty_like(x_BD[0])
    for i in range(start, stop):
        low, high = first_F[i], first_F[i + 1]
        if source == DENSE or high > low:
            row_D = scratch_D if source == RECOMPUTED else grad_enc_FD[i]
            if source == RECOMPUTED:
                _weighted_sum(low, high, token_M, grad_M, x_BD, row_D)
            adam(W_enc_FD[i], m_enc_FD[i], v_enc_FD[i], row_D, clip, gain1, gain2, rate, root, eps)
            row_D = scratch_D if source == RECOMPUTED else grad_dec_FD[i]
            if source == RECOMPUTED:
                _weighted_sum(low, high, token_M, act_M, error_BD, row_D)
            adam(W_dec_FD[i], m_dec_FD[i], v_dec_FD[i], row_D, clip, gain1, gain2, rate, root, eps)
        else:
            _adam_without_gradient(
                W_enc_FD[i], m_enc_FD[i], v_enc_FD[i], gain1, gain2, rate, root, eps
            )
            _adam_without_gradient(
                W_dec_FD[i], m_dec_FD[i], v_dec_FD[i], gain1, gain2, rate, root, eps
            )
        w_D = W_dec_FD[i]
        squared = float32(0)
        for d in range(w_D.shape[0]):
            squared += w_D[d] * w_D[d]
        scale = float32(1) / max(sqrt(squared), float32(1e-12))
        for d in range(w_D.shape[0]):
            w_D[d] *= scale
