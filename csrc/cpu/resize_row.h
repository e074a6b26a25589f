// The inner loops of csrc/cpu/event_resize.cpp: one row of RGB bytes interpolated across, two such rows down.
//
// Fixed point with 11-bit weights: across, h = (a0 S[x] + a1 S[x + 1]) >> 4 (at most 32640, in 16 bits); down,
// (((b0 h0) >> 16) + ((b1 h1) >> 16) + 2) >> 2. Each vector of the pass across takes its bytes by one shuffle from a
// window of the source row: pairs (left, right neighbour) widened to 16 bits, for a multiply-add with their weights.
// Included once for each instruction set.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/event_resize.h"

namespace ief {
namespace IEF_ISA {
namespace {

#if defined(__AVX512BW__)
constexpr int LANES = 4;
#elif defined(__AVX2__)
constexpr int LANES = 2;
#else
constexpr int LANES = 0;
#endif
constexpr int GROUP = 4;                            // output values of one 128-bit lane
constexpr int STEP = LANES ? 2 * LANES * GROUP : 1;  // output values that are packed and stored together

inline int64_t clip(int64_t value, int64_t size) { return value < 0 ? 0 : (value < size ? value : size - 1); }

// Where the values of one vector come from. Lane k holds the group 2 k (first vector of a step) or 2 k + 1 (second), so
// that packing the two gives them in order.
struct Piece {
    alignas(64) uint8_t shuffle[16 * 4];
    alignas(64) int16_t weight[8 * 4];
    alignas(64) int32_t permute[4 * 4];  // 32-bit words of the window that the lanes take
    int32_t window;                      // first byte of a window of 64
    int32_t gather[2 * 4];               // or: two windows of 8 bytes for each lane
};

// The pass across, prepared for one pair of widths.
struct Across {
    const ResizeAxis& axis;
    int64_t values, steps;  // output values of a row, and vector steps that cover them
    bool gather = false;    // pixels lie too far apart for windows
    Piece* pieces = nullptr;

    explicit Across(const ResizeAxis& columns) : axis(columns), values(3 * columns.size), steps((values + STEP - 1) / STEP) {
        // A gathered window holds a pixel and its neighbour, 6 bytes, and must not reach beyond the row.
        if (LANES == 0 || 3 * axis.source < 8) return;
        pieces = static_cast<Piece*>(aligned_alloc(64, sizeof(Piece) * 2 * steps));
        if (!pieces) return;
        for (int64_t i = 0; i < 2 * steps && !gather; ++i) gather = !prepare_window(i);
        for (int64_t i = 0; i < 2 * steps && gather; ++i) prepare_gather(i);
    }
    ~Across() { free(pieces); }
    Across(const Across&) = delete;
    Across& operator=(const Across&) = delete;

    int64_t value_at(int64_t piece, int lane, int slot) const {
        const int64_t value = piece / 2 * STEP + (2 * lane + piece % 2) * GROUP + slot;
        return value < values ? value : values - 1;  // the last step computes some that nobody reads
    }
    int64_t left(int64_t value) const { return 3 * clip(axis.index[value / 3], axis.source) + value % 3; }
    int64_t right(int64_t value) const { return 3 * clip(axis.index[value / 3] + 1, axis.source) + value % 3; }

    void place(Piece& piece, int lane, int slot, int64_t value, int64_t from_left, int64_t from_right) const {
        uint8_t* shuffle = piece.shuffle + 16 * lane + 4 * slot;
        shuffle[0] = uint8_t(from_left), shuffle[1] = 0x80, shuffle[2] = uint8_t(from_right), shuffle[3] = 0x80;
        int16_t* weight = piece.weight + 8 * lane + 2 * slot;
        weight[0] = axis.weight[2 * (value / 3)], weight[1] = axis.weight[2 * (value / 3) + 1];
    }

    // False where a lane's bytes span more than the 16 that it can take, or a vector's more than 64.
    bool prepare_window(int64_t index) {
        Piece& piece = pieces[index];
        const int64_t bytes = 3 * axis.source, window = 16 * LANES;
        if (bytes < window) return false;
        const int64_t first = left(value_at(index, 0, 0));
        const int64_t start = first + window <= bytes ? first : bytes - window;
        piece.window = int32_t(start);
        for (int lane = 0; lane < LANES; ++lane) {
            int64_t low = bytes, high = 0;
            for (int slot = 0; slot < GROUP; ++slot) {
                const int64_t value = value_at(index, lane, slot), l = left(value) - start, r = right(value) - start;
                low = l < low ? l : low;
                high = r > high ? r : high;
            }
            const int64_t word = low / 4 < window / 4 - 4 ? low / 4 : window / 4 - 4;
            if (low < 4 * word || high >= 4 * word + 16) return false;
            for (int k = 0; k < 4; ++k) piece.permute[4 * lane + k] = int32_t(word + k);
            for (int slot = 0; slot < GROUP; ++slot) {
                const int64_t value = value_at(index, lane, slot);
                place(piece, lane, slot, value, left(value) - start - 4 * word, right(value) - start - 4 * word);
            }
        }
        return true;
    }

    // Four values in a row belong to at most two pixels.
    void prepare_gather(int64_t index) {
        Piece& piece = pieces[index];
        const int64_t bytes = 3 * axis.source;
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t pixels[2] = {value_at(index, lane, 0) / 3, value_at(index, lane, GROUP - 1) / 3};
            for (int k = 0; k < 2; ++k) {
                const int64_t first = left(3 * pixels[k]);
                piece.gather[2 * lane + k] = int32_t(first + 8 <= bytes ? first : bytes - 8);
            }
            for (int slot = 0; slot < GROUP; ++slot) {
                const int64_t value = value_at(index, lane, slot), k = value / 3 != pixels[0];
                const int64_t start = piece.gather[2 * lane + k];
                place(piece, lane, slot, value, 8 * k + left(value) - start, 8 * k + right(value) - start);
            }
        }
    }
};

inline void scalar_row(const Across& across, const uint8_t* row, int16_t* out) {
    const ResizeAxis& axis = across.axis;
    for (int64_t x = 0; x < axis.size; ++x) {
        const uint8_t *left = row + across.left(3 * x), *right = row + across.right(3 * x);
        const int a = axis.weight[2 * x], b = axis.weight[2 * x + 1];
        for (int c = 0; c < 3; ++c) out[3 * x + c] = int16_t((a * left[c] + b * right[c]) >> 4);
    }
}

#if defined(__AVX2__)
// Two windows of 8 bytes as one lane; much faster than the processor's own gather.
inline __m128i two_windows(const uint8_t* row, const int32_t* at) {
    const __m128i low = _mm_loadl_epi64((const __m128i*)(row + at[0]));
    return _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(low), (const double*)(row + at[1])));
}

inline __m256i four_windows(const uint8_t* row, const int32_t* at) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(two_windows(row, at)), two_windows(row, at + 2), 1);
}
#endif

#if defined(__AVX512BW__)
template <bool GATHER>
inline __m512i piece_values(const Piece& piece, const uint8_t* row) {
    const __m512i bytes =
        GATHER ? _mm512_inserti64x4(_mm512_castsi256_si512(four_windows(row, piece.gather)),
                                    four_windows(row, piece.gather + 4), 1)
               : _mm512_permutexvar_epi32(_mm512_load_si512(piece.permute), _mm512_loadu_si512(row + piece.window));
    const __m512i pairs = _mm512_shuffle_epi8(bytes, _mm512_load_si512(piece.shuffle));
    return _mm512_srli_epi32(_mm512_madd_epi16(pairs, _mm512_load_si512(piece.weight)), 4);
}

template <bool GATHER>
inline void vector_row(const Across& across, const uint8_t* row, int16_t* out) {
    for (int64_t i = 0; i < across.steps; ++i) {
        const __m512i first = piece_values<GATHER>(across.pieces[2 * i], row);
        const __m512i second = piece_values<GATHER>(across.pieces[2 * i + 1], row);
        _mm512_store_si512(out + STEP * i, _mm512_packs_epi32(first, second));
    }
}
#elif defined(__AVX2__)
template <bool GATHER>
inline __m256i piece_values(const Piece& piece, const uint8_t* row) {
    const __m256i bytes =
        GATHER ? four_windows(row, piece.gather)
               : _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)(row + piece.window)),
                                             _mm256_load_si256((const __m256i*)piece.permute));
    const __m256i pairs = _mm256_shuffle_epi8(bytes, _mm256_load_si256((const __m256i*)piece.shuffle));
    return _mm256_srli_epi32(_mm256_madd_epi16(pairs, _mm256_load_si256((const __m256i*)piece.weight)), 4);
}

template <bool GATHER>
inline void vector_row(const Across& across, const uint8_t* row, int16_t* out) {
    for (int64_t i = 0; i < across.steps; ++i) {
        const __m256i first = piece_values<GATHER>(across.pieces[2 * i], row);
        const __m256i second = piece_values<GATHER>(across.pieces[2 * i + 1], row);
        _mm256_store_si256((__m256i*)(out + STEP * i), _mm256_packs_epi32(first, second));
    }
}
#else
template <bool GATHER>
inline void vector_row(const Across& across, const uint8_t* row, int16_t* out) {
    scalar_row(across, row, out);
}
#endif

// `out` is aligned to 64 bytes and has room for whole steps.
inline void row_across(const Across& across, const uint8_t* row, int16_t* out) {
    if (!across.pieces) return scalar_row(across, row, out);
    across.gather ? vector_row<true>(across, row, out) : vector_row<false>(across, row, out);
}

inline void row_down(const int16_t* __restrict above, const int16_t* __restrict below, int b0, int b1, int64_t n,
                     uint8_t* __restrict out) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const int16_t sum = int16_t(int16_t((above[i] * b0) >> 16) + int16_t((below[i] * b1) >> 16));
        out[i] = uint8_t(int16_t(sum + 2) >> 2);
    }
}

// The rounded mean of 2 x 2 pixels.
inline void row_halved(const uint8_t* __restrict above, const uint8_t* __restrict below, int64_t width,
                       uint8_t* __restrict out) {
    for (int64_t x = 0; x < width; ++x)
        for (int c = 0; c < 3; ++c) {
            const int64_t left = 6 * x + c;
            out[3 * x + c] = uint8_t((above[left] + above[left + 3] + below[left] + below[left + 3] + 2) >> 2);
        }
}

}  // namespace
}  // namespace IEF_ISA
}  // namespace ief
