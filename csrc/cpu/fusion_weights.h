// Weights and variances of two beliefs, element by element: what the kernels of both fusions begin with.
#pragma once

#include "common/vector_exp.h"
#include "cpu/precision_fusion.h"

namespace ief::IEF_ISA {
namespace {

template <class E>
bool is_valid(const FusionInputs<E>& in, int64_t row) {
    return !in.lengths || row % in.steps < in.lengths[row / in.steps];
}

template <class V>
struct Weights {
    V w_img, w_evt;                  // normalised weights
    V var;                           // fused variance
    V slope_img, slope_evt;          // d w_img/d logvar_img (negated), d w_evt/d logvar_evt (negated)
    V var_slope_img, var_slope_evt;  // d var/d logvar, before saturation is counted
    V u_img, u_evt;                  // variances without eps
    V follow_img, follow_evt;        // d log(u + eps)/d logvar, before saturation is counted
};

template <class T, bool Saturated, class V = Vec<T>>
inline Weights<V> weigh(V lv_i, V lv_e, V c_i, V c_e, T eps, T limit) {
    Weights<V> out;
    const V shift = Saturated ? larger(larger(lv_i, lv_e) - limit, V{}) : V{};
    V u_i = c_i * vector_exp(Saturated ? lv_i - shift : lv_i);
    V u_e = c_e * vector_exp(Saturated ? lv_e - shift : lv_e);
    V a_i = u_i + eps, a_e = u_e + eps;
    out.follow_img = u_i / a_i;
    out.follow_evt = u_e / a_e;
    V h = T(1) / (a_i + a_e);
    out.w_img = a_e * h;
    out.w_evt = a_i * h;
    out.slope_img = out.w_img * (u_i * h);
    out.slope_evt = out.w_evt * (u_e * h);
    V v_i = out.w_img, v_e = out.w_evt;
    if (Saturated) {
        u_i = c_i * vector_exp(smaller(lv_i, splat(limit)));
        u_e = c_e * vector_exp(smaller(lv_e, splat(limit)));
        a_i = u_i + eps, a_e = u_e + eps;
        h = T(1) / (a_i + a_e);
        v_i = a_e * h;
        v_e = a_i * h;
    }
    out.var = smaller(a_i, a_e) * larger(v_i, v_e);
    out.var_slope_img = (u_i * v_i) * v_i;
    out.var_slope_evt = (u_e * v_e) * v_e;
    out.u_img = u_i;
    out.u_evt = u_e;
    return out;
}

// The largest variance that a tensor holds.
constexpr float kLargestHalf = 65504.0f;
inline Vec<float> cut(Vec<float> var, const float16*) { return var > kLargestHalf ? splat(kLargestHalf) : var; }
template <class V, class E>
inline V cut(V var, const E*) { return var; }
// The gradient of a variance that may have been cut.
inline Vec<float> through_cut(Vec<float> grad, Vec<float> var, const float16*) {
    return var > kLargestHalf ? Vec<float>{} : grad;
}
template <class V, class E>
inline V through_cut(V grad, V, const E*) { return grad; }

template <class E, class T = Arithmetic<E>>
bool any_above(const E* a, const E* b, int64_t n, T limit) {
    Vec<T> largest{};
    over<T>(n, false, [&](int64_t d, auto io) {
        largest = larger(larger(largest, io.load(a + d)), io.load(b + d));  // passes over NaN
    });
    return any(largest > limit);
}

}  // namespace
}  // namespace ief::IEF_ISA
