"""Triton kernels of fusion and its loss terms; formulas and saturation as in `reference.py`, arithmetic in float32.

With u = c·exp(logvar), a = u + eps, s = a_i + a_e:  w_i = a_e/s, w_e = a_i/s, mean = w_i·mu_i + w_e·mu_e,
var = a_i·a_e/s. Weights come from both variances divided by exp(shift), var and KL from logvar cut at 80, so that
nothing overflows.

Gradient: with G = grad_mean·(mu_i − mu_e) + grad_wi − grad_we and h = 1/s
  d mean/d mu_m = w_m
  logvar_i: −G·w_i·u_i·h + grad_var·w_i²·u_i        logvar_e: +G·w_e·u_e·h + grad_var·w_e²·u_e
KL over n valid rows: d/d mu = mu/(n·dim), d/d logvar = −(1 − u)/(2·n·dim); c like logvar, divided by c.
cosine, with unit vectors e_m = mu_m/N_m: d cos/d mu_i = (e_e − cos·e_i)/N_i;  norm: d |N_i − N_e|/d mu_i = ±e_i.

A tile is ROWS rows of COLUMNS columns; a program takes every `programs`-th tile. Padding is never read. Sums over rows
go through one partial sum per program. The program that finishes last adds them in a fixed order (`_is_last`). FLAT
takes the tensors as one row cut into lines of COLUMNS: element-wise work, any D.

A factor c is a number where its stride c_d is None. Else it is a tensor of one element, or (PER_DIM) one that is read
with the stride 0 or 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

LIMIT = tl.constexpr(80.0)  # where exp(logvar) stops growing, as reference.LOGVAR_LIMIT
HALF_MAX = tl.constexpr(65504.0)
LOG2_E = tl.constexpr(1.4426950216293335)  # as a float32, and what that leaves out
LOG2_E_REST = tl.constexpr(1.9259629911266175e-8)
# Numbers that differ from call to call: triton would compile anew for 1 and for multiples of 16. `size` keeps that: it
# is a multiple of 16 where D is, and then the flat path loads vectors.
COUNTS = ("rows", "steps", "tiles", "programs", "batch")
FINISH = tl.constexpr(512)  # partial sums that the last program adds at once


@triton.jit
def _exp(x, PRECISE: tl.constexpr):
    """exp(x); without PRECISE the rounding of x·log2(e) costs up to 4 bits at |x| = 80, which half precision hides."""
    if PRECISE:
        # Below −150 the result is 0 anyway, and the remainder would be inf − inf for a huge x; NaN stays NaN.
        x = tl.where(x < -150.0, -150.0, x)
        high = x * LOG2_E
        low = tl.fma(x, LOG2_E, -high) + x * LOG2_E_REST
        power = tl.exp2(high)
        return tl.fma(power, low * 0.6931471805599453, power)
    else:
        return tl.exp2(x * LOG2_E)


@triton.jit
def _weigh(lv_i, lv_e, c_i, c_e, eps, PRECISE: tl.constexpr):
    """Weights, variance, and what their gradients need: slopes of the weights, slopes of var, variances without eps."""
    cut_i = tl.where(lv_i > LIMIT, LIMIT, lv_i)
    cut_e = tl.where(lv_e > LIMIT, LIMIT, lv_e)
    u_i = c_i * _exp(cut_i, PRECISE)
    u_e = c_e * _exp(cut_e, PRECISE)
    a_i = u_i + eps
    a_e = u_e + eps
    h = 1.0 / (a_i + a_e)
    v_i = a_e * h
    v_e = a_i * h
    first = a_i < a_e
    var = tl.where(first, a_i, a_e) * tl.where(first, v_i, v_e)
    # The weights: both variances divided by exp(shift), shift = what the larger logvar has above the limit. That
    # leaves the larger one cut at the limit, and the smaller one times exp of what they were cut by unequally.
    lead = (lv_i - cut_i) - (lv_e - cut_e)
    fall = tl.exp2(tl.abs(lead) * -LOG2_E) + 0.0 * lead  # NaN where a logvar is +∞, as 0·∞ is
    p_i = tl.where(lead < 0, u_i * fall, u_i)
    p_e = tl.where(lead > 0, u_e * fall, u_e)
    h = 1.0 / ((p_i + eps) + (p_e + eps))
    w_i = (p_e + eps) * h
    w_e = (p_i + eps) * h
    return w_i, w_e, var, w_i * (p_i * h), w_e * (p_e * h), (u_i * v_i) * v_i, (u_e * v_e) * v_e, u_i, u_e


@triton.jit
def _valid_rows(row, rows, steps, lengths):
    valid = row < rows
    if lengths is not None:
        length = tl.load(lengths + row // steps, mask=valid, other=0)
        valid = valid & (row % steps < length)
    return valid


@triton.jit
def _masks(row, column, valid, rows, dim, size, FLAT: tl.constexpr, EVEN: tl.constexpr):
    """Which elements of a tile there are, and which are not padding. EVEN: no tile reaches beyond the last column."""
    if FLAT:
        inside = column[None, :] < (size - row.to(tl.int64) * dim)[:, None]
        return inside, inside
    elif EVEN:
        shape: tl.constexpr = (row.shape[0], column.shape[0])
        return tl.broadcast_to((row < rows)[:, None], shape), tl.broadcast_to(valid[:, None], shape)
    else:
        there = (column < dim)[None, :]
        return (row < rows)[:, None] & there, valid[:, None] & there


@triton.jit
def _count_valid(lengths, batch, rows, steps, BLOCK: tl.constexpr):
    """Number of valid rows, as a float32."""
    if lengths is None:
        return rows * 1.0
    else:
        total = tl.zeros((BLOCK,), tl.int64)
        for start in range(0, batch, BLOCK):
            at = start + tl.arange(0, BLOCK)
            length = tl.load(lengths + at, mask=at < batch, other=0).to(tl.int64)
            length = tl.where(length < 0, 0, length)
            total += tl.where(length > steps, steps, length)
        return tl.sum(total, axis=0).to(tl.float32)


@triton.jit
def _factor(c, c_d, column, dim, PER_DIM: tl.constexpr):
    """The factor of these columns, as something that broadcasts with a tile."""
    if c_d is None:
        value = c
    else:
        value = tl.load(c + column * c_d, mask=column < dim, other=1)[None, :] if PER_DIM else tl.load(c)
    return value


@triton.jit
def _mean_log(c, c_d, dim, PER_DIM: tl.constexpr, BLOCK: tl.constexpr):
    if c_d is None:
        value = tl.sum(tl.log(tl.full((1,), c, tl.float32)), axis=0)
    elif PER_DIM:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, dim, BLOCK):
            at = start + tl.arange(0, BLOCK)
            total += tl.log(tl.load(c + at * c_d, mask=at < dim, other=1))
        value = tl.sum(total, axis=0) / dim
    else:
        value = tl.log(tl.load(c))
    return value


@triton.jit
def _is_last(counter, programs):
    """Whether all other programs have come here before. If so, what they stored before is visible to this one.

    The barrier puts the stores of all threads before the one that counts. The counter is an acquire and a release.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()
    return last


@triton.jit
def _finish_terms(
    partial, lengths, c_img, c_evt, c_img_d, c_evt_d, terms, programs, batch, rows, steps, dim,
    PER_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The four terms from all partial sums: means over valid rows, zero if there is none."""
    total = tl.zeros((4, BLOCK), tl.float32)
    term = tl.arange(0, 4)
    for start in range(0, programs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        place = partial + term[:, None] * programs + at[None, :]
        total += tl.load(place, mask=(at < programs)[None, :], other=0, cache_modifier=".cg")  # not an old line of L1
    count = _count_valid(lengths, batch, rows, steps, BLOCK)
    some = count > 0
    # rows/count first: a partial may be near the largest float32 only where both are alike
    result = tl.sum(total, axis=1) * tl.where(some, rows / tl.where(some, count, 1.0), 0.0)
    log_i = _mean_log(c_img, c_img_d, dim, PER_DIM, BLOCK)
    log_e = _mean_log(c_evt, c_evt_d, dim, PER_DIM, BLOCK)
    kl = -0.5 * (1.0 + tl.where(term == 0, log_i, log_e) + result)
    tl.store(terms + term, tl.where(some, tl.where(term < 2, kl, result), 0.0))


@triton.jit(do_not_specialize=COUNTS)
def fusion_forward(
    mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt, lengths,
    mean, var, w_img, w_evt, partial, terms, counter,
    rows, dim, size, steps, tiles, batch, stride_mi, stride_li, stride_me, stride_le, c_img_d, c_evt_d,
    eps, inv_rows, inv_dim,
    PER_DIM: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """mean, var, w_img, w_evt (if not None) and the four terms (if not None).

    One pass: every element of the four tensors is read once. partial (4, programs), wanted with terms:
    Σ(logvar − mu² − u)/dim for both modalities, Σ(1 − cos), Σ|N_i − N_e|, all divided by `rows` so that they cannot
    overflow.
    """
    precise: tl.constexpr = mu_img.dtype.element_ty == tl.float32
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    if terms is not None:
        sum_kl_i = tl.zeros((ROWS,), tl.float32)
        sum_kl_e = tl.zeros((ROWS,), tl.float32)
        sum_cosine = tl.zeros((ROWS,), tl.float32)
        sum_gap = tl.zeros((ROWS,), tl.float32)
    for tile in range(pid.to(tl.int64) if WIDE else pid, tiles, programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        valid = _valid_rows(row, rows, steps, lengths)
        wide_row = row.to(tl.int64)
        if terms is not None:
            kl_i = tl.zeros((ROWS, COLUMNS), tl.float32)
            kl_e = tl.zeros((ROWS, COLUMNS), tl.float32)
            square_i = tl.zeros((ROWS, COLUMNS), tl.float32)
            square_e = tl.zeros((ROWS, COLUMNS), tl.float32)
            dot = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, dim, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside, read = _masks(row, column, valid, rows, dim, size, FLAT, EVEN)
            at_mi = (wide_row * stride_mi)[:, None] + column[None, :]
            at_li = (wide_row * stride_li)[:, None] + column[None, :]
            at_me = (wide_row * stride_me)[:, None] + column[None, :]
            at_le = (wide_row * stride_le)[:, None] + column[None, :]
            m_i = tl.load(mu_img + at_mi, mask=read, other=0).to(tl.float32)
            l_i = tl.load(logvar_img + at_li, mask=read, other=0).to(tl.float32)
            m_e = tl.load(mu_evt + at_me, mask=read, other=0).to(tl.float32)
            l_e = tl.load(logvar_evt + at_le, mask=read, other=0).to(tl.float32)
            c_i = _factor(c_img, c_img_d, column, dim, PER_DIM)
            c_e = _factor(c_evt, c_evt_d, column, dim, PER_DIM)
            w_i, w_e, fused, _s_i, _s_e, _v_i, _v_e, u_i, u_e = _weigh(l_i, l_e, c_i, c_e, eps, precise)
            if mean is not None:
                at = (wide_row * dim)[:, None] + column[None, :]
                if var.dtype.element_ty == tl.float16:
                    fused = tl.where(fused > HALF_MAX, HALF_MAX, fused)
                if lengths is not None:
                    fused = tl.where(read, fused, 0)
                    w_i = tl.where(read, w_i, 0)
                    w_e = tl.where(read, w_e, 0)
                tl.store(mean + at, w_i * m_i + w_e * m_e, mask=inside)
                tl.store(var + at, fused, mask=inside)
                tl.store(w_img + at, w_i, mask=inside)
                tl.store(w_evt + at, w_e, mask=inside)
            if terms is not None:
                if not EVEN:  # beyond the last column mu and logvar are 0, but u is not
                    u_i = tl.where(read, u_i, 0)
                    u_e = tl.where(read, u_e, 0)
                kl_i += ((l_i - u_i) - m_i * m_i) * inv_dim
                kl_e += ((l_e - u_e) - m_e * m_e) * inv_dim
                square_i += m_i * m_i
                square_e += m_e * m_e
                dot += m_i * m_e
        if terms is not None:
            norm_i = tl.sqrt_rn(tl.sum(square_i, axis=1))
            norm_e = tl.sqrt_rn(tl.sum(square_e, axis=1))
            product = tl.sum(dot, axis=1)
            alive = (norm_i != 0) & (norm_e != 0)  # NaN is alive: it has to come out
            cosine = tl.where(alive, product / tl.where(alive, norm_i, 1) / tl.where(alive, norm_e, 1), 0)
            sum_kl_i += tl.where(valid, tl.sum(kl_i, axis=1) * inv_rows, 0)
            sum_kl_e += tl.where(valid, tl.sum(kl_e, axis=1) * inv_rows, 0)
            sum_cosine += tl.where(valid, (1 - cosine) * inv_rows, 0)
            sum_gap += tl.where(valid, tl.abs(norm_i - norm_e) * inv_rows, 0)
    if terms is not None:
        tl.store(partial + pid, tl.sum(sum_kl_i, axis=0))
        tl.store(partial + programs + pid, tl.sum(sum_kl_e, axis=0))
        tl.store(partial + 2 * programs + pid, tl.sum(sum_cosine, axis=0))
        tl.store(partial + 3 * programs + pid, tl.sum(sum_gap, axis=0))
        if _is_last(counter, programs):
            _finish_terms(
                partial, lengths, c_img, c_evt, c_img_d, c_evt_d, terms, programs, batch, rows, steps, dim,
                PER_DIM, FINISH,
            )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def fusion_row_sums(
    mu_img, mu_evt, lengths, sums, rows, dim, steps, stride_mi, stride_me,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Σ mu_i², Σ mu_e², Σ mu_i·mu_e of each row, (rows, 3), for rows too long for `fusion_backward`'s registers."""
    pid = tl.program_id(0)
    tile = pid.to(tl.int64) if WIDE else pid
    row = tile * ROWS + tl.arange(0, ROWS)
    valid = _valid_rows(row, rows, steps, lengths)
    wide_row = row.to(tl.int64)
    square_i = tl.zeros((ROWS, COLUMNS), tl.float32)
    square_e = tl.zeros((ROWS, COLUMNS), tl.float32)
    dot = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        read = valid[:, None] & (column < dim)[None, :]
        m_i = tl.load(mu_img + (wide_row * stride_mi)[:, None] + column[None, :], mask=read, other=0).to(tl.float32)
        m_e = tl.load(mu_evt + (wide_row * stride_me)[:, None] + column[None, :], mask=read, other=0).to(tl.float32)
        square_i += m_i * m_i
        square_e += m_e * m_e
        dot += m_i * m_e
    there = row < rows
    tl.store(sums + 3 * wide_row, tl.sum(square_i, axis=1), mask=there)
    tl.store(sums + 3 * wide_row + 1, tl.sum(square_e, axis=1), mask=there)
    tl.store(sums + 3 * wide_row + 2, tl.sum(dot, axis=1), mask=there)


@triton.jit
def _finish_factors(partial, count, c_img, c_evt, c_img_d, c_evt_d, grad_c_img, grad_c_evt, BLOCK: tl.constexpr):
    """The gradients of two factors that are one number each, from `count` partial sums of each."""
    total = tl.zeros((2, BLOCK), tl.float32)
    which = tl.arange(0, 2)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        place = partial + which[:, None] * count + at[None, :]
        total += tl.load(place, mask=(at < count)[None, :], other=0, cache_modifier=".cg")
    result = tl.sum(total, axis=1)
    unused = tl.zeros((1,), tl.int32)
    tl.store(grad_c_img, tl.sum(tl.where(which == 0, result, 0), axis=0) / _factor(c_img, c_img_d, unused, 1, False))
    tl.store(grad_c_evt, tl.sum(tl.where(which == 1, result, 0), axis=0) / _factor(c_evt, c_evt_d, unused, 1, False))


@triton.jit(do_not_specialize=COUNTS)
def fusion_factors(
    partial, c_img, c_evt, grad_c_img, grad_c_evt, programs, dim, c_img_d, c_evt_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients (dim,) of both factors from `fusion_backward`'s partial sums (2, programs, dim)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < dim
    sum_i = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_e = tl.zeros((ROWS, COLUMNS), tl.float32)
    plane = programs.to(tl.int64) * dim
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        at = partial + row.to(tl.int64)[:, None] * dim + column[None, :]
        mask = (row < programs)[:, None] & there[None, :]
        sum_i += tl.load(at, mask=mask, other=0)
        sum_e += tl.load(at + plane, mask=mask, other=0)
    c_i = _factor(c_img, c_img_d, column, dim, True)
    c_e = _factor(c_evt, c_evt_d, column, dim, True)
    tl.store(grad_c_img + column, tl.sum(sum_i / c_i, axis=0), mask=there)
    tl.store(grad_c_evt + column, tl.sum(sum_e / c_e, axis=0), mask=there)


@triton.jit
def _upstream(gradient, at, mask):
    if gradient is None:
        return 0.0
    else:
        return tl.load(gradient + at, mask=mask, other=0).to(tl.float32)


@triton.jit(do_not_specialize=COUNTS)
def fusion_backward(
    grad_mean, grad_var, grad_w_img, grad_w_evt, grad_terms, sums,
    mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt, lengths,
    grad_mu_img, grad_logvar_img, grad_mu_evt, grad_logvar_evt, grad_c_img, grad_c_evt, partial, counter,
    rows, dim, size, steps, tiles, batch, stride_mi, stride_li, stride_me, stride_le, c_img_d, c_evt_d, eps,
    PER_DIM: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of the four tensors; every element of theirs and of the incoming gradients is read once.

    Grid: (programs, chunks of COLUMNS columns). The incoming gradients, `lengths` and `partial` may be None. The norms
    that the terms' gradient needs come from `sums`, or where that is None from the tile, which then holds whole rows.
    partial, of c·(gradient of c): (2, programs, dim) for `fusion_factors` if PER_DIM, else (2, programs·chunks), from
    which the last program makes grad_c_img and grad_c_evt.
    """
    precise: tl.constexpr = mu_img.dtype.element_ty == tl.float32
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    c_i = _factor(c_img, c_img_d, column, dim, PER_DIM)
    c_e = _factor(c_evt, c_evt_d, column, dim, PER_DIM)
    if grad_terms is not None:  # what a unit of each term's sum weighs
        count = _count_valid(lengths, batch, rows, steps, FINISH)
        share = tl.where(count > 0, 1.0 / tl.where(count > 0, count, 1.0), 0.0)
        slope_kl_i = tl.load(grad_terms) * share / dim
        slope_kl_e = tl.load(grad_terms + 1) * share / dim
        slope_cosine = tl.load(grad_terms + 2) * share
        slope_norm = tl.load(grad_terms + 3) * share
    if partial is not None:
        sum_i = tl.zeros((COLUMNS if PER_DIM else ROWS,), tl.float32)
        sum_e = tl.zeros((COLUMNS if PER_DIM else ROWS,), tl.float32)
    for tile in range(pid.to(tl.int64) if WIDE else pid, tiles, programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        valid = _valid_rows(row, rows, steps, lengths)
        wide_row = row.to(tl.int64)
        inside, read = _masks(row, column, valid, rows, dim, size, FLAT, EVEN)
        m_i = tl.load(mu_img + (wide_row * stride_mi)[:, None] + column[None, :], mask=read, other=0).to(tl.float32)
        l_i = tl.load(logvar_img + (wide_row * stride_li)[:, None] + column[None, :], mask=read, other=0).to(tl.float32)
        m_e = tl.load(mu_evt + (wide_row * stride_me)[:, None] + column[None, :], mask=read, other=0).to(tl.float32)
        l_e = tl.load(logvar_evt + (wide_row * stride_le)[:, None] + column[None, :], mask=read, other=0).to(tl.float32)
        at = (wide_row * dim)[:, None] + column[None, :]
        grad_m = _upstream(grad_mean, at, read)
        grad_v = _upstream(grad_var, at, read)
        grad_w = _upstream(grad_w_img, at, read) - _upstream(grad_w_evt, at, read)
        if grad_terms is not None:  # the sums first: they make the warps wait, and little is in registers yet
            if sums is None:
                square_i = tl.sum(m_i * m_i, axis=1)
                square_e = tl.sum(m_e * m_e, axis=1)
                dot = tl.sum(m_i * m_e, axis=1)
            else:
                square_i = tl.load(sums + 3 * wide_row, mask=valid, other=0)
                square_e = tl.load(sums + 3 * wide_row + 1, mask=valid, other=0)
                dot = tl.load(sums + 3 * wide_row + 2, mask=valid, other=0)
            norm_i = tl.sqrt_rn(square_i)
            norm_e = tl.sqrt_rn(square_e)
            inv_i = tl.where(norm_i == 0, 0.0, 1.0 / tl.where(norm_i == 0, 1.0, norm_i))
            inv_e = tl.where(norm_e == 0, 0.0, 1.0 / tl.where(norm_e == 0, 1.0, norm_e))
            cosine = dot * inv_i * inv_e
            side = tl.where(norm_i > norm_e, slope_norm, tl.where(norm_i < norm_e, -slope_norm, 0.0))
        change = grad_m * (m_i - m_e) + grad_w
        w_i, w_e, fused, slope_i, slope_e, var_i, var_e, u_i, u_e = _weigh(l_i, l_e, c_i, c_e, eps, precise)
        if grad_mu_img.dtype.element_ty == tl.float16:
            grad_v = tl.where(fused > HALF_MAX, 0.0, grad_v)  # the forward pass cut it there
        grad_mu_i = w_i * grad_m
        grad_mu_e = w_e * grad_m
        grad_lv_i = -change * slope_i
        grad_lv_e = change * slope_e
        rest_i = grad_v * var_i
        rest_e = grad_v * var_e
        if grad_terms is not None:
            # padding was read as zeros, mu and incoming gradients: what is left to silence there is the KL of logvar
            kl_i = tl.where(valid, slope_kl_i, 0.0)[:, None]
            kl_e = tl.where(valid, slope_kl_e, 0.0)[:, None]
            # unit vectors, so that two tiny norms are never multiplied
            unit_i = m_i * inv_i[:, None]
            unit_e = m_e * inv_e[:, None]
            pull_i = slope_cosine * inv_i
            pull_e = slope_cosine * inv_e
            grad_mu_i += kl_i * m_i + (side + pull_i * cosine)[:, None] * unit_i - pull_i[:, None] * unit_e
            grad_mu_e += kl_e * m_e + (pull_e * cosine - side)[:, None] * unit_e - pull_e[:, None] * unit_i
            grad_lv_i -= 0.5 * kl_i
            grad_lv_e -= 0.5 * kl_e
            rest_i += (0.5 * kl_i) * u_i
            rest_e += (0.5 * kl_e) * u_e
        if partial is not None:
            share_i = grad_lv_i + rest_i
            share_e = grad_lv_e + rest_e
            if grad_terms is not None and not EVEN:
                share_i = tl.where(read, share_i, 0)
                share_e = tl.where(read, share_e, 0)
            sum_i += tl.sum(share_i, axis=0 if PER_DIM else 1)
            sum_e += tl.sum(share_e, axis=0 if PER_DIM else 1)
        # a saturated variance no longer follows its logvar, but still its factor c
        tl.store(grad_mu_img + at, grad_mu_i, mask=inside)
        tl.store(grad_logvar_img + at, grad_lv_i + tl.where(l_i > LIMIT, 0.0, rest_i), mask=inside)
        tl.store(grad_mu_evt + at, grad_mu_e, mask=inside)
        tl.store(grad_logvar_evt + at, grad_lv_e + tl.where(l_e > LIMIT, 0.0, rest_e), mask=inside)
    if partial is not None:
        if PER_DIM:
            at = partial + pid.to(tl.int64) * dim + column
            tl.store(at, sum_i, mask=column < dim)
            tl.store(at + programs.to(tl.int64) * dim, sum_e, mask=column < dim)
        else:
            chunks = tl.num_programs(1)
            at = partial + pid * chunks + tl.program_id(1)
            tl.store(at, tl.sum(sum_i, axis=0))
            tl.store(at + programs * chunks, tl.sum(sum_e, axis=0))
            if _is_last(counter, programs * chunks):
                _finish_factors(
                    partial, programs * chunks, c_img, c_evt, c_img_d, c_evt_d, grad_c_img, grad_c_evt, FINISH
                )
