// exp() of vectors (common/vectors.h), and of numbers in `#pragma omp simd` loops: every ISA namespace has its own.
#pragma once

#include "common/vectors.h"

namespace ief::IEF_ISA {

// exp(x) for x ≤ 88 to about 1 ulp, never below exp(-87) = 1.6e-38; NaN gives NaN.
// x = n·ln 2 + r with |r| ≤ 0.3466, and 2ⁿ goes into the exponent bits. exp(r) is 1 + r + r²·P(r), where P interpolates
// at Chebyshev's points: of degree 4, it errs by 1e-8.
template <class V, class UInt>
inline V exp_float(V x) {
    const float magic = 12582912.0f;  // 1.5·2²³: adding it rounds to the nearest integer
    const V low = larger(x, V{} - 87.0f);
    const V shifted = low * 1.44269504f + magic;
    const V n = shifted - magic;
    // ln 2 in two parts, the first short enough for n·part to be exact
    const V r = (low - n * 0.693359375f) + n * 2.12194440e-4f;
    V series = V{} + 1.3926181810489343e-3f;
    series = series * r + 8.363177629994445e-3f;
    series = series * r + 4.1666554627878084e-2f;
    series = series * r + 1.6666576998242924e-1f;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    UInt bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    V power;
    memcpy(&power, &bits, sizeof power);
    return series * power;
}

// The same in double, for x ≤ 709, never below exp(-708) = 3e-308: P of degree 9 errs by 2e-17.
template <class V, class UInt>
inline V exp_double(V x) {
    const double magic = 6755399441055744.0;  // 1.5·2⁵²
    const V low = larger(x, V{} - 708.0);
    const V shifted = low * 1.4426950408889634 + magic;
    const V n = shifted - magic;
    const V r = (low - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    V series = V{} + 2.510038319586702e-8;
    series = series * r + 2.7620085455018414e-7;
    series = series * r + 2.7557268464831627e-6;
    series = series * r + 2.4801521302241082e-5;
    series = series * r + 1.9841269863050506e-4;
    series = series * r + 1.388888891720967e-3;
    series = series * r + 8.333333333330063e-3;
    series = series * r + 4.1666666666624136e-2;
    series = series * r + 1.6666666666666669e-1;
    series = series * r + 0.5;
    series = series * r + 1.0;
    series = series * r + 1.0;
    UInt bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 52) + 0x3ff0000000000000u;
    V power;
    memcpy(&power, &bits, sizeof power);
    return series * power;
}

static inline float vector_exp(float x) { return exp_float<float, uint32_t>(x); }
static inline double vector_exp(double x) { return exp_double<double, uint64_t>(x); }
static inline Vec<float> vector_exp(Vec<float> x) { return exp_float<Vec<float>, Vec<uint32_t>>(x); }
static inline Vec<double> vector_exp(Vec<double> x) { return exp_double<Vec<double>, Vec<uint64_t>>(x); }

}  // namespace ief::IEF_ISA
