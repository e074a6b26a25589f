// Event counts and their surrogate gradient, one tile of pixels through all frames at a time.
//
// A tile's previous luma (int32, or the frames' own type) and its counts stay in the L1 cache, so every frame is read
// from memory once and nothing but the map is written. What is done to a frame's pixels is in event_step.h.
#include "cpu/event_synthesis.h"

#include <string.h>

#include "common/vector_exp.h"
#include "cpu/event_step.h"

namespace ief {
namespace IEF_ISA {
namespace {

constexpr int64_t ONE_THREAD_BELOW = 1 << 15;  // values read; less does not pay for waking the others

// ------------------------------------------------------------------------------------------------------------ tiles

template <class Pixel>
struct LumaType {
    using type = Pixel;
};
template <>
struct LumaType<uint8_t> {
    using type = int32_t;
};

// A run of pixels of one row in one segment. Rows that follow each other without a gap count as one long row.
struct Tile {
    int64_t segment, row, column;
    int pixels;
};

struct Tiling {
    int64_t rows, width, across, count;
    explicit Tiling(const EventFrames& f) : rows(f.rows), width(f.width) {
        const int64_t length = f.width * f.channels;
        if (f.row_stride == length && (!f.carry || f.carry_row_stride == length)) {
            width *= rows;
            rows = 1;
        }
        across = (width + TILE - 1) / TILE;
        count = f.segments * rows * across;
    }
    Tile at(int64_t index) const {
        const int64_t column = index % across * TILE, line = index / across;
        return {line / rows, line % rows, column, int(width - column < TILE ? width - column : TILE)};
    }
    int64_t offset(const Tile& tile) const { return tile.row * width + tile.column; }  // within a map
};

int useful_threads(const EventFrames& f, int threads) {
    return f.segments * f.frames * f.rows * f.width * f.channels < ONE_THREAD_BELOW ? 1 : threads;
}

template <class Pixel>
struct TilePixels {
    const Pixel* first;
    const Pixel* carry;
    TilePixels(const EventFrames& f, const Tile& tile) {
        const int64_t column = tile.column * f.channels;
        first = (const Pixel*)f.data + tile.segment * f.segment_stride + tile.row * f.row_stride + column;
        carry = nullptr;
        if (f.carry)
            carry = (const Pixel*)f.carry + tile.segment * f.carry_segment_stride + tile.row * f.carry_row_stride + column;
    }
};

inline void prefetch(const void* data, int64_t bytes) {
    for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch((const char*)data + k);
}

template <bool SPLIT, class Pixel>
void count_tile(const EventFrames& f, const Tile& tile, int32_t threshold, typename LumaType<Pixel>::type* luma,
                Counts& counts) {
    const TilePixels<Pixel> pixels(f, tile);
    const int n = tile.pixels, padded = (n + BLOCK - 1) / BLOCK * BLOCK;
    memset(counts.up, 0, padded);
    if (SPLIT) memset(counts.down, 0, padded);
    int64_t t = 0;
    if (pixels.carry)
        step<true, SPLIT>(pixels.carry, n, f.channels, luma, counts, threshold, 0);
    else if (f.frames > 0)
        step<true, SPLIT>(pixels.first, n, f.channels, luma, counts, threshold, f.frames > 1 ? f.frame_stride : 0), t = 1;
    for (; t < f.frames; ++t) {
        // The hardware prefetcher does not see that the next frame's tile follows, a whole frame away.
        const int64_t next = t + 1 < f.frames ? f.frame_stride : 0;
        if (next && !(sizeof(Pixel) == 1 && f.channels == 3))
            prefetch(pixels.first + (t + 1) * f.frame_stride, int64_t(n) * f.channels * sizeof(Pixel));
        step<false, SPLIT>(pixels.first + t * f.frame_stride, n, f.channels, luma, counts, threshold, next);
    }
}

template <bool SPLIT, class Pixel, class Map>
void forward(const EventFrames& f, const EventRule& rule, Map divisor, Map* maps, int32_t* peaks, int threads) {
    const Tiling tiling(f);
    const int64_t area = f.rows * f.width;
    for (int64_t k = 0; k < f.segments; ++k) peaks[k] = 0;
    threads = useful_threads(f, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t index = 0; index < tiling.count; ++index) {
        const Tile tile = tiling.at(index);
        alignas(64) typename LumaType<Pixel>::type luma[TILE];
        Counts counts;
        count_tile<SPLIT, Pixel>(f, tile, rule.threshold, luma, counts);
        Map* map = maps + tile.segment * (SPLIT ? 2 : 1) * area + tiling.offset(tile);
        int32_t peak = store(counts.up, tile.pixels, rule.clamp, divisor, map);
        if (SPLIT) {
            const int32_t other = store(counts.down, tile.pixels, rule.clamp, divisor, map + area);
            peak = other > peak ? other : peak;
        }
        raise_peak(peaks + tile.segment, peak);
    }
}

// --------------------------------------------------------------------------------------------------------- gradient

// Gradient of the luma, in 1e-4 grey levels, given to the channels.
template <int CHANNELS, class Pixel>
void scatter(const Pixel* __restrict value, int n, Pixel* __restrict grad) {
    for (int i = 0; i < n; ++i) {
        if (CHANNELS == 1) {
            grad[i] = Pixel(GREY) * value[i];
        } else {
            grad[3 * i] = Pixel(RED) * value[i];
            grad[3 * i + 1] = Pixel(GREEN) * value[i];
            grad[3 * i + 2] = Pixel(BLUE) * value[i];
        }
    }
}

// One difference, between `pixels` and `luma` (left as the luma of `pixels`): `pull`, the gradient of the difference into
// the earlier frame, becomes this one's, and `done` the whole luma gradient of the earlier frame.
template <int CHANNELS, bool SPLIT, class Pixel>
void pull_back(const Pixel* __restrict pixels, int n, Pixel* __restrict luma, const Pixel* __restrict up,
               const Pixel* __restrict down, Pixel limit, Pixel tau, Pixel* __restrict pull, Pixel* __restrict done) {
    const Pixel scale = 1 / tau;
#pragma omp simd
    for (int i = 0; i < n; ++i) {
        const Pixel y = luma_of(pixels, i, CHANNELS), delta = y - luma[i];
        const Pixel size = delta < 0 ? -delta : delta;
        const Pixel x = (size - limit) * scale;
        const Pixel z = vector_exp(x < 0 ? x : -x);
        const Pixel slope = z / ((1 + z) * (1 + z)) * scale;
        const Pixel through = SPLIT ? (delta < 0 ? down[i] : up[i]) : up[i];
        const Pixel sign = delta > 0 ? Pixel(1) : (delta < 0 ? Pixel(-1) : Pixel(0));
        const Pixel push = sign * through * slope;
        done[i] = pull[i] - push;
        pull[i] = push;
        luma[i] = y;
    }
}

template <int CHANNELS, bool SPLIT, class Pixel>
void backward(const EventFrames& f, const EventRule& rule, Pixel surrogate, const Pixel* grad, const Pixel* scale,
              int64_t scale_stride, Pixel* grad_frames, Pixel* grad_carry, int threads) {
    const Tiling tiling(f);
    const int64_t area = f.rows * f.width, frame = area * CHANNELS;
    const Pixel tau = surrogate * Pixel(GREY), limit = Pixel(rule.threshold);
    threads = useful_threads(f, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t index = 0; index < tiling.count; ++index) {
        const Tile tile = tiling.at(index);
        const TilePixels<Pixel> pixels(f, tile);
        const int n = tile.pixels;
        const int64_t place = tiling.offset(tile);
        alignas(64) Pixel luma[TILE], pull[TILE], done[TILE];
        alignas(64) Pixel up[TILE], down[TILE];  // d loss / d (number of events), zero where it was clamped away
        Counts counts;
        count_tile<SPLIT, Pixel>(f, tile, rule.threshold, luma, counts);
        const Pixel divisor = scale[tile.segment * scale_stride];
        const Pixel* above = grad + tile.segment * (SPLIT ? 2 : 1) * area + place;
        for (int i = 0; i < n; ++i) {
            up[i] = counts.up[i] <= rule.clamp ? above[i] / divisor : Pixel(0);
            if (SPLIT) down[i] = counts.down[i] <= rule.clamp ? above[i + area] / divisor : Pixel(0);
            pull[i] = 0;
        }
        Pixel* out = grad_frames + tile.segment * f.frames * frame + place * CHANNELS;
        const Pixel* first = pixels.carry ? pixels.carry : pixels.first;
        step_float<CHANNELS, true, SPLIT, Pixel>(first, n, luma, counts.up, counts.down, limit);
        for (int64_t t = pixels.carry ? 0 : 1; t < f.frames; ++t) {
            pull_back<CHANNELS, SPLIT>(pixels.first + t * f.frame_stride, n, luma, up, down, limit, tau, pull, done);
            scatter<CHANNELS>(done, n, t ? out + (t - 1) * frame : grad_carry + tile.segment * frame + place * CHANNELS);
        }
        scatter<CHANNELS>(pull, n, out + (f.frames - 1) * frame);
    }
}

}  // namespace

template <class Pixel, class Map>
void event_forward(const EventFrames& frames, const EventRule& rule, Map divisor, Map* maps, int32_t* peaks,
                   int threads) {
    if (rule.split)
        forward<true, Pixel>(frames, rule, divisor, maps, peaks, threads);
    else
        forward<false, Pixel>(frames, rule, divisor, maps, peaks, threads);
}

template <class Pixel>
void event_backward(const EventFrames& frames, const EventRule& rule, Pixel surrogate, const Pixel* grad,
                    const Pixel* scale, int64_t scale_stride, Pixel* grad_frames, Pixel* grad_carry, int threads) {
    const auto run = frames.channels == 1 ? (rule.split ? backward<1, true, Pixel> : backward<1, false, Pixel>)
                                          : (rule.split ? backward<3, true, Pixel> : backward<3, false, Pixel>);
    run(frames, rule, surrogate, grad, scale, scale_stride, grad_frames, grad_carry, threads);
}

#define IEF_FORWARD(PIXEL, MAP) \
    template void event_forward<PIXEL, MAP>(const EventFrames&, const EventRule&, MAP, MAP*, int32_t*, int);
#define IEF_BACKWARD(PIXEL)                                                                                    \
    template void event_backward<PIXEL>(const EventFrames&, const EventRule&, PIXEL, const PIXEL*, const PIXEL*, \
                                        int64_t, PIXEL*, PIXEL*, int);
IEF_FORWARD(uint8_t, float)
IEF_FORWARD(uint8_t, uint8_t)
IEF_FORWARD(float, float)
IEF_FORWARD(float, uint8_t)
IEF_FORWARD(double, double)
IEF_FORWARD(double, uint8_t)
IEF_BACKWARD(float)
IEF_BACKWARD(double)

}  // namespace IEF_ISA
}  // namespace ief
