"""The filter over a run of time steps, forward and backward: a chunk, or the whole sequence as the only chunk.

    a = p + q + eps,  b = var_t + eps [+ k·r²],  r = x_t − s,  g = a/(a + b):   p' = b·g,  s' = s + g·r

The backward sweep needs the float32 state that enters each step. It reads it from the saved states if all of them are
kept. If only every EVERY-th is kept, it runs the filter again from the last kept one, EVERY steps at a time, into a
scratch memory that the cache can hold. It recomputes the rest. With S, P the adjoints of s', p' and Γ the incoming
gradient of the gain, h = 1/(a + b), e = b·h = 1 − g:

    γ = (Γ + S·r)·h            A = (P·e + γ)·e  → p and q          B = (P·g − γ)·g  → var_t and, times r², k
    R = S·g [+ 2·k·r·B] → x_t                                      S·e [− 2·k·r·B]  → s

A program is one sequence b, one chunk and BLOCK neighbouring d. Rows are loaded STAGES − 1 steps ahead of their use
(asynchronous copies into shared memory). A step takes about 80 ns, and a row takes 500 to 800 ns from memory, so a
chain of dependent steps needs 8 to 12 stages where few programs share a multiprocessor.
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
def filter_step(x_t, var_t, s, p, noise, eps, k, ROBUST: tl.constexpr):
    """State after a step, and its gain."""
    r = x_t - s
    b_t = var_t + eps
    if ROBUST:
        b_t += k * r * r
    a_t = p + noise
    # Without propagation the minimum of NaN and 1 is 1, and an input that is not finite would be hidden.
    g = tl.minimum(divide(a_t, a_t + b_t), 1.0, propagate_nan=tl.PropagateNan.ALL)
    return s + g * r, b_t * g, g


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
    kept_s,
    kept_p,
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
    EVERY: tl.constexpr,
    HAS_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Mean, variance and gain of one chunk, from the state (B, chunks, D) that enters it.

    Without an initial state, chunk 0 starts with a copy of x_0 and var_0. Zeroes what lies beyond the length, and
    writes the final state where the sequence ends. `kept_s`, `kept_p` (B, T // EVERY, D) or None: the float32 state
    after every EVERY-th step, for the backward sweep.
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
        if kept_s is not None and EVERY == 1:
            save(kept_s, origin + d, s, there)
            save(kept_p, origin + d, p, there)
        start = tl.where(fresh, 1, first)

    for t in tl.range(start, last, num_stages=STAGES):
        x_now = row(x, b, t, x_b, x_t, d, lanes)
        var_now = row(var, b, t, var_b, var_t, d, lanes)
        s, p, g = filter_step(x_now, var_now, s, p, noise, eps, k, influence is not None)
        at = origin + tl.cast(t, tl.int64) * dim + d
        save(mean, at, s, lanes)
        save(variance, at, p, lanes)
        save(gain, at, g, lanes)
        if kept_s is not None:
            kept = (b * (steps // EVERY) + t // EVERY) * dim + d
            here = lanes_if((t + 1) % EVERY == 0, d, dim)
            save(kept_s, kept, s, here)
            save(kept_p, kept, p, here)

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
    scratch,
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
    EVERY: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of x and var of one chunk, from the adjoint (B, chunks, D) of the state that leaves it.

    Chunk 0 writes the initial state's gradient. `grad_q` and `grad_influence` (B, chunks, D) get this chunk's part of
    the sums. `mean`, `variance`: the float32 states after every EVERY-th step, (B, T // EVERY, D). With EVERY > 1 there
    is one chunk, and `scratch` (programs, 2, EVERY, BLOCK) takes the states between two kept ones.
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

    pieces = 1
    if EVERY > 1:
        pieces = tl.cdiv(last, EVERY)
        slots = scratch + tl.program_id(0).to(tl.int64) * (2 * EVERY * BLOCK) + tl.arange(0, BLOCK)
        some = lanes_if(length > 0, d, dim)
        start_s = row(x, b, 0, x_b, x_t, d, some)  # the state after step 0
        start_p = row(var, b, 0, var_b, var_t, d, some)
        if s0 is not None:
            entering_s = tl.load(s0 + b * dim + d, mask=lanes, other=0.0)
            entering_p = tl.load(p0 + b * dim + d, mask=lanes, other=0.0)
            start_s, start_p, _g = filter_step(
                start_s, start_p, entering_s, entering_p, noise, eps, k, influence is not None
            )
    for piece in tl.range(0, pieces):
        begin, stop = first, last
        if EVERY > 1:
            begin = (pieces - 1 - piece) * EVERY
            stop = tl.minimum(begin + EVERY, last)
            kept = (b * (steps // EVERY) + (pieces - 2 - piece)) * dim + d
            later = lanes_if(begin > 0, d, dim)
            s = tl.where(begin > 0, tl.load(mean + kept, mask=later, other=0.0), start_s)
            p = tl.where(begin > 0, tl.load(variance + kept, mask=later, other=0.0), start_p)
            tl.debug_barrier()  # the scratch of the piece after this one has been read
            for t in tl.range(tl.maximum(begin, 1), stop, num_stages=STAGES):
                slot = slots + (t - begin) * BLOCK
                tl.store(slot, s)
                tl.store(slot + EVERY * BLOCK, p)
                x_now = row(x, b, t, x_b, x_t, d, lanes)
                var_now = row(var, b, t, var_b, var_t, d, lanes)
                s, p, _g = filter_step(x_now, var_now, s, p, noise, eps, k, influence is not None)
            tl.debug_barrier()  # another thread may read what this one has written
        for i in tl.range(0, stop - tl.maximum(begin, 1), num_stages=STAGES):
            t = stop - 1 - i
            if EVERY > 1:
                entering_s = tl.load(slots + (t - begin) * BLOCK)
                entering_p = tl.load(slots + (t - begin + EVERY) * BLOCK)
            else:
                entering_s = row(mean, b, t - 1, row_b, dim, d, lanes)
                entering_p = row(variance, b, t - 1, row_b, dim, d, lanes)
            adjoint_s += row_or_zero(grad_mean, b, t, row_b, dim, d, lanes, zero)
            adjoint_p += row_or_zero(grad_variance, b, t, row_b, dim, d, lanes, zero)
            adjoint_s, adjoint_p, adjoint_b, adjoint_r, r = adjoint_step(
                row(x, b, t, x_b, x_t, d, lanes),
                row(var, b, t, var_b, var_t, d, lanes),
                entering_s,
                entering_p,
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
