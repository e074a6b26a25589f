"""Triton kernels of event synthesis: counts of byte frames and of floating-point frames, and the surrogate gradient.

Luma is in 1e-4 grey levels. Compile without fused multiply-add: floating-point luma must round as the reference's does.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Numbers that differ from call to call: triton would compile anew for 1 and for multiples of 16. The number of pixels
# keeps that: it tells whether maps can be stored as vectors.
COUNTS = (
    "start",
    "segment_stride",
    "frame_stride",
    "carry_start",
    "carry_stride",
    "row_stride",
    "carry_row_stride",
    "peak_stride",
    "scale_stride",
    "frames",
    "count",
    "threshold",
    "clamp",
)


@triton.jit
def _four(a, b, c, d):
    """Four tensors (...) as one (..., 2, 2), in their order."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def _luma_of_rgb(a, b, c, LANES: tl.constexpr):
    """Luma (lanes, 4) of the four RGB pixels in three little-endian 32-bit words."""
    luma = _four(
        (a & 255) * 2989 + ((a >> 8) & 255) * 5870 + ((a >> 16) & 255) * 1140,
        ((a >> 24) & 255) * 2989 + (b & 255) * 5870 + ((b >> 8) & 255) * 1140,
        ((b >> 16) & 255) * 2989 + ((b >> 24) & 255) * 5870 + (c & 255) * 1140,
        ((c >> 8) & 255) * 2989 + ((c >> 16) & 255) * 5870 + ((c >> 24) & 255) * 1140,
    )
    return tl.reshape(luma, (LANES, 4))


@triton.jit
def _bytes_of(word):
    """Whole grey levels (..., 2, 2) of the four luma bytes in a word."""
    return _four(word & 255, (word >> 8) & 255, (word >> 16) & 255, (word >> 24) & 255)


@triton.jit
def _quad(words, group, line, part: tl.constexpr, size: tl.constexpr, inside, PITCHED: tl.constexpr):
    """Four neighbouring words of each lane, by one 16-byte load: (lanes, 4)."""
    at = group[:, None] * size + part * 4 + tl.arange(0, 4)[None, :]
    if PITCHED:
        at += line[:, None] * 4
    return tl.load(words + at, mask=inside[:, None], other=0)


@triton.jit
def _split4(quad, LANES: tl.constexpr):
    even, odd = tl.split(tl.reshape(quad, (LANES, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _luma16(words, group, line, inside, RGB: tl.constexpr, PITCHED: tl.constexpr, LANES: tl.constexpr):
    """Luma (lanes, 16) of 16 pixels per lane, from 16-byte loads; `words` and frames begin at multiples of 16 bytes."""
    if RGB:
        a, b, c, d = _split4(_quad(words, group, line, 0, 12, inside, PITCHED), LANES)
        e, f, g, h = _split4(_quad(words, group, line, 1, 12, inside, PITCHED), LANES)
        i, j, k, m = _split4(_quad(words, group, line, 2, 12, inside, PITCHED), LANES)
        fours = _four(
            _luma_of_rgb(a, b, c, LANES),
            _luma_of_rgb(d, e, f, LANES),
            _luma_of_rgb(g, h, i, LANES),
            _luma_of_rgb(j, k, m, LANES),
        )
        return tl.reshape(tl.permute(fours, (0, 2, 3, 1)), (LANES, 16))
    else:
        return tl.reshape(_bytes_of(_quad(words, group, line, 0, 4, inside, PITCHED)), (LANES, 16))


@triton.jit
def _word(words, at, last, shift, SHIFTED: tl.constexpr):
    """The 32 bits that begin `shift` bits into word `at`; words beyond `last` are not read."""
    low = tl.load(words + at, mask=at <= last, other=0)
    if SHIFTED:
        high = tl.load(words + at + 1, mask=at < last, other=0).to(tl.uint32, bitcast=True)
        # in two steps, because a shift by all 32 bits has no meaning
        low = ((low.to(tl.uint32, bitcast=True) >> shift) | ((high << (31 - shift)) << 1)).to(tl.int32, bitcast=True)
    return low


@triton.jit
def _luma4(words, group, start, pixels, RGB: tl.constexpr, SHIFTED: tl.constexpr, LANES: tl.constexpr):
    """Luma (lanes, 4) of 4 pixels per lane of the frame, or of each lane's row, that begins at byte `start`."""
    size: tl.constexpr = 3 if RGB else 1
    last = (start % 4 + pixels * size - 1) // 4
    words += start // 4
    shift = (start % 4 * 8).to(tl.uint32)
    if RGB:
        a = _word(words, group * 3, last, shift, SHIFTED)
        b = _word(words, group * 3 + 1, last, shift, SHIFTED)
        c = _word(words, group * 3 + 2, last, shift, SHIFTED)
        return _luma_of_rgb(a, b, c, LANES)
    else:
        return tl.reshape(_bytes_of(_word(words, group, last, shift, SHIFTED)), (LANES, 4))


@triton.jit
def _luma_of_bytes(
    words,
    group,
    line,
    start,
    width,
    inside,
    RGB: tl.constexpr,
    SHIFTED: tl.constexpr,
    WIDE: tl.constexpr,
    PITCHED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Luma of RGB, whole grey levels otherwise, of the frame at `start`.

    `group` of each lane counts from the beginning of the frame or, if PITCHED, of the lane's row, which is `line`
    behind that of the frame. `start` and `line` count blocks of 16 bytes if WIDE, else bytes.
    """
    if WIDE:
        return _luma16(words + start * 4, group, line, inside, RGB, PITCHED, LANES)
    else:
        if PITCHED:
            start += line
        return _luma4(words, group, start, width, RGB, SHIFTED, LANES)


@triton.jit
def _store_counts(maps, at, inside, count, clamp, inverse, inverse_rest):
    """min(count, clamp), times inverse + inverse_rest unless they are None, to `maps`; gives the clamped counts.

    With 1/d in two float32 numbers and the product in float64, rounding it gives count / d as a division would: both
    are integers below 256, so no quotient comes nearer than 2^-33 to where float32 rounding turns.
    """
    count = tl.where(inside, tl.minimum(count, clamp), 0)
    if inverse is None:
        tl.store(maps + at, count.to(tl.uint8), mask=inside)
    else:
        factor = tl.cast(inverse, tl.float64) + tl.cast(inverse_rest, tl.float64)
        tl.store(maps + at, (count.to(tl.float64) * factor).to(tl.float32), mask=inside)
    return count


@triton.jit(do_not_specialize=COUNTS)
def count_bytes(
    words,
    carry,
    maps,
    peaks,
    start,
    segment_stride,
    frame_stride,
    carry_start,
    carry_stride,
    row_stride,
    carry_row_stride,
    peak_stride,
    frames,
    pixels,
    width,
    threshold,
    clamp,
    inverse,
    inverse_rest,
    RGB: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
    SHIFTED: tl.constexpr,
    PITCHED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Count the events of uint8 frames, 4 pixels per lane, or 16 if WIDE.

    ``words``, ``carry``: the frames' memory as int32; the starts and strides of frames in it are in bytes, or in
    blocks of 16 bytes if WIDE. Frames have no gaps and ``width`` is ``pixels``, or (PITCHED) their rows of ``width``
    pixels have. ``maps`` gets counts times ``inverse`` + ``inverse_rest``, or uint8 counts if these are None; ``peaks``
    (zeros, or None) the largest of each segment.
    """
    each: tl.constexpr = 16 if WIDE else 4
    per_row = tl.cdiv(width, each)
    blocks = tl.cdiv(pixels // width * per_row, LANES) if PITCHED else tl.cdiv(pixels, LANES * each)
    segment = (tl.program_id(0) // blocks).to(tl.int64)
    lane = tl.program_id(0) % blocks * LANES + tl.arange(0, LANES)
    origin = start + segment * segment_stride
    if PITCHED:
        row = lane // per_row
        group = lane % per_row
        there = row * width < pixels
        row = tl.where(there, row, 0)  # a lane too many loads nothing, but its place must be one
        line = row.to(tl.int64) * row_stride
        carry_line = row.to(tl.int64) * carry_row_stride
    else:
        group = lane
        there = lane * each < pixels
        line = 0
        carry_line = 0
    if carry is None:
        previous = _luma_of_bytes(words, group, line, origin, width, there, RGB, SHIFTED, WIDE, PITCHED, LANES)
        origin += frame_stride
        differences = frames - 1
    else:
        begin = carry_start + segment * carry_stride
        previous = _luma_of_bytes(carry, group, carry_line, begin, width, there, RGB, SHIFTED, WIDE, PITCHED, LANES)
        differences = frames
    up = tl.zeros((LANES, each), tl.int32)
    down = tl.zeros((LANES, each), tl.int32)
    for _ in range(differences):
        luma = _luma_of_bytes(words, group, line, origin, width, there, RGB, SHIFTED, WIDE, PITCHED, LANES)
        delta = (luma - previous) * (1 if RGB else 10000)
        if SPLIT:
            up += (delta > threshold).to(tl.int32)
            down += (delta < -threshold).to(tl.int32)
        else:
            up += (tl.abs(delta) > threshold).to(tl.int32)
        previous = luma
        origin += frame_stride
    at = group[:, None] * each + tl.arange(0, each)[None, :]
    inside = at < width
    if PITCHED:
        inside = inside & there[:, None]
        at += row[:, None] * width
    maps += segment * pixels * (2 if SPLIT else 1)
    most = _store_counts(maps, at, inside, up, clamp, inverse, inverse_rest)
    if SPLIT:
        most = tl.maximum(most, _store_counts(maps + pixels, at, inside, down, clamp, inverse, inverse_rest))
    if peaks is not None:
        # of integers, so the order of programs does not show
        tl.atomic_max(peaks + segment * peak_stride, tl.max(tl.max(most, 1), 0))


@triton.jit
def _luma_of_floats(frame, pixel, inside, RGB: tl.constexpr):
    if RGB:
        red = tl.load(frame + pixel * 3, mask=inside, other=0.0).to(tl.float32)
        green = tl.load(frame + pixel * 3 + 1, mask=inside, other=0.0).to(tl.float32)
        blue = tl.load(frame + pixel * 3 + 2, mask=inside, other=0.0).to(tl.float32)
        return red * 2989.0 + green * 5870.0 + blue * 1140.0
    else:
        return tl.load(frame + pixel, mask=inside, other=0.0).to(tl.float32) * 10000.0


@triton.jit
def _count_floats(
    first, frame, frame_stride, differences, pixel, inside, threshold, RGB: tl.constexpr, SPLIT: tl.constexpr
):
    """Events of the differences between `first` and the frames from `frame` on."""
    previous = _luma_of_floats(first, pixel, inside, RGB)
    up = tl.zeros(pixel.shape, tl.int32)
    down = tl.zeros(pixel.shape, tl.int32)
    for _ in range(differences):
        luma = _luma_of_floats(frame, pixel, inside, RGB)
        delta = luma - previous
        if SPLIT:
            up += (delta > threshold).to(tl.int32)
            down += (delta < -threshold).to(tl.int32)
        else:
            up += (tl.abs(delta) > threshold).to(tl.int32)
        previous = luma
        frame += frame_stride
    return up, down


@triton.jit(do_not_specialize=COUNTS)
def count_floats(
    frames,
    carry,
    maps,
    peaks,
    segment_stride,
    frame_stride,
    carry_stride,
    peak_stride,
    count,
    pixels,
    threshold,
    clamp,
    inverse,
    inverse_rest,
    RGB: tl.constexpr,
    SPLIT: tl.constexpr,
    LANES: tl.constexpr,
):
    """Count the events of floating-point frames, one pixel per lane; as `count_bytes`, with strides in elements."""
    blocks = tl.cdiv(pixels, LANES)
    segment = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * LANES + tl.arange(0, LANES)
    inside = pixel < pixels
    frames += segment * segment_stride
    if carry is None:
        up, down = _count_floats(
            frames, frames + frame_stride, frame_stride, count - 1, pixel, inside, threshold, RGB, SPLIT
        )
    else:
        first = carry + segment * carry_stride
        up, down = _count_floats(first, frames, frame_stride, count, pixel, inside, threshold, RGB, SPLIT)
    maps += segment * pixels * (2 if SPLIT else 1)
    most = _store_counts(maps, pixel, inside, up, clamp, inverse, inverse_rest)
    if SPLIT:
        most = tl.maximum(most, _store_counts(maps + pixels, pixel, inside, down, clamp, inverse, inverse_rest))
    if peaks is not None:
        tl.atomic_max(peaks + segment * peak_stride, tl.max(most, 0))


@triton.jit(do_not_specialize=COUNTS)
def divide(counts, peaks, maps, size, peak_stride, BLOCK: tl.constexpr):
    """Compute maps = counts / max(1, peak); ``size`` is the number of counts per segment."""
    blocks = tl.cdiv(size, BLOCK)
    segment = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    count = tl.load(counts + segment * size + at, mask=inside, other=0).to(tl.float32)
    peak = tl.maximum(tl.load(peaks + segment * peak_stride), 1).to(tl.float32)
    tl.store(maps + segment * size + at, tl.div_rn(count, tl.full(count.shape, peak, tl.float32)), mask=inside)


@triton.jit
def _give(frame, pixel, inside, value, RGB: tl.constexpr):
    """Gradient of the luma, given to the channels."""
    if RGB:
        tl.store(frame + pixel * 3, value * 2989.0, mask=inside)
        tl.store(frame + pixel * 3 + 1, value * 5870.0, mask=inside)
        tl.store(frame + pixel * 3 + 2, value * 1140.0, mask=inside)
    else:
        tl.store(frame + pixel, value * 10000.0, mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def pull_back(
    grad,
    frames,
    carry,
    scale,
    grad_frames,
    grad_carry,
    segment_stride,
    frame_stride,
    carry_stride,
    scale_stride,
    count,
    pixels,
    threshold,
    clamp,
    tau,
    RGB: tl.constexpr,
    SPLIT: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute the gradients of frames and carry (each without gaps) from that of the maps; ``tau`` in 1e-4 grey levels.

    With x = (|ΔY| - threshold)/τ and σ the sigmoid, d event / d ΔY = sign(ΔY)·σ(x)·(1 - σ(x))/τ, where the count was
    not clamped away. The first pass over the frames counts, the second follows the differences.
    """
    blocks = tl.cdiv(pixels, LANES)
    segment = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * LANES + tl.arange(0, LANES)
    inside = pixel < pixels
    area = pixels * (3 if RGB else 1)
    frame = frames + segment * segment_stride
    out = grad_frames + segment * count * area
    if carry is None:
        first = frame
        earlier = out
        following = out + area
        frame += frame_stride
        differences = count - 1
    else:
        first = carry + segment * carry_stride
        earlier = grad_carry + segment * area
        following = out
        differences = count
    up, down = _count_floats(first, frame, frame_stride, differences, pixel, inside, threshold, RGB, SPLIT)
    divisor = tl.load(scale + segment * scale_stride)
    grad += segment * pixels * (2 if SPLIT else 1) + pixel
    rise = tl.where(up <= clamp, tl.load(grad, mask=inside, other=0.0) / divisor, 0.0)
    fall = rise
    if SPLIT:
        fall = tl.where(down <= clamp, tl.load(grad + pixels, mask=inside, other=0.0) / divisor, 0.0)
    previous = _luma_of_floats(first, pixel, inside, RGB)
    pull = tl.zeros((LANES,), tl.float32)
    for _ in range(differences):
        luma = _luma_of_floats(frame, pixel, inside, RGB)
        delta = luma - previous
        small = tl.exp(-tl.abs((tl.abs(delta) - threshold) / tau))
        slope = small / ((1.0 + small) * (1.0 + small)) / tau
        push = slope * tl.where(delta > 0, rise, tl.where(delta < 0, -fall, 0.0))
        _give(earlier, pixel, inside, pull - push, RGB)
        pull = push
        previous = luma
        frame += frame_stride
        earlier = following
        following += area
    _give(earlier, pixel, inside, pull, RGB)
