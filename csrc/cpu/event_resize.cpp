// Frames resized and counted, a block of output rows through all frames of a segment at a time.
//
// Two rows interpolated across, the luma of the previous frame and the counts stay in the caches; a resized row is
// compared as soon as it is made. What is done to a row is in resize_row.h, to its events in event_step.h.
#include "cpu/event_resize.h"

#include "cpu/event_step.h"
#include "cpu/resize_row.h"

namespace ief {
namespace IEF_ISA {
namespace {

constexpr int64_t BLOCK_PIXELS = 4 * TILE;  // more repeats fewer source rows at block edges, less stays in the cache
constexpr int64_t ONE_THREAD_BELOW = 1 << 14;  // values written; less does not pay for waking the others

// What one thread works with.
struct Scratch {
    int16_t* across[2];
    uint8_t* pixels;  // resized rows of one block, where nobody wants them kept
    int32_t* luma;
    Counts* counts;
    void* memory;

    Scratch(int64_t row_values, int64_t tiles) {
        const int64_t row = (row_values + 63) / 64 * 64 * sizeof(int16_t), bytes = (3 * TILE + 64) * tiles;
        memory = aligned_alloc(64, 2 * row + bytes + tiles * (TILE * sizeof(int32_t) + sizeof(Counts)));
        uint8_t* at = static_cast<uint8_t*>(memory);
        across[0] = reinterpret_cast<int16_t*>(at), across[1] = reinterpret_cast<int16_t*>(at + row);
        pixels = at + 2 * row;
        luma = reinterpret_cast<int32_t*>(pixels + bytes);
        counts = reinterpret_cast<Counts*>(luma + tiles * TILE);
    }
    ~Scratch() { free(memory); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

struct RowBlock {
    int64_t first, count;
};

// Resizes the rows of a block of one frame to `out`.
void resize_block(const uint8_t* frame, int64_t row_stride, const ResizeAxis& rows, const Across& across, bool halve,
                  RowBlock block, Scratch& scratch, uint8_t* out) {
    int64_t held[2] = {-1, -1};  // an interpolated row lies in the buffer of its number's parity
    for (int64_t i = 0; i < block.count; ++i, out += across.values) {
        const int64_t y = block.first + i;
        const int64_t above = clip(rows.index[y], rows.source), below = clip(rows.index[y] + 1, rows.source);
        if (halve) {
            row_halved(frame + above * row_stride, frame + below * row_stride, across.axis.size, out);
            continue;
        }
        for (int64_t row = above; row <= below; ++row)
            if (held[row & 1] != row) {
                row_across(across, frame + row * row_stride, scratch.across[row & 1]);
                held[row & 1] = row;
            }
        row_down(scratch.across[above & 1], scratch.across[below & 1], rows.weight[2 * y], rows.weight[2 * y + 1],
                 across.values, out);
    }
}

template <bool SPLIT>
void count_block(const uint8_t* rgb, int64_t pixels, bool first, int32_t threshold, Scratch& scratch) {
    for (int64_t k = 0; k * TILE < pixels; ++k) {
        const int n = int(pixels - k * TILE < TILE ? pixels - k * TILE : TILE);
        int32_t* luma = scratch.luma + k * TILE;
        const uint8_t* tile = rgb + 3 * TILE * k;
        (first ? step<true, SPLIT> : step<false, SPLIT>)(tile, n, 3, luma, scratch.counts[k], threshold);
    }
}

template <bool SPLIT, class Map>
void resize_and_count(const EventFrames& f, const ResizeAxis& rows, const ResizeAxis& columns, bool halve,
                      const EventRule& rule, Map divisor, uint8_t* resized, Map* maps, int32_t* peaks, int threads) {
    const int64_t width = columns.size, area = rows.size * width;
    const Across across(columns);
    for (int64_t k = 0; k < f.segments; ++k) peaks[k] = 0;
    if (3 * area * f.segments * (f.frames + 1) < ONE_THREAD_BELOW) threads = 1;
    int64_t height = BLOCK_PIXELS / width;
    // Blocks of about the same height, a multiple of the threads' number where the picture is large enough.
    const int64_t wanted = (rows.size + (height > 1 ? height : 1) - 1) / (height > 1 ? height : 1);
    const int64_t even = (wanted + threads - 1) / threads * threads;
    height = (rows.size + even - 1) / even;
    const int64_t blocks = (rows.size + height - 1) / height, tiles = (height * width + TILE - 1) / TILE;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Scratch scratch(across.steps * STEP, tiles);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < f.segments * blocks; ++index) {
            const int64_t segment = index / blocks, row = index % blocks * height;
            const RowBlock block{row, rows.size - row < height ? rows.size - row : height};
            const int64_t pixels = block.count * width;
            if (maps) memset(scratch.counts, 0, tiles * sizeof(Counts));
            for (int64_t t = f.carry ? -1 : 0; t < f.frames; ++t) {
                const uint8_t* frame = t < 0 ? (const uint8_t*)f.carry + segment * f.carry_segment_stride
                                             : (const uint8_t*)f.data + segment * f.segment_stride + t * f.frame_stride;
                uint8_t* out = scratch.pixels;
                if (resized && t >= 0) out = resized + 3 * ((segment * f.frames + t) * area + row * width);
                resize_block(frame, t < 0 ? f.carry_row_stride : f.row_stride, rows, across, halve, block, scratch, out);
                if (maps) count_block<SPLIT>(out, pixels, t == (f.carry ? -1 : 0), rule.threshold, scratch);
            }
            if (!maps) continue;
            Map* map = maps + segment * (SPLIT ? 2 : 1) * area + row * width;
            for (int64_t k = 0; k < tiles && k * TILE < pixels; ++k) {
                const int n = int(pixels - k * TILE < TILE ? pixels - k * TILE : TILE);
                raise_peak(peaks + segment, store(scratch.counts[k].up, n, rule.clamp, divisor, map + k * TILE));
                if (SPLIT)
                    raise_peak(peaks + segment,
                               store(scratch.counts[k].down, n, rule.clamp, divisor, map + area + k * TILE));
            }
        }
    }
}

}  // namespace

template <class Map>
void event_resize(const EventFrames& frames, const ResizeAxis& rows, const ResizeAxis& columns, bool halve,
                  const EventRule& rule, Map divisor, uint8_t* resized, Map* maps, int32_t* peaks, int threads) {
    (rule.split ? resize_and_count<true, Map> : resize_and_count<false, Map>)(frames, rows, columns, halve, rule,
                                                                             divisor, resized, maps, peaks, threads);
}

#define IEF_RESIZE(MAP)                                                                                             \
    template void event_resize<MAP>(const EventFrames&, const ResizeAxis&, const ResizeAxis&, bool, const EventRule&, \
                                    MAP, uint8_t*, MAP*, int32_t*, int);
IEF_RESIZE(float)
IEF_RESIZE(uint8_t)

}  // namespace IEF_ISA
}  // namespace ief
