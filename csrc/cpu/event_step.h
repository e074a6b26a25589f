// The inner loops of csrc/cpu/event_synthesis.cpp: the luma of one frame's pixels, compared with the frame before.
//
// RGB bytes are spread to 16-bit pairs by byte shuffles, and multiply-add of pairs gives the luma:
// (R, G) . (2989, 5870) + (B, 0) . (1140, 0). Included once for each kernel and instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms from GCC 12's AVX-512 header
#endif

namespace ief {
namespace IEF_ISA {
namespace {

constexpr int32_t RED = 2989, GREEN = 5870, BLUE = 1140, GREY = 10000;
constexpr int TILE = 4096;  // pixels; a multiple of every BLOCK

// ---------------------------------------------------------------------------------------------- counts of one frame
// step(): luma of n pixels, compared with `luma` (the previous frame's) and stored there. Counts saturate at 255.
// FIRST only stores. Buffers have room for whole blocks. `next` is where the pixels needed next are, from `pixels` on:
// prefetched among the arithmetic, as a run of prefetches would fill the queue that loads wait in.

struct Counts {
    alignas(64) uint8_t up[TILE];  // all events when not split
    alignas(64) uint8_t down[TILE];
};

inline uint8_t bump(uint8_t count, bool event) {  // without a branch, so that loops become vectors
    const int sum = count + (event ? 1 : 0);
    return uint8_t(sum < 255 ? sum : 255);
}

#if defined(__AVX512BW__)
constexpr int BLOCK = 64;

inline __m512i luma16(__m512i spread) {  // 4 pixels (12 bytes) in each 128-bit lane
    const __m512i pick_rg = _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1));
    const __m512i pick_b = _mm512_broadcast_i32x4(_mm_setr_epi8(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1));
    const __m512i rg = _mm512_madd_epi16(_mm512_shuffle_epi8(spread, pick_rg), _mm512_set1_epi32(GREEN << 16 | RED));
    const __m512i b = _mm512_madd_epi16(_mm512_shuffle_epi8(spread, pick_b), _mm512_set1_epi32(BLUE));
    return _mm512_add_epi32(rg, b);
}

template <bool FIRST, bool SPLIT>
inline void block(const uint8_t* rgb, int32_t* luma, uint8_t* up, uint8_t* down, __m512i threshold, __m512i negative) {
    const __m512i a = _mm512_loadu_si512(rgb), b = _mm512_loadu_si512(rgb + 64), c = _mm512_loadu_si512(rgb + 128);
    const __m512i y[4] = {
        luma16(_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 0), a)),
        luma16(_mm512_permutex2var_epi32(
            a, _mm512_setr_epi32(12, 13, 14, 0, 15, 16, 17, 0, 18, 19, 20, 0, 21, 22, 23, 0), b)),
        luma16(_mm512_permutex2var_epi32(
            b, _mm512_setr_epi32(8, 9, 10, 0, 11, 12, 13, 0, 14, 15, 16, 0, 17, 18, 19, 0), c)),
        luma16(_mm512_permutexvar_epi32(_mm512_setr_epi32(4, 5, 6, 0, 7, 8, 9, 0, 10, 11, 12, 0, 13, 14, 15, 0), c)),
    };
    if (!FIRST) {
        __mmask16 rise[4], fall[4] = {};
        for (int k = 0; k < 4; ++k) {
            const __m512i delta = _mm512_sub_epi32(y[k], _mm512_load_si512(luma + 16 * k));
            rise[k] = _mm512_cmpgt_epi32_mask(SPLIT ? delta : _mm512_abs_epi32(delta), threshold);
            if (SPLIT) fall[k] = _mm512_cmplt_epi32_mask(delta, negative);
        }
        const __m512i one = _mm512_set1_epi8(1);
        const auto add = [&](uint8_t* counts, const __mmask16* mask) {
            const __mmask64 all = _mm512_kunpackd(_mm512_kunpackw(mask[3], mask[2]), _mm512_kunpackw(mask[1], mask[0]));
            const __m512i old = _mm512_load_si512(counts);
            _mm512_store_si512(counts, _mm512_mask_adds_epu8(old, all, old, one));
        };
        add(up, rise);
        if (SPLIT) add(down, fall);
    }
    for (int k = 0; k < 4; ++k) _mm512_store_si512(luma + 16 * k, y[k]);
}

template <bool FIRST, bool SPLIT>
inline void whole_blocks(const uint8_t* rgb, int n, int32_t* luma, Counts& counts, int32_t threshold, int64_t next) {
    const __m512i limit = _mm512_set1_epi32(threshold), negative = _mm512_set1_epi32(-threshold);
    for (int i = 0; i < n; i += BLOCK) {
        for (int k = 0; k < 3 * BLOCK; k += 64) __builtin_prefetch(rgb + next + 3 * i + k);
        block<FIRST, SPLIT>(rgb + 3 * i, luma + i, counts.up + i, counts.down + i, limit, negative);
    }
}

#elif defined(__AVX2__)
constexpr int BLOCK = 32;

inline __m256i luma8(const uint8_t* rgb, __m256i lanes) {  // `lanes` brings 4 pixels (12 bytes) into each 128-bit lane
    const __m256i pick_rg = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1));
    const __m256i pick_b = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1));
    const __m256i spread = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)rgb), lanes);
    const __m256i rg = _mm256_madd_epi16(_mm256_shuffle_epi8(spread, pick_rg), _mm256_set1_epi32(GREEN << 16 | RED));
    const __m256i b = _mm256_madd_epi16(_mm256_shuffle_epi8(spread, pick_b), _mm256_set1_epi32(BLUE));
    return _mm256_add_epi32(rg, b);
}

// Adds 1 where the four comparison results (8 x int32, 0 or -1) are set.
inline void add_events(uint8_t* counts, const __m256i* mask) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(mask[0], mask[1]), _mm256_packs_epi32(mask[2], mask[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m256i old = _mm256_load_si256((const __m256i*)counts);
    _mm256_store_si256((__m256i*)counts, _mm256_adds_epu8(old, _mm256_and_si256(ordered, _mm256_set1_epi8(1))));
}

template <bool FIRST, bool SPLIT>
inline void block(const uint8_t* rgb, int32_t* luma, uint8_t* up, uint8_t* down, __m256i threshold, __m256i negative) {
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0), high = _mm256_setr_epi32(2, 3, 4, 0, 5, 6, 7, 0);
    // The last eight pixels are bytes 72 to 95; loading from 64 stays inside the block.
    const __m256i y[4] = {luma8(rgb, low), luma8(rgb + 24, low), luma8(rgb + 48, low), luma8(rgb + 64, high)};
    if (!FIRST) {
        __m256i rise[4], fall[4];
        for (int k = 0; k < 4; ++k) {
            const __m256i delta = _mm256_sub_epi32(y[k], _mm256_load_si256((const __m256i*)(luma + 8 * k)));
            rise[k] = _mm256_cmpgt_epi32(SPLIT ? delta : _mm256_abs_epi32(delta), threshold);
            if (SPLIT) fall[k] = _mm256_cmpgt_epi32(negative, delta);
        }
        add_events(up, rise);
        if (SPLIT) add_events(down, fall);
    }
    for (int k = 0; k < 4; ++k) _mm256_store_si256((__m256i*)(luma + 8 * k), y[k]);
}

template <bool FIRST, bool SPLIT>
inline void whole_blocks(const uint8_t* rgb, int n, int32_t* luma, Counts& counts, int32_t threshold, int64_t next) {
    const __m256i limit = _mm256_set1_epi32(threshold), negative = _mm256_set1_epi32(-threshold);
    for (int i = 0; i < n; i += BLOCK) {
        for (int k = 0; k < 3 * BLOCK; k += 64) __builtin_prefetch(rgb + next + 3 * i + k);
        block<FIRST, SPLIT>(rgb + 3 * i, luma + i, counts.up + i, counts.down + i, limit, negative);
    }
}

#else
constexpr int BLOCK = 1;

template <bool FIRST, bool SPLIT>
inline void whole_blocks(const uint8_t* rgb, int n, int32_t* luma, Counts& counts, int32_t threshold, int64_t) {
    for (int i = 0; i < n; ++i) {
        const int32_t y = RED * rgb[3 * i] + GREEN * rgb[3 * i + 1] + BLUE * rgb[3 * i + 2];
        if (!FIRST) {
            const int32_t delta = y - luma[i];
            counts.up[i] = bump(counts.up[i], (delta > threshold) | (!SPLIT & (delta < -threshold)));
            if (SPLIT) counts.down[i] = bump(counts.down[i], delta < -threshold);
        }
        luma[i] = y;
    }
}
#endif

// |difference| * 10000 > threshold is |difference| > threshold / 10000 in integers.
template <bool FIRST, bool SPLIT>
void step_luma(const uint8_t* __restrict pixels, int n, uint8_t* __restrict before, uint8_t* __restrict up,
               uint8_t* __restrict down, int32_t threshold) {
    const int limit = threshold / GREY;
    if (!FIRST) {
#pragma omp simd
        for (int i = 0; i < n; ++i) {
            const int rise = int(pixels[i]) - int(before[i]), size = rise < 0 ? -rise : rise;
            up[i] = bump(up[i], (SPLIT ? rise : size) > limit);
            if (SPLIT) down[i] = bump(down[i], -rise > limit);
        }
    }
    memcpy(before, pixels, n);
}

template <bool FIRST, bool SPLIT>
void step(const uint8_t* pixels, int n, int channels, int32_t* luma, Counts& counts, int32_t threshold, int64_t next) {
    if (channels == 1)
        return step_luma<FIRST, SPLIT>(pixels, n, (uint8_t*)luma, counts.up, counts.down, threshold);
    const int whole = n / BLOCK * BLOCK;
    whole_blocks<FIRST, SPLIT>(pixels, whole, luma, counts, threshold, next);
    if (whole < n) {
        alignas(64) uint8_t padded[3 * BLOCK] = {};
        memcpy(padded, pixels + 3 * whole, 3 * (n - whole));
        Counts tail;
        memcpy(tail.up, counts.up + whole, BLOCK);
        memcpy(tail.down, counts.down + whole, BLOCK);
        whole_blocks<FIRST, SPLIT>(padded, BLOCK, luma + whole, tail, threshold, 0);
        memcpy(counts.up + whole, tail.up, BLOCK);
        memcpy(counts.down + whole, tail.down, BLOCK);
    }
}

// The order of the sum is the reference's, and the file is compiled without contraction: equal bit for bit.
template <class Pixel>
inline Pixel luma_of(const Pixel* pixels, int i, int channels) {
    if (channels == 1) return Pixel(GREY) * pixels[i];
    return (Pixel(RED) * pixels[3 * i] + Pixel(GREEN) * pixels[3 * i + 1]) + Pixel(BLUE) * pixels[3 * i + 2];
}

template <int CHANNELS, bool FIRST, bool SPLIT, class Pixel>
void step_float(const Pixel* __restrict pixels, int n, Pixel* __restrict luma, uint8_t* __restrict up,
                uint8_t* __restrict down, Pixel limit) {
#pragma omp simd
    for (int i = 0; i < n; ++i) {
        const Pixel y = luma_of(pixels, i, CHANNELS);
        if (!FIRST) {
            const Pixel delta = y - luma[i], size = delta < 0 ? -delta : delta;
            up[i] = bump(up[i], (SPLIT ? delta : size) > limit);
            if (SPLIT) down[i] = bump(down[i], -delta > limit);
        }
        luma[i] = y;
    }
}

template <bool FIRST, bool SPLIT, class Pixel>
void step(const Pixel* pixels, int n, int channels, Pixel* luma, Counts& counts, int32_t threshold, int64_t) {
    (channels == 1 ? step_float<1, FIRST, SPLIT, Pixel> : step_float<3, FIRST, SPLIT, Pixel>)(
        pixels, n, luma, counts.up, counts.down, Pixel(threshold));
}

// ------------------------------------------------------------------------------------------------- counts to a map

template <class Map>
inline int32_t store(const uint8_t* counts, int n, int32_t clamp, Map divisor, Map* map) {
    uint8_t peak = 0;
    const uint8_t limit = uint8_t(clamp);
    for (int i = 0; i < n; ++i) {
        const uint8_t count = counts[i] < limit ? counts[i] : limit;
        peak = count > peak ? count : peak;
        map[i] = Map(count) / divisor;
    }
    return peak;
}

// A maximum does not depend on the order, so this keeps the result the same from run to run.
inline void raise_peak(int32_t* peak, int32_t value) {
    int32_t seen = __atomic_load_n(peak, __ATOMIC_RELAXED);
    while (seen < value && !__atomic_compare_exchange_n(peak, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

}  // namespace
}  // namespace IEF_ISA
}  // namespace ief
