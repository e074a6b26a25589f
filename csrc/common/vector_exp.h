// exp() for `#pragma omp simd` loops: every ISA namespace gets a copy of its own.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef IEF_ISA
#error "vector_exp.h is for files that are compiled once per instruction set"
#endif

namespace ief::IEF_ISA {

// exp(x) for x ≤ 88 to about 1 ulp, never below exp(-87) = 1.6e-38; NaN gives NaN.
// x = n·ln 2 + r with |r| ≤ 0.35: the Taylor series of exp(r) to r⁷ errs by 5e-9, and 2ⁿ goes into the exponent bits.
static inline float vector_exp(float x) {
    const float magic = 12582912.0f;  // 1.5·2²³: adding it rounds to the nearest integer
    const float low = x < -87.0f ? -87.0f : x;
    const float shifted = low * 1.44269504f + magic;
    const float n = shifted - magic;
    // ln 2 in two parts, the first short enough for n·part to be exact
    const float r = (low - n * 0.693359375f) + n * 2.12194440e-4f;
    float series = 1.0f / 5040.0f;
    series = series * r + 1.0f / 720.0f;
    series = series * r + 1.0f / 120.0f;
    series = series * r + 1.0f / 24.0f;
    series = series * r + 1.0f / 6.0f;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, sizeof power);
    return series * power;
}

static inline double vector_exp(double x) { return ::exp(x); }

}  // namespace ief::IEF_ISA
