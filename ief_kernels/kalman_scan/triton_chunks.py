"""What a chunk of time does to the state that enters it, and the state that enters each chunk.

Three passes: (1) every chunk is summarised, all at once; (2) a short loop over chunks carries the state through the
summaries; (3) the sweeps of `triton_kernels` run every chunk from the state that enters it. Passes 1 and 3 read the
inputs.

Forward. A step is a Möbius map of p (p' = b(p + c)/(p + c + b), c = q + eps) and linear in s. Its 2×2 matrix is kept as
three bounded numbers that need no normalisation: u and w, the variances that entering with p = ∞ and with p = 0 leads
to, and ρ, the quotient of the matrix's lower row. A chunk therefore runs two filters side by side, one that knows
nothing of the past (s_u, u) and one that knows it for certain (α·s + β, w); entering with (s, p) leads to a mixture of
the two, the same for both moments:

    f = ρp/(1 + ρp)       p' = f·u + (1 − f)·w       s' = f·s_u + (1 − f)·(α·s + β)

(ρ is the precision with which the chunk measures the state that enters it.) Everything but x is positive and nothing is
subtracted but residuals, so float32 loses a few units in the last place a chunk.

Backward. With S, P the adjoints of the state that leaves the chunk, the step of `triton_kernels` is linear:

    S ← e·(S + grad_mean_t)       P ← e²·(P + grad_variance_t) + e·h·(Γ_t + (S + grad_mean_t)·r_t)

so a chunk maps (S, P) to (E·S + F, E²·P + H·S + J), E = Πe.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import COUNTS, divide, lanes_if, length_of, place, row, row_or_zero

LARGEST = tl.constexpr(1e30)  # of ρp; beyond it f is 1


@triton.jit(do_not_specialize=COUNTS)
def forward_summary(
    x,
    var,
    lengths,
    q,
    summary,
    batch,
    chunks,
    chunk,
    steps,
    dim,
    x_b,
    x_t,
    var_b,
    var_t,
    q_d,
    eps,
    HAS_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """u, s_u, w, α, β, ρ of every chunk but the last, into `summary` (6, B, chunks − 1, D)."""
    b, c, d = place(chunks - 1, dim, BLOCK)
    lanes = d < dim
    length = length_of(lengths, b, steps)
    first = c * chunk
    last = tl.minimum(first + chunk, length)
    noise = tl.load(q + d * q_d, mask=lanes, other=0.0) + eps

    there = lanes_if(first < length, d, dim)
    s_u = row(x, b, first, x_b, x_t, d, there)
    u = row(var, b, first, var_b, var_t, d, there)
    b_t = u + eps
    copied = c == 0
    if HAS_STATE:
        copied = c < 0
    u = tl.where(copied, u, b_t)  # without a state the first step copies var_0, without eps
    rho = divide(1.0, noise + b_t)
    g = noise * rho
    alpha, w, beta = b_t * rho, b_t * g, g * s_u
    for t in tl.range(first + 1, last, num_stages=STAGES):
        x_now = row(x, b, t, x_b, x_t, d, lanes)
        b_t = row(var, b, t, var_b, var_t, d, lanes) + eps
        a_u, a_w = u + noise, w + noise
        sum_u, h_w = a_u + b_t, divide(1.0, a_w + b_t)
        g_u, g_w = divide(a_u, sum_u), a_w * h_w
        u, w = b_t * g_u, b_t * g_w
        s_u += g_u * (x_now - s_u)
        beta += g_w * (x_now - beta)
        alpha *= b_t * h_w
        rho *= sum_u * h_w

    plane = tl.cast(batch, tl.int64) * (chunks - 1) * dim
    at = summary + (b * (chunks - 1) + c) * dim + d
    tl.store(at, u, mask=lanes)
    tl.store(at + plane, s_u, mask=lanes)
    tl.store(at + 2 * plane, w, mask=lanes)
    tl.store(at + 3 * plane, alpha, mask=lanes)
    tl.store(at + 4 * plane, beta, mask=lanes)
    tl.store(at + 5 * plane, rho, mask=lanes)


@triton.jit(do_not_specialize=COUNTS)
def forward_carry(
    summary,
    lengths,
    s0,
    p0,
    s_in,
    p_in,
    batch,
    chunks,
    chunk,
    steps,
    dim,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The state that enters each chunk, (B, chunks, D); unwritten for chunk 0 without an initial state."""
    b, _, d = place(1, dim, BLOCK)
    lanes = d < dim
    count = tl.cdiv(length_of(lengths, b, steps), chunk)
    plane = tl.cast(batch, tl.int64) * (chunks - 1) * dim
    s = tl.zeros([BLOCK], tl.float32)
    p = tl.zeros([BLOCK], tl.float32)
    if s0 is not None:
        s = tl.load(s0 + b * dim + d, mask=lanes, other=0.0)
        p = tl.load(p0 + b * dim + d, mask=lanes, other=0.0)
        tl.store(s_in + b * chunks * dim + d, s, mask=lanes)
        tl.store(p_in + b * chunks * dim + d, p, mask=lanes)
    for c in tl.range(0, count - 1, num_stages=STAGES):
        at = summary + (b * (chunks - 1) + c) * dim + d
        u = tl.load(at, mask=lanes, other=0.0)
        s_u = tl.load(at + plane, mask=lanes, other=0.0)
        w = tl.load(at + 2 * plane, mask=lanes, other=0.0)
        alpha = tl.load(at + 3 * plane, mask=lanes, other=0.0)
        beta = tl.load(at + 4 * plane, mask=lanes, other=0.0)
        rho = tl.load(at + 5 * plane, mask=lanes, other=0.0)
        z = rho * p
        z = tl.where(z > LARGEST, LARGEST + 0.0 * p, z)  # keeps NaN, and 0·∞ is NaN
        known = divide(1.0, 1.0 + z)
        unknown = z * known
        if s0 is None:
            known = tl.where(c == 0, 0.0, known)
            unknown = tl.where(c == 0, 1.0, unknown)
        p = unknown * u + known * w
        s = unknown * s_u + known * (alpha * s + beta)
        to = (b * chunks + c + 1) * dim + d
        tl.store(s_in + to, s, mask=lanes)
        tl.store(p_in + to, p, mask=lanes)


@triton.jit(do_not_specialize=COUNTS)
def backward_summary(
    grad_mean,
    grad_variance,
    grad_gain,
    mean,
    variance,
    x,
    var,
    lengths,
    q,
    summary,
    batch,
    chunks,
    chunk,
    steps,
    dim,
    x_b,
    x_t,
    var_b,
    var_t,
    q_d,
    eps,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """E, F, H, J of every chunk but the first, into `summary` (4, B, chunks − 1, D)."""
    b, c, d = place(chunks - 1, dim, BLOCK)
    lanes = d < dim
    length = length_of(lengths, b, steps)
    first = (c + 1) * chunk
    last = tl.minimum(first + chunk, length)
    row_b = tl.cast(steps, tl.int64) * dim
    noise = tl.load(q + d * q_d, mask=lanes, other=0.0) + eps
    zero = tl.zeros([BLOCK], tl.float32)
    through, from_s, adjoint_s, adjoint_p = zero + 1.0, zero, zero, zero  # E, H, F, J
    for i in tl.range(0, last - first, num_stages=STAGES):
        t = last - 1 - i
        b_t = row(var, b, t, var_b, var_t, d, lanes) + eps
        r = row(x, b, t, x_b, x_t, d, lanes) - row(mean, b, t - 1, row_b, dim, d, lanes)
        h = 1.0 / (row(variance, b, t - 1, row_b, dim, d, lanes) + noise + b_t)
        e = b_t * h
        adjoint_s += row_or_zero(grad_mean, b, t, row_b, dim, d, lanes, zero)
        adjoint_p += row_or_zero(grad_variance, b, t, row_b, dim, d, lanes, zero)
        gain = row_or_zero(grad_gain, b, t, row_b, dim, d, lanes, zero)
        adjoint_p = e * (e * adjoint_p + h * (gain + adjoint_s * r))
        from_s = e * (e * from_s + h * (r * through))
        adjoint_s, through = e * adjoint_s, e * through

    plane = tl.cast(batch, tl.int64) * (chunks - 1) * dim
    at = summary + (b * (chunks - 1) + c) * dim + d
    tl.store(at, through, mask=lanes)
    tl.store(at + plane, adjoint_s, mask=lanes)
    tl.store(at + 2 * plane, from_s, mask=lanes)
    tl.store(at + 3 * plane, adjoint_p, mask=lanes)


@triton.jit(do_not_specialize=COUNTS)
def backward_carry(
    summary,
    lengths,
    grad_s,
    grad_p,
    grad_s_leaving,
    grad_p_leaving,
    batch,
    chunks,
    chunk,
    steps,
    dim,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The adjoint of the state that leaves each chunk, (B, chunks, D); unwritten beyond the sequence's end."""
    b, _, d = place(1, dim, BLOCK)
    lanes = d < dim
    count = tl.maximum(tl.cdiv(length_of(lengths, b, steps), chunk), 1)
    plane = tl.cast(batch, tl.int64) * (chunks - 1) * dim
    zero = tl.zeros([BLOCK], tl.float32)
    adjoint_s, adjoint_p = zero, zero
    if grad_s is not None:
        adjoint_s = tl.load(grad_s + b * dim + d, mask=lanes, other=0.0)
    if grad_p is not None:
        adjoint_p = tl.load(grad_p + b * dim + d, mask=lanes, other=0.0)
    for i in tl.range(0, count - 1, num_stages=STAGES):
        c = count - 1 - i
        to = (b * chunks + c) * dim + d
        tl.store(grad_s_leaving + to, adjoint_s, mask=lanes)
        tl.store(grad_p_leaving + to, adjoint_p, mask=lanes)
        at = summary + (b * (chunks - 1) + c - 1) * dim + d
        through = tl.load(at, mask=lanes, other=0.0)
        own_s = tl.load(at + plane, mask=lanes, other=0.0)
        from_s = tl.load(at + 2 * plane, mask=lanes, other=0.0)
        own_p = tl.load(at + 3 * plane, mask=lanes, other=0.0)
        adjoint_p = through * through * adjoint_p + from_s * adjoint_s + own_p
        adjoint_s = through * adjoint_s + own_s
    tl.store(grad_s_leaving + b * chunks * dim + d, adjoint_s, mask=lanes)
    tl.store(grad_p_leaving + b * chunks * dim + d, adjoint_p, mask=lanes)
