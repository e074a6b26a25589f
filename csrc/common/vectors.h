// Vectors of the instruction set at hand, and loads and stores of every element type.
//
// Vec<T> is the compiler's vector type: arithmetic, comparisons and ?: work element by element. Halves are widened
// when they are loaded and rounded to nearest even when they are stored; NaN stays NaN. A kernel is one loop:
//
//     over<T>(n, streamed, [&](int64_t d, auto io) { io.store(y + d, a * io.load(x + d)); });
//
// `io` moves a whole vector or, once at the end, the elements that remain: loads give 0 for the others.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/halves.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms from GCC 12's AVX-512 header
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#ifndef IEF_ISA
#error "vectors.h is for files that are compiled once per instruction set"
#endif

namespace ief::IEF_ISA {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;  // SSE2, NEON
#endif

template <class T, int64_t Bytes>
struct VectorOf {
    typedef T type __attribute__((vector_size(Bytes)));
};
template <class T>
using Vec = typename VectorOf<T, kVectorBytes>::type;
template <class T>
constexpr int64_t kLanes = kVectorBytes / int64_t(sizeof(T));
using Halves = VectorOf<uint16_t, kVectorBytes / 2>::type;  // as many as a vector has floats
using Bits = Vec<int32_t>;

template <class To, class From>
inline To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

template <class T>
inline Vec<T> splat(T value) { return Vec<T>{} + value; }

// Where one is NaN: smaller() gives b, larger() gives a.
template <class T>
inline T smaller(T a, T b) { return a < b ? a : b; }
template <class T>
inline T larger(T a, T b) { return a < b ? b : a; }
#if defined(__AVX512F__)  // the same in one instruction
inline Vec<float> smaller(Vec<float> a, Vec<float> b) { return Vec<float>(_mm512_min_ps(__m512(a), __m512(b))); }
inline Vec<float> larger(Vec<float> a, Vec<float> b) { return Vec<float>(_mm512_max_ps(__m512(b), __m512(a))); }
inline Vec<double> smaller(Vec<double> a, Vec<double> b) { return Vec<double>(_mm512_min_pd(__m512d(a), __m512d(b))); }
inline Vec<double> larger(Vec<double> a, Vec<double> b) { return Vec<double>(_mm512_max_pd(__m512d(b), __m512d(a))); }
#elif defined(__AVX2__)
inline Vec<float> smaller(Vec<float> a, Vec<float> b) { return Vec<float>(_mm256_min_ps(__m256(a), __m256(b))); }
inline Vec<float> larger(Vec<float> a, Vec<float> b) { return Vec<float>(_mm256_max_ps(__m256(b), __m256(a))); }
inline Vec<double> smaller(Vec<double> a, Vec<double> b) { return Vec<double>(_mm256_min_pd(__m256d(a), __m256d(b))); }
inline Vec<double> larger(Vec<double> a, Vec<double> b) { return Vec<double>(_mm256_max_pd(__m256d(b), __m256d(a))); }
#endif

// The sum of all lanes in their order, in double.
template <class T>
inline double sum_of(Vec<T> v) {
    double sum = 0;
    for (int64_t k = 0; k < kLanes<T>; ++k) sum += v[k];
    return sum;
}

template <class Mask>
inline bool any(const Mask& mask) {
    typename VectorOf<int64_t, kVectorBytes>::type words = bit_cast<Vec<int64_t>>(mask);
    int64_t found = 0;
    for (int64_t k = 0; k < kLanes<int64_t>; ++k) found |= words[k];
    return found != 0;
}

// ---------------------------------------------------------------------------------------------------- half precision

inline Bits to_words(Halves half) {
#if defined(__AVX512F__)
    return Bits(_mm512_cvtepu16_epi32(bit_cast<__m256i>(half)));  // g++ makes three instructions of the conversion below
#elif defined(__AVX2__)
    return Bits(_mm256_cvtepu16_epi32(bit_cast<__m128i>(half)));
#else
    return __builtin_convertvector(half, Bits);
#endif
}

inline Vec<float> widen(Halves half, const bfloat16*) { return bit_cast<Vec<float>>(to_words(half) << 16); }

#if defined(__AVX512F__)
inline Halves narrow(Vec<float> value, const bfloat16*) {
    const __m512i bits = bit_cast<__m512i>(value), one = _mm512_set1_epi32(1);
    const __m512i biased = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i rounded = _mm512_mask_add_epi32(biased, odd, biased, one);
    const __m512i high = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                          31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __m256i halves = _mm512_castsi512_si256(_mm512_permutexvar_epi16(high, rounded));
    const __mmask16 nan = _mm512_cmp_ps_mask(__m512(value), __m512(value), _CMP_UNORD_Q);
    return bit_cast<Halves>(_mm256_mask_mov_epi16(halves, nan, _mm256_set1_epi16(0x7fc0)));
}
#else
inline Halves narrow(Vec<float> value, const bfloat16*) {
    const Vec<uint32_t> bits = bit_cast<Vec<uint32_t>>(value);
    const Vec<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return __builtin_convertvector(value == value ? rounded : splat(0x7fc0u), Halves);
}
#endif

#if defined(__AVX512F__)
inline Vec<float> widen(Halves half, const float16*) {
    return Vec<float>(_mm512_cvtph_ps(bit_cast<__m256i>(half)));
}
inline Halves narrow(Vec<float> value, const float16*) {
    return bit_cast<Halves>(_mm512_cvtps_ph(__m512(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
inline Vec<float> widen(Halves half, const float16*) { return Vec<float>(_mm256_cvtph_ps(bit_cast<__m128i>(half))); }
inline Halves narrow(Vec<float> value, const float16*) {
    return bit_cast<Halves>(_mm256_cvtps_ph(__m256(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
inline Vec<float> widen(Halves half, const float16*) {
    const Bits bits = to_words(half), magnitude = (bits & 0x7fff) << 13;
    const Bits normal = magnitude + (112 << 23);  // the exponent's bias, 15 → 127
    const Bits special = (magnitude + (224 << 23)) | (magnitude > 0x0f800000 ? splat(0x400000) : Bits{});
    const Vec<float> tiny = bit_cast<Vec<float>>(magnitude + (113 << 23)) - 0x1p-14f;
    const Bits finite = magnitude < 0x00800000 ? bit_cast<Bits>(tiny) : normal;
    return bit_cast<Vec<float>>((magnitude < 0x0f800000 ? finite : special) | (bits & 0x8000) << 16);
}
inline Halves narrow(Vec<float> value, const float16*) {
    const Bits bits = bit_cast<Bits>(value), magnitude = bits & 0x7fffffff;
    const Vec<uint32_t> wide = bit_cast<Vec<uint32_t>>(magnitude);  // NaN and small values, not used here, wrap around
    const Bits normal = bit_cast<Bits>((wide + 0xfffu + ((wide >> 13) & 1u) - (112u << 23)) >> 13);
    // 0.5 ends where the smallest float16 does, so that the sum is rounded there
    const Bits tiny = bit_cast<Bits>(bit_cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000;
    const Bits finite = magnitude < 0x38800000 ? tiny : normal;
    const Bits quiet = ((magnitude >> 13) & 0x3ff) | 0x7e00;
    const Bits special = magnitude > 0x7f800000 ? quiet : splat(0x7c00);
    const Bits result = (magnitude < 0x47800000 ? finite : special) | ((bits >> 16) & 0x8000);
    return __builtin_convertvector(bit_cast<Vec<uint32_t>>(result), Halves);
}
#endif

// ---------------------------------------------------------------------------------------------------- loads and stores

template <class V>
inline V load_vector(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline Vec<float> load(const float* p) { return load_vector<Vec<float>>(p); }
inline Vec<double> load(const double* p) { return load_vector<Vec<double>>(p); }
template <class Half>
inline Vec<float> load(const Half* p) { return widen(load_vector<Halves>(p), p); }

inline Vec<float> stored(Vec<float> v, const float*) { return v; }
inline Vec<double> stored(Vec<double> v, const double*) { return v; }
template <class Half>
inline Halves stored(Vec<float> v, const Half* p) { return narrow(v, p); }

template <class E>
inline void store(E* p, Vec<Arithmetic<E>> v) {
    const auto bits = stored(v, p);
    memcpy((void*)p, &bits, sizeof bits);
}

// Outputs of a call that hold at least this many bytes go past the caches. With as many bytes of inputs they fill a
// cache of 32 MiB: their beginning is no longer there when the call returns, and to store them past the caches saves
// reading them first.
constexpr int64_t kPastCaches = 8 << 20;

// Whether outputs of `rows` rows go past the caches: they are large, and rows begin at multiples of 64 bytes.
template <class E, int N>
inline bool past_caches(int64_t rows, int64_t dim, E* const (&fields)[N]) {
    uintptr_t misaligned = uintptr_t(dim) * sizeof(E);
    for (E* field : fields) misaligned |= reinterpret_cast<uintptr_t>(field);
    return misaligned % 64 == 0 && N * rows * dim * int64_t(sizeof(E)) >= kPastCaches;
}

// Past the caches, for outputs that are too large to be read from there; p must be aligned to what is stored.
template <class E>
inline void store_past_caches(E* p, Vec<Arithmetic<E>> v) {
    const auto bits = stored(v, p);
#if defined(__AVX512F__)
    if constexpr (sizeof bits == 64)
        _mm512_stream_si512((__m512i*)p, bit_cast<__m512i>(bits));
    else
        _mm256_stream_si256((__m256i*)p, bit_cast<__m256i>(bits));
#elif defined(__AVX2__)
    if constexpr (sizeof bits == 32)
        _mm256_stream_si256((__m256i*)p, bit_cast<__m256i>(bits));
    else
        _mm_stream_si128((__m128i*)p, bit_cast<__m128i>(bits));
#else
    memcpy((void*)p, &bits, sizeof bits);
#endif
}

// Makes what went past the caches visible to other threads.
inline void finish_streams() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

struct Whole {
    template <class E>
    Vec<Arithmetic<E>> load(const E* p) const { return IEF_ISA::load(p); }
    template <class E>
    void store(E* p, Vec<Arithmetic<E>> v) const { IEF_ISA::store(p, v); }
    template <class E>
    void stream(E* p, Vec<Arithmetic<E>> v) const { IEF_ISA::store(p, v); }
};

struct Streamed : Whole {
    template <class E>
    void stream(E* p, Vec<Arithmetic<E>> v) const { store_past_caches(p, v); }
};

struct Part {
    int64_t n;
    template <class E>
    Vec<Arithmetic<E>> load(const E* p) const {
        E all[kLanes<Arithmetic<E>>] = {};
        memcpy((void*)all, p, n * sizeof(E));
        return IEF_ISA::load(all);
    }
    template <class E>
    void store(E* p, Vec<Arithmetic<E>> v) const {
        E all[kLanes<Arithmetic<E>>];
        IEF_ISA::store(all, v);
        memcpy((void*)p, all, n * sizeof(E));
    }
    template <class E>
    void stream(E* p, Vec<Arithmetic<E>> v) const { store(p, v); }
};

// Calls body(d, io) for d = 0, lanes, 2·lanes, ... below n. `streamed`: io.stream() goes past the caches.
template <class T, class Body>
inline void over(int64_t n, bool streamed, const Body& body) {
    const int64_t whole = n / kLanes<T> * kLanes<T>;
    if (streamed)
        for (int64_t d = 0; d < whole; d += kLanes<T>) body(d, Streamed{});
    else
        for (int64_t d = 0; d < whole; d += kLanes<T>) body(d, Whole{});
    if (whole < n) body(whole, Part{n - whole});
}

}  // namespace ief::IEF_ISA
