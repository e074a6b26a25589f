"""Triton kernels of refinement: matrix products with fused epilogues, and all steps in one launch for few tokens.

Matrices are row-major without gaps. Products take their inputs in the dtype they are stored in (`PRECISION` decides for
float32: "ieee" or "tf32") and sum in float32.

Numbers that change with the batch (rows, steps, counts) are not specialised: another batch must not compile a kernel
again. Widths are: their multiples of 16 give loads of 16 bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile_of(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a tile, in groups of GROUP rows so that neighbours in time share columns in the L2 cache."""
    per_group = GROUP * tiles_n
    first = tile // per_group * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    return first + tile % per_group % height, tile % per_group // height


@triton.jit
def _multiply(
    a,
    b,
    m,
    n,
    rows,
    width,
    depth,
    B_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Float32 tile (m, n) of a·bᵀ (B_ROWS: b is (width, depth)) or a·b (b is (depth, width)); a is (rows, depth)."""
    k = tl.arange(0, BLOCK_K)
    row, column = m.to(tl.int64), n.to(tl.int64)
    a_at = a + row[:, None] * depth + k[None, :]
    b_at = b + (column[None, :] * depth + k[:, None] if B_ROWS else k[:, None].to(tl.int64) * width + column[None, :])
    b_step = BLOCK_K if B_ROWS else BLOCK_K * width
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        left = tl.load(a_at, mask=(m < rows)[:, None] & (k < depth - start)[None, :], other=0.0)
        right = tl.load(b_at, mask=(k < depth - start)[:, None] & (n < width)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        a_at += BLOCK_K
        b_at += b_step
    return total


@triton.jit(do_not_specialize=["rows", "apart"])
def product(
    a,
    b,
    bias,
    base,
    gate,
    out,
    narrow,
    sums,
    rows,
    width,
    depth,
    apart,
    scale,
    SUM_ROWS: tl.constexpr,
    B_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute out (rows, width) from p = a·bᵀ (B_ROWS) or a·b; what is None does not take part.

    With ``base``: out = base - scale·(p + bias), and ``narrow`` the same in its own dtype.
    With ``gate``: out = p where gate > 0, else 0.
    Otherwise out = relu(p + bias).
    ``sums`` (ceil(rows / SUM_ROWS), width) gets partial column sums of out before it is rounded: a tile's in the first
    of its BLOCK_M / SUM_ROWS rows, zeros in the others, so that its size does not depend on the tile.

    The second dimension of the launch is a stack of products: a (steps, rows, depth), out (steps, rows, width), and
    with ``apart`` = 1 as many b and bias; with ``apart`` = 0 one b and bias for all. Only the last form may be a stack.
    """
    step = tl.program_id(1).to(tl.int64)
    a += step * rows * depth
    out += step * rows * width
    b += step * apart * width * depth
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(width, BLOCK_N)
    tile_m, tile_n = _tile_of(tl.program_id(0), tiles_m, tiles_n, GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    value = _multiply(a, b, m, n, rows, width, depth, B_ROWS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    inside = (m < rows)[:, None] & (n < width)[None, :]
    at = m.to(tl.int64)[:, None] * width + n[None, :]
    if bias is not None:
        value += tl.load(bias + step * apart * width + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
    if base is not None:
        value = tl.load(base + at, mask=inside, other=0.0).to(tl.float32) - scale * value
    elif gate is not None:
        # written so that a hidden NaN passes the gradient, as in torch
        value = tl.where(tl.load(gate + at, mask=inside, other=0.0) <= 0, 0.0, value)
    else:
        value = tl.where(value < 0, 0.0, value)  # keeps NaN
    tl.store(out + at, value, mask=inside)
    if narrow is not None:
        tl.store(narrow + at, value, mask=inside)
    if sums is not None:
        parts: tl.constexpr = BLOCK_M // SUM_ROWS
        column_sum = tl.sum(tl.where(inside, value, 0.0), 0)
        for part in tl.static_range(parts):
            row = tile_m * parts + part
            within = (n < width) & (row * SUM_ROWS + 0 * n < rows)  # no scalar: the interpreter's & needs equal shapes
            tl.store(sums + row.to(tl.int64) * width + n, column_sum if part == 0 else column_sum * 0, mask=within)


@triton.jit(do_not_specialize=["rows", "share", "count"])
def weight_gradient(
    a,
    b,
    parts,
    rows,
    height,
    width,
    share,
    count,
    scale,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """parts[k, s] (height, width) = scale·Σ over rows s·share ≤ t < (s+1)·share of a[k, t]ᵀ·b[k, t].

    a is (steps, rows, height), b (steps, rows, width), parts (steps, count, height, width). Sums are float32.
    """
    tiles_m, tiles_n = tl.cdiv(height, BLOCK_M), tl.cdiv(width, BLOCK_N)
    tile_m, tile_n = _tile_of(tl.program_id(0), tiles_m, tiles_n, GROUP)
    part = tl.program_id(1)
    step = tl.program_id(2).to(tl.int64)
    a += step * rows * height
    b += step * rows * width
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first = part * share
    inside = tl.minimum(share, rows - first)
    k = tl.arange(0, BLOCK_K)
    row = first + k.to(tl.int64)
    a_at = a + row[None, :] * height + m[:, None]
    b_at = b + row[:, None] * width + n[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inside, BLOCK_K):
        left = tl.load(a_at, mask=(k < inside - start)[None, :] & (m < height)[:, None], other=0.0)
        right = tl.load(b_at, mask=(k < inside - start)[:, None] & (n < width)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        a_at += BLOCK_K * height
        b_at += BLOCK_K * width
    at = ((step * count + part) * height + m.to(tl.int64)[:, None]) * width + n[None, :]
    tl.store(parts + at, scale * total, mask=(m < height)[:, None] & (n < width)[None, :])


@triton.jit
def _add(parts, out, step, count, size, scale, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """out[step] = scale·Σ_s parts[step, s] (plus out itself with ADD) for this program's block, in the order of s."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    where = parts + step * count * size + at
    for _ in range(count):
        total += tl.load(where, mask=inside, other=0.0)
        where += size
    total *= scale
    out += step * size
    if ADD:
        total += tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total, mask=inside)


@triton.jit(do_not_specialize=["count_b", "count_w"])
def add_parts(
    parts_b1,
    parts_b2,
    parts_w1,
    parts_w2,
    b1,
    b2,
    w1,
    w2,
    count_b,
    count_w,
    width,
    dim,
    size,
    scale,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute b1, b2, w1, w2 = scale·(sum of the parts of each), plus what they hold with ADD.

    The launch is (blocks, steps, 2 or 4): its last dimension is which of the four. b1 (steps, width), b2 (steps, dim),
    w1 and w2 (steps, size), their parts the same with ``count_b`` or ``count_w`` after the steps. With 2 the parts of
    w1 and w2 may be None.
    """
    step = tl.program_id(1).to(tl.int64)
    which = tl.program_id(2)
    if which == 0:
        _add(parts_b1, b1, step, count_b, width, scale, ADD, BLOCK)
    if which == 1:
        _add(parts_b2, b2, step, count_b, dim, scale, ADD, BLOCK)
    if parts_w1 is not None:
        if which == 2:
            _add(parts_w1, w1, step, count_w, size, scale, ADD, BLOCK)
        if which == 3:
            _add(parts_w2, w2, step, count_w, size, scale, ADD, BLOCK)


@triton.jit
def _meet(counter, target):
    """Waits until `counter` is `target`: every program of a team has come here, and what they wrote is visible to all.

    With more than one program to a team, all must be resident (a cooperative launch sees to that).
    """
    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < target:
        arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit(do_not_specialize=["rows", "steps", "every", "team"])
def all_steps(
    z,
    w1,
    b1,
    w2,
    b2,
    state,
    narrow,
    hidden,
    saved,
    out,
    counters,
    rows,
    dim,
    width,
    steps,
    every,
    scale,
    team,
    SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Every step of refinement in one launch: `team` programs own BLOCK_M rows and divide their columns.

    ``state`` (rows, dim) float32, ``narrow`` (rows, dim) and ``hidden`` (rows, width) in the products' dtype are room
    to work in (``narrow`` None where that is float32); ``saved`` gets the kept states, None if there are none;
    ``counters`` (teams,) int32 zeros. w1 (blocks, width, dim), w2 (blocks, dim, width).
    """
    own, member = tl.program_id(0) // team, tl.program_id(0) % team
    counter = counters + own
    m = own * BLOCK_M + tl.arange(0, BLOCK_M)
    row = m.to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK_N)
    met = tl.cast(team, tl.int32)  # of a launch's numbers, those equal to 1 are constants
    source = state if narrow is None else narrow
    for tile in range(member, tl.cdiv(dim, BLOCK_N), team):
        n = tile * BLOCK_N + columns
        inside = (m < rows)[:, None] & (n < dim)[None, :]
        at = row * dim + n[None, :]
        value = tl.load(z + at, mask=inside, other=0.0)
        tl.store(state + at, value.to(tl.float32), mask=inside)
        if narrow is not None:
            tl.store(narrow + at, value, mask=inside)
    _meet(counter, met)
    block = tl.cast(dim, tl.int64) * width
    for step in range(steps):
        k = 0 if SHARED else step
        for tile in range(member, tl.cdiv(width, BLOCK_N), team):
            n = tile * BLOCK_N + columns
            value = _multiply(
                source, w1 + k * block, m, n, rows, width, dim, True, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
            )
            value += tl.load(b1 + k * width + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
            inside = (m < rows)[:, None] & (n < width)[None, :]
            tl.store(hidden + row * width + n[None, :], tl.where(value < 0, 0.0, value), mask=inside)
        met += team
        _meet(counter, met)
        for tile in range(member, tl.cdiv(dim, BLOCK_N), team):
            n = tile * BLOCK_N + columns
            value = _multiply(
                hidden, w2 + k * block, m, n, rows, dim, width, True, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
            )
            value += tl.load(b2 + k * dim + n, mask=n < dim, other=0.0).to(tl.float32)[None, :]
            inside = (m < rows)[:, None] & (n < dim)[None, :]
            at = row * dim + n[None, :]
            value = tl.load(state + at, mask=inside, other=0.0) - scale * value
            if step + 1 == steps:
                tl.store(out + at, value, mask=inside)
            else:
                tl.store(state + at, value, mask=inside)
                if narrow is not None:
                    tl.store(narrow + at, value, mask=inside)
                if saved is not None:  # noqa: SIM102 (triton 3.3 evaluates both sides of `and`)
                    if (step + 1) % every == 0:
                        keep = saved + ((step + 1) // every - 1) * (tl.cast(dim, tl.int64) * rows)
                        tl.store(keep + at, value, mask=inside)
        met += team
        _meet(counter, met)
