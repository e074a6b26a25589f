"""The filter over a run of time steps, forward and backward: a chunk, or the whole sequence as the only chunk.

    a = p + q + eps,  b = var_t + eps [+ k·r²],  r = x_t − s,  g = a/(a + b):   p' = b·g,  s' = s + g·r

The backward sweep reads s and p from the saved outputs and recomputes the rest. With S, P the adjoints of s', p' and Γ
the incoming gradient of the gain, h = 1/(a + b), e = b·h = 1 − g:

    γ = (Γ + S·r)·h            A = (P·e + γ)·e  → p and q          B = (P·g − γ)·g  → var_t and, times r², k
    R = S·g [+ 2·k·r·B] → x_t                                      S·e [− 2·k·r·B]  → s

A program is one sequence b, one chunk and BLOCK neighbouring d. Rows are loaded STAGES − 1 steps ahead of their use
(asynchronous copies into shared memory), which is all that a chain of dependent steps needs to keep memory busy.
"""

from __future__ import annotations

import triton
import triton.language as tl

DIFFUSE = tl.constexpr(1e30)  # as in reference.py
# Numbers that differ from call to call: triton would compile anew for 1 and for multiples of 16.
COUNTS = ("batch", "chunks", "chunk", "steps")


@triton.jit
def place(chunks, dim, BLOCK: tl.constexpr):
    """Sequence b (int64), chunk c and features d of this program."""
    blocks = tl.cdiv(dim, BLOCK)
    task = tl.program_id(0)
    d = task % blocks * BLOCK + tl.arange(0, BLOCK)
    return tl.cast(task // blocks // chunks, tl.int64), task // blocks % chunks, d


@triton.jit
def length_of(lengths, b, steps):
    """Valid steps of sequence b, within 0..T; all of them without `lengths`."""
    length = tl.cast(steps, tl.int32)
    if lengths is not None:
        length = tl.cast(tl.minimum(tl.maximum(tl.cast(tl.load(lengths + b), tl.int64), 0), steps), tl.int32)
    return length


@triton.jit
def lanes_if(condition, d, dim):
    """Mask of the features there are, none of them unless the (scalar) condition holds."""
    return d < tl.where(condition, dim, 0)


@triton.jit
def row(tensor, b, t, stride_b, stride_t, d, mask):
    """x[b, t, d] as float32; zero where masked."""
    at = b * stride_b + tl.cast(t, tl.int64) * stride_t
    return tl.load(tensor + at + d, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def row_or_zero(tensor, b, t, stride_b, stride_t, d, mask, zero):
    """The same of an optional tensor."""
    value = zero
    if tensor is not None:
        value = row(tensor, b, t, stride_b, stride_t, d, mask)
    return value


@triton.jit
def divide(n, d):
    """n/d to about half a unit in the last place, as div_rn but without its branches, which lanes would queue for.

    Without process noise nothing is forgotten quickly, and errors of one sign in the gain would add up over time.
    """
    inverse = 1.0 / d
    quotient = n * inverse
    return tl.fma(tl.fma(-quotient, d, n), inverse, quotient)


@triton.jit
def save(tensor, at, value, mask):
    """Store a value in the tensor's dtype."""
    tl.store(tensor + at, value.to(tensor.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def forward_sweep(
    x,
    var,
    lengths,
    q,
    influence,
    s_in,
    p_in,
    mean,
    variance,
    gain,
    mean_wide,
    variance_wide,
    s_out,
    p_out,
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
    """Mean, variance and gain of one chunk, from the state (B, chunks, D) that enters it.

    Without an initial state, chunk 0 starts with a copy of x_0 and var_0. Zeroes what lies beyond the length, and
    writes the final state where the sequence ends. `mean_wide`, `variance_wide`: float32 copies for the backward sweep.
    """
    b, c, d = place(chunks, dim, BLOCK)
    lanes = d < dim
    length = length_of(lengths, b, steps)
    first = c * chunk
    last, end = tl.minimum(first + chunk, length), tl.minimum(first + chunk, steps)
    origin = b * steps * dim
    noise = tl.load(q + d * q_d, mask=lanes, other=0.0) + eps
    k = 0.0
    if influence is not None:
        k = tl.load(influence)

    s = tl.zeros([BLOCK], tl.float32)
    p = tl.zeros([BLOCK], tl.float32)
    start = first
    if s_in is not None:
        entering = lanes
        if not HAS_STATE:
            entering = lanes_if(c > 0, d, dim)
        at = (b * chunks + c) * dim + d
        s = tl.load(s_in + at, mask=entering, other=0.0)
        p = tl.load(p_in + at, mask=entering, other=0.0)
    if not HAS_STATE:
        fresh = c == 0
        there = lanes_if(fresh & (length > 0), d, dim)
        s = tl.where(fresh, row(x, b, 0, x_b, x_t, d, there), s)
        p = tl.where(fresh, row(var, b, 0, var_b, var_t, d, there), p)
        p = tl.where(fresh & (length == 0), DIFFUSE, p)
        save(mean, origin + d, s, there)
        save(variance, origin + d, p, there)
        save(gain, origin + d, tl.full([BLOCK], 1.0, tl.float32), there)
        if mean_wide is not None:
            save(mean_wide, origin + d, s, there)
            save(variance_wide, origin + d, p, there)
        start = tl.where(fresh, 1, first)

    for t in tl.range(start, last, num_stages=STAGES):
        r = row(x, b, t, x_b, x_t, d, lanes) - s
        b_t = row(var, b, t, var_b, var_t, d, lanes) + eps
        if influence is not None:
            b_t += k * r * r
        a_t = p + noise
        g = tl.minimum(divide(a_t, a_t + b_t), 1.0)
        p = b_t * g
        s += g * r
        at = origin + tl.cast(t, tl.int64) * dim + d
        save(mean, at, s, lanes)
        save(variance, at, p, lanes)
        save(gain, at, g, lanes)
        if mean_wide is not None:
            save(mean_wide, at, s, lanes)
            save(variance_wide, at, p, lanes)

    zero = tl.zeros([BLOCK], tl.float32)
    for t in tl.range(tl.maximum(first, last), end):
        at = origin + tl.cast(t, tl.int64) * dim + d
        save(mean, at, zero, lanes)
        save(variance, at, zero, lanes)
        save(gain, at, zero, lanes)
    ends = ((first < length) & (length <= first + chunk)) | ((c == 0) & (length == 0))
    ending = lanes_if(ends, d, dim)
    tl.store(s_out + b * dim + d, s, mask=ending)
    tl.store(p_out + b * dim + d, p, mask=ending)


@triton.jit
def adjoint_step(x_t, var_t, s, p, adjoint_s, adjoint_p, grad_gain, noise, eps, k, ROBUST: tl.constexpr):
    """One step back: the gradients of s, p, var_t and x_t, and the residual."""
    r = x_t - s
    a_t = p + noise
    b_t = var_t + eps
    if ROBUST:
        b_t += k * r * r
    h = 1.0 / (a_t + b_t)
    g, e = a_t * h, b_t * h
    slope = (grad_gain + adjoint_s * r) * h
    adjoint_a = (adjoint_p * e + slope) * e
    adjoint_b = (adjoint_p * g - slope) * g
    grad_x, adjoint_s = adjoint_s * g, adjoint_s * e
    if ROBUST:
        pull = 2.0 * k * r * adjoint_b
        grad_x, adjoint_s = grad_x + pull, adjoint_s - pull
    return adjoint_s, adjoint_a, adjoint_b, grad_x, r


@triton.jit
def add(total, lost, value):
    """Kahan's sum: `lost` is what rounding took from `total`; thousands of steps add up like a few."""
    value -= lost
    after = total + value
    return after, (after - total) - value


@triton.jit(do_not_specialize=COUNTS)
def backward_sweep(
    grad_mean,
    grad_variance,
    grad_gain,
    grad_s_leaving,
    grad_p_leaving,
    mean,
    variance,
    x,
    var,
    lengths,
    q,
    influence,
    s0,
    p0,
    grad_x,
    grad_var,
    grad_s0,
    grad_p0,
    grad_q,
    grad_influence,
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
    """Gradients of x and var of one chunk, from the adjoint (B, chunks, D) of the state that leaves it.

    Chunk 0 writes the initial state's gradient. `grad_q` and `grad_influence` (B, chunks, D) get this chunk's part of
    the sums.
    """
    b, c, d = place(chunks, dim, BLOCK)
    lanes = d < dim
    length = length_of(lengths, b, steps)
    first = c * chunk
    last, end = tl.minimum(first + chunk, length), tl.minimum(first + chunk, steps)
    row_b = tl.cast(steps, tl.int64) * dim
    origin = b * row_b
    noise = tl.load(q + d * q_d, mask=lanes, other=0.0) + eps
    k = 0.0
    if influence is not None:
        k = tl.load(influence)

    zero = tl.zeros([BLOCK], tl.float32)
    share = (b * chunks + c) * dim + d
    adjoint_s, adjoint_p = zero, zero
    if grad_s_leaving is not None:
        adjoint_s = tl.load(grad_s_leaving + share, mask=lanes, other=0.0)
    if grad_p_leaving is not None:
        adjoint_p = tl.load(grad_p_leaving + share, mask=lanes, other=0.0)
    q_sum, q_lost, k_sum, k_lost = zero, zero, zero, zero

    low = tl.maximum(first, 1)
    for i in tl.range(0, last - low, num_stages=STAGES):
        t = last - 1 - i
        adjoint_s += row_or_zero(grad_mean, b, t, row_b, dim, d, lanes, zero)
        adjoint_p += row_or_zero(grad_variance, b, t, row_b, dim, d, lanes, zero)
        adjoint_s, adjoint_p, adjoint_b, adjoint_r, r = adjoint_step(
            row(x, b, t, x_b, x_t, d, lanes),
            row(var, b, t, var_b, var_t, d, lanes),
            row(mean, b, t - 1, row_b, dim, d, lanes),
            row(variance, b, t - 1, row_b, dim, d, lanes),
            adjoint_s,
            adjoint_p,
            row_or_zero(grad_gain, b, t, row_b, dim, d, lanes, zero),
            noise,
            eps,
            k,
            influence is not None,
        )
        at = origin + tl.cast(t, tl.int64) * dim + d
        save(grad_x, at, adjoint_r, lanes)
        save(grad_var, at, adjoint_b, lanes)
        q_sum, q_lost = add(q_sum, q_lost, adjoint_p)
        if influence is not None:
            k_sum, k_lost = add(k_sum, k_lost, adjoint_b * r * r)

    there = lanes_if((c == 0) & (length > 0), d, dim)
    state_s = adjoint_s + row_or_zero(grad_mean, b, 0, row_b, dim, d, there, zero)
    state_p = adjoint_p + row_or_zero(grad_variance, b, 0, row_b, dim, d, there, zero)
    if s0 is not None:
        initial = b * dim + d
        state_s, state_p, adjoint_b, adjoint_r, r = adjoint_step(
            row(x, b, 0, x_b, x_t, d, there),
            row(var, b, 0, var_b, var_t, d, there),
            tl.load(s0 + initial, mask=there, other=0.0),
            tl.load(p0 + initial, mask=there, other=0.0),
            state_s,
            state_p,
            row_or_zero(grad_gain, b, 0, row_b, dim, d, there, zero),
            noise,
            eps,
            k,
            influence is not None,
        )
        save(grad_x, origin + d, adjoint_r, there)
        save(grad_var, origin + d, adjoint_b, there)
        q_sum, q_lost = add(q_sum, q_lost, tl.where(there, state_p, 0.0))
        if influence is not None:
            k_sum, k_lost = add(k_sum, k_lost, tl.where(there, adjoint_b * r * r, 0.0))
        tl.store(grad_s0 + initial, tl.where(there, state_s, adjoint_s), mask=lanes_if(c == 0, d, dim))
        tl.store(grad_p0 + initial, tl.where(there, state_p, adjoint_p), mask=lanes_if(c == 0, d, dim))
    else:  # the first step is a copy
        save(grad_x, origin + d, state_s, there)
        save(grad_var, origin + d, state_p, there)

    for t in tl.range(tl.maximum(first, last), end):
        at = origin + tl.cast(t, tl.int64) * dim + d
        save(grad_x, at, zero, lanes)
        save(grad_var, at, zero, lanes)
    tl.store(grad_q + share, q_sum, mask=lanes)
    if influence is not None:
        tl.store(grad_influence + share, k_sum, mask=lanes)
