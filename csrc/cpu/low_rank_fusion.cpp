// Fusion of two beliefs with low-rank plus diagonal covariances, forward and backward.
//
// With w, v and m̄ of precision_fusion.cpp, α = √w_i, β = √w_e, q = a_i + a_e, z = (mu_i - mu_e)/√q, R = √v, and per
// dimension the rows V_i, V_e of both factors, h = [β·V_i, α·V_e] and j = [α·V_i, -β·V_e]:
//   T = I + Σ h·hᵀ     X = T⁻¹     c = X·Σ h·z     s = j·c     e = j·X·j     f = h·X·j
//   mean = m̄ - R·s     var = v·(1 + e)     w_img = w_i - αβ·f     w_evt = w_e + αβ·f
// T consists of blocks Σ w_e·V_i·V_iᵀ, Σ αβ·V_i·V_eᵀ and Σ w_i·V_e·V_eᵀ, and e and f of the forms p_ii = V_i·X_ii·V_i,
// p_ie = V_i·X_ie·V_e and p_ee = V_e·X_ee·V_e. So h and j are never stored.
//
// A row is walked through three times: weights to memory and sums over the dimensions; in the backward pass the sums of
// the gradient of X; results. T has no eigenvalue below 1, so elimination needs no pivots.
//
// Gradient: with gs = -grad_mean·R, ge = grad_var·v, gw = grad_wi - grad_we, gf = -gw·αβ
//   u = X·Σ gs·j     B = Σ ge·j·jᵀ + gf·(h·jᵀ + j·hᵀ)/2     G = -(u·cᵀ + c·uᵀ)/2 - X·B·X, the gradient of T
//   V_i: 2·(w_e·G_ii + κ_ii·X_ii)·V_i + 2·(αβ·G_ie + κ_ie·X_ie)·V_e + zβ·u_i + gs·α·c_i, V_e alike, where κ·V·Vᵀ are the
//   blocks of B's terms. The gradient of θ, the logarithm of a_i/a_e, collects what depends on weights alone.
//
// Every sum has a fixed order (dimensions, rows, fixed blocks of rows), so results do not depend on the number of threads.
#include "cpu/low_rank_fusion.h"

#include <math.h>

#include "cpu/fusion_weights.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace ief::IEF_ISA {
namespace {

constexpr int64_t kMostWidth = 2 * kMostColumns;

inline int64_t this_thread() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

template <class V>
inline V root(V v) {
    V out;
    for (size_t k = 0; k < sizeof(V) / sizeof(v[0]); ++k) out[k] = __builtin_sqrt(v[k]);
    return out;
}
#if defined(__AVX512F__)
inline Vec<float> root(Vec<float> v) { return Vec<float>(_mm512_sqrt_ps(__m512(v))); }
inline Vec<double> root(Vec<double> v) { return Vec<double>(_mm512_sqrt_pd(__m512d(v))); }
#elif defined(__AVX2__)
inline Vec<float> root(Vec<float> v) { return Vec<float>(_mm256_sqrt_ps(__m256(v))); }
inline Vec<double> root(Vec<double> v) { return Vec<double>(_mm256_sqrt_pd(__m256d(v))); }
#endif

// The sum of all lanes, in halves.
template <class T>
inline T lanes_sum(Vec<T> v) {
    T all[kLanes<T>];
    memcpy(all, &v, sizeof all);
    for (int64_t half = kLanes<T> / 2; half > 0; half /= 2)
        for (int64_t k = 0; k < half; ++k) all[k] += all[k + half];
    return all[0];
}

template <class T>
inline T smallest() { return sizeof(T) == 4 ? T(1.17549435e-38f) : T(2.2250738585072014e-308); }

// Numbers per dimension of one row.
enum Array { kWI, kWE, kAB, kAlpha, kBeta, kR, kZ, kZB, kZA, kMean, kVar, kGs, kGsA, kGsB, kGe, kGw, kII, kIE, kEE };
static_assert(kEE < low_rank_arrays, "the workspace has room for all arrays");

template <class T>
struct Row {
    T* room;
    int64_t width;
    T* operator[](Array which) const { return room + which * width; }
};

// What is computed of a row before its dimensions are finished one by one. Matrices are (2r, 2r), r = columns.
template <class T>
struct Small {
    T x[kMostWidth * kMostWidth];     // X
    T g[kMostWidth * kMostWidth];     // G
    T c[kMostWidth], u[kMostWidth];
};

// out[k] = Σ_d scale·columns[k]
template <class T>
void weighted_sums(const T* scale, const T* columns, int64_t count, int64_t width, T sign, T* out) {
    for (int64_t k = 0; k < count; k += kColumnGroup) {
        Vec<T> sum[kColumnGroup] = {};
        for (int64_t d = 0; d < width; d += kLanes<T>) {
            const Vec<T> s = load(scale + d);
            for (int64_t n = 0; n < kColumnGroup; ++n) sum[n] += s * load(columns + (k + n) * width + d);
        }
        for (int64_t n = 0; n < kColumnGroup; ++n) out[k + n] = sign * lanes_sum<T>(sum[n]);
    }
}

// out[i, k] = Σ_d scale·a[i]·b[k]; for a = b the part above the diagonal is mirrored.
template <class T>
void gram(const T* scale, const T* a, const T* b, int64_t count, int64_t width, T* out, int64_t stride) {
    for (int64_t i = 0; i < count; i += kColumnGroup)
        for (int64_t k = 0; k < (a == b ? i + 1 : count); k += kColumnGroup) {
            Vec<T> sum[kColumnGroup][kColumnGroup] = {};
            for (int64_t d = 0; d < width; d += kLanes<T>) {
                const Vec<T> s = load(scale + d);
                Vec<T> right[kColumnGroup];
                for (int64_t n = 0; n < kColumnGroup; ++n) right[n] = load(b + (k + n) * width + d);
                for (int64_t m = 0; m < kColumnGroup; ++m) {
                    const Vec<T> left = s * load(a + (i + m) * width + d);
                    for (int64_t n = 0; n < kColumnGroup; ++n) sum[m][n] += left * right[n];
                }
            }
            for (int64_t m = 0; m < kColumnGroup; ++m)
                for (int64_t n = 0; n < kColumnGroup; ++n) {
                    const T value = lanes_sum<T>(sum[m][n]);
                    out[(i + m) * stride + k + n] = value;
                    if (a == b) out[(k + n) * stride + i + m] = value;
                }
        }
}

// The symmetric matrix of blocks Σ ii·V_i·V_iᵀ, Σ ie·V_i·V_eᵀ and Σ ee·V_e·V_eᵀ.
template <class T>
void blocks(const T* ii, const T* ie, const T* ee, const T* factors, int64_t r, int64_t width, T* out) {
    const int64_t n = 2 * r;
    const T *f_i = factors, *f_e = factors + r * width;
    gram(ii, f_i, f_i, r, width, out, n);
    gram(ie, f_i, f_e, r, width, out + r, n);
    gram(ee, f_e, f_e, r, width, out + r * n + r, n);
    for (int64_t i = 0; i < r; ++i)
        for (int64_t k = 0; k < r; ++k) out[(r + k) * n + i] = out[i * n + r + k];
}

// The inverse of a symmetric matrix without eigenvalues below 1, in place, by Gauss and Jordan.
template <class T>
void invert(T* a, int64_t n) {
    for (int64_t k = 0; k < n; ++k) {
        const T pivot = 1 / a[k * n + k];
        a[k * n + k] = 1;
        for (int64_t l = 0; l < n; ++l) a[k * n + l] *= pivot;
        for (int64_t i = 0; i < n; ++i) {
            if (i == k) continue;
            const T factor = a[i * n + k];
            a[i * n + k] = 0;
            for (int64_t l = 0; l < n; ++l) a[i * n + l] -= factor * a[k * n + l];
        }
    }
}

template <class T>
void multiply(const T* a, const T* b, int64_t n, T* out) {  // (n, n) each
    for (int64_t i = 0; i < n; ++i) {
        T row[kMostWidth] = {};
        for (int64_t k = 0; k < n; ++k)
            for (int64_t l = 0; l < n; ++l) row[l] += a[i * n + k] * b[k * n + l];
        memcpy(out + i * n, row, n * sizeof(T));
    }
}

template <class T>
void multiply_vector(const T* a, const T* b, int64_t n, T* out) {  // a symmetric
    for (int64_t i = 0; i < n; ++i) out[i] = 0;
    for (int64_t k = 0; k < n; ++k)
        for (int64_t i = 0; i < n; ++i) out[i] += a[k * n + i] * b[k];
}

// Weights and variances of a row to memory.
template <bool Saturated, class E, class T = Arithmetic<E>>
void weigh_row(const LowRankInputs<E>& in, int64_t row, const Row<T>& at) {
    using V = Vec<T>;
    const FusionInputs<E>& p = in.beliefs;
    const int64_t start = row * p.dim;
    const E *mu_i = p.mu_img + start, *lv_i = p.logvar_img + start;
    const E *mu_e = p.mu_evt + start, *lv_e = p.logvar_evt + start;
    over<T>(p.dim, false, [&](int64_t d, auto io) {
        const V m_i = io.load(mu_i + d), m_e = io.load(mu_e + d);
        const auto w = weigh<T, Saturated>(io.load(lv_i + d), io.load(lv_e + d), io.load(p.c_img + d),
                                           io.load(p.c_evt + d), p.eps, p.limit);
        // not 0, so that a gradient may be divided by what was multiplied
        const V alpha = root(larger(w.w_img, splat(smallest<T>())));
        const V beta = root(larger(w.w_evt, splat(smallest<T>())));
        const V z = (m_i - m_e) / root((w.u_img + p.eps) + (w.u_evt + p.eps));
        store(at[kWI] + d, w.w_img), store(at[kWE] + d, w.w_evt), store(at[kAB] + d, alpha * beta);
        store(at[kAlpha] + d, alpha), store(at[kBeta] + d, beta), store(at[kR] + d, root(w.var));
        store(at[kZ] + d, z), store(at[kZB] + d, z * beta), store(at[kZA] + d, z * alpha);
        store(at[kMean] + d, w.w_img * m_i + w.w_evt * m_e), store(at[kVar] + d, w.var);
    });
}

// X and c of a row whose weights are in memory.
template <class E, class T = Arithmetic<E>>
void solve(const LowRankInputs<E>& in, const Row<T>& at, Small<T>& small) {
    const int64_t r = in.columns, n = 2 * r, width = in.width;
    T b[kMostWidth];
    blocks(at[kWE], at[kAB], at[kWI], in.factors, r, width, small.x);
    for (int64_t k = 0; k < n; ++k) small.x[k * n + k] += 1;
    weighted_sums<T>(at[kZB], in.factors, r, width, 1, b);
    weighted_sums<T>(at[kZA], in.factors + r * width, r, width, 1, b + r);
    invert(small.x, n);
    multiply_vector(small.x, b, n, small.c);
}

template <class V>
struct Forms {
    V p_ii{}, p_ie{}, p_ee{};  // V_i·X_ii·V_i, V_i·X_ie·V_e, V_e·X_ee·V_e
    V s_i{}, s_e{};            // V_i·c_i, V_e·c_e
};

template <class T, class V = Vec<T>>
inline Forms<V> forms_of(const T* factors, int64_t r, int64_t width, int64_t d, const Small<T>& small) {
    const int64_t n = 2 * r;
    const T *f_i = factors + d, *f_e = f_i + r * width;
    Forms<V> out;
    for (int64_t k = 0; k < r; k += kColumnGroup) {
        V ii[kColumnGroup] = {}, ie[kColumnGroup] = {}, ee[kColumnGroup] = {};
        const T *x_i = small.x + k * n, *x_e = small.x + (r + k) * n + r;
        for (int64_t l = 0; l < r; ++l) {
            const V v_i = load(f_i + l * width), v_e = load(f_e + l * width);
            for (int64_t m = 0; m < kColumnGroup; ++m) {
                ii[m] += x_i[m * n + l] * v_i;
                ie[m] += x_i[m * n + r + l] * v_e;
                ee[m] += x_e[m * n + l] * v_e;
            }
        }
        for (int64_t m = 0; m < kColumnGroup; ++m) {
            const V v_i = load(f_i + (k + m) * width), v_e = load(f_e + (k + m) * width);
            out.p_ii += v_i * ii[m], out.p_ie += v_i * ie[m], out.p_ee += v_e * ee[m];
            out.s_i += small.c[k + m] * v_i, out.s_e += small.c[r + k + m] * v_e;
        }
    }
    return out;
}

template <class E, class T = Arithmetic<E>>
void forward_row(const LowRankInputs<E>& in, const LowRankOutputs<E>& out, int64_t row, bool streamed,
                 const Row<T>& at, Small<T>& small) {
    using V = Vec<T>;
    const FusionInputs<E>& p = in.beliefs;
    const int64_t start = row * p.dim;
    if (any_above(p.logvar_img + start, p.logvar_evt + start, p.dim, p.limit))
        weigh_row<true>(in, row, at);
    else
        weigh_row<false>(in, row, at);
    solve(in, at, small);
    E *mean = out.mean + start, *var = out.var + start, *w_i = out.w_img + start, *w_e = out.w_evt + start;
    over<T>(p.dim, streamed, [&](int64_t d, auto io) {
        const auto f = forms_of<T>(in.factors, in.columns, in.width, d, small);
        const V wi = load(at[kWI] + d), we = load(at[kWE] + d), ab = load(at[kAB] + d);
        const V s = load(at[kAlpha] + d) * f.s_i - load(at[kBeta] + d) * f.s_e;
        const V e = wi * f.p_ii - T(2) * ab * f.p_ie + we * f.p_ee;
        const V moved = ab * (ab * (f.p_ii - f.p_ee) + (wi - we) * f.p_ie);
        io.stream(mean + d, load(at[kMean] + d) - load(at[kR] + d) * s);
        io.stream(var + d, cut(load(at[kVar] + d) * (T(1) + e), var));
        io.stream(w_i + d, wi - moved);
        io.stream(w_e + d, we + moved);
    });
}

// Gradients of s, e and f, and those of the blocks of X, to memory.
template <class E, class T = Arithmetic<E>>
void upstream(const LowRankInputs<E>& in, const LowRankGradients<E>& g, int64_t row, const Row<T>& at,
              const Small<T>& small) {
    using V = Vec<T>;
    const int64_t dim = in.beliefs.dim, start = row * dim;
    const E* grad_mean = g.grad_mean ? g.grad_mean + start : g.zeros;
    const E* grad_var = g.grad_var ? g.grad_var + start : g.zeros;
    const E* grad_wi = g.grad_w_img ? g.grad_w_img + start : g.zeros;
    const E* grad_we = g.grad_w_evt ? g.grad_w_evt + start : g.zeros;
    over<T>(dim, false, [&](int64_t d, auto io) {
        const V wi = load(at[kWI] + d), we = load(at[kWE] + d), ab = load(at[kAB] + d), v = load(at[kVar] + d);
        V grad_v = io.load(grad_var + d);
        if (sizeof(E) == 2 && g.grad_var) {  // a variance that float16 cut has no gradient
            const auto f = forms_of<T>(in.factors, in.columns, in.width, d, small);
            grad_v = through_cut(grad_v, v * (T(1) + wi * f.p_ii - T(2) * ab * f.p_ie + we * f.p_ee), grad_var);
        }
        const V gs = -io.load(grad_mean + d) * load(at[kR] + d), ge = grad_v * v;
        const V gw = io.load(grad_wi + d) - io.load(grad_we + d), gf = -gw * ab;
        store(at[kGs] + d, gs), store(at[kGsA] + d, gs * load(at[kAlpha] + d));
        store(at[kGsB] + d, gs * load(at[kBeta] + d)), store(at[kGe] + d, ge), store(at[kGw] + d, gw);
        store(at[kII] + d, ge * wi + gf * ab);
        store(at[kIE] + d, T(0.5) * gf * (wi - we) - ge * ab);
        store(at[kEE] + d, ge * we - gf * ab);
    });
}

// u and G of a row.
template <class E, class T = Arithmetic<E>>
void solve_backward(const LowRankInputs<E>& in, const Row<T>& at, Small<T>& small) {
    const int64_t r = in.columns, n = 2 * r, width = in.width;
    T sums[kMostWidth], product[kMostWidth * kMostWidth];
    weighted_sums<T>(at[kGsA], in.factors, r, width, 1, sums);
    weighted_sums<T>(at[kGsB], in.factors + r * width, r, width, -1, sums + r);
    multiply_vector(small.x, sums, n, small.u);
    blocks(at[kII], at[kIE], at[kEE], in.factors, r, width, small.g);
    multiply(small.x, small.g, n, product);
    multiply(product, small.x, n, small.g);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < n; ++k)
            small.g[i * n + k] = T(-0.5) * (small.u[i] * small.c[k] + small.c[i] * small.u[k]) - small.g[i * n + k];
}

template <class V>
struct Half {
    V p{}, q{}, t{}, o{};  // own·X·own, own·X·other, own·G·own, own·G·other
    V s{}, u{};            // own·c, own·u
};

// Forms of one modality's row of its factor, and the gradient of that row, added to `sums`.
template <class T, class V = Vec<T>>
inline Half<V> half_of(const T* own, const T* other, int64_t first, int64_t second, int64_t r, int64_t width,
                       const Small<T>& small, V g_own, V x_own, V g_other, V x_other, V scale_u, V scale_c, T* sums) {
    const int64_t n = 2 * r;
    Half<V> out;
    for (int64_t k = 0; k < r; k += kColumnGroup) {
        V x[kColumnGroup] = {}, y[kColumnGroup] = {}, g[kColumnGroup] = {}, h[kColumnGroup] = {};
        const T *xs = small.x + (first + k) * n, *gs = small.g + (first + k) * n;
        for (int64_t l = 0; l < r; ++l) {
            const V a = load(own + l * width), b = load(other + l * width);
            for (int64_t m = 0; m < kColumnGroup; ++m) {
                x[m] += xs[m * n + first + l] * a;
                y[m] += xs[m * n + second + l] * b;
                g[m] += gs[m * n + first + l] * a;
                h[m] += gs[m * n + second + l] * b;
            }
        }
        for (int64_t m = 0; m < kColumnGroup; ++m) {
            const V a = load(own + (k + m) * width);
            out.p += a * x[m], out.q += a * y[m], out.t += a * g[m], out.o += a * h[m];
            out.s += small.c[first + k + m] * a, out.u += small.u[first + k + m] * a;
            const V change = g_own * g[m] + x_own * x[m] + g_other * h[m] + x_other * y[m] +
                             scale_u * small.u[first + k + m] + scale_c * small.c[first + k + m];
            T* sum = sums + (k + m) * width;
            store(sum, load(sum) + change);
        }
    }
    return out;
}

template <bool Saturated, bool WithC, class E, class T = Arithmetic<E>>
void backward_row(const LowRankInputs<E>& in, const LowRankGradients<E>& g, int64_t row, bool streamed,
                  const Row<T>& at, Small<T>& small, T* sums) {
    using V = Vec<T>;
    const FusionInputs<E>& p = in.beliefs;
    const int64_t start = row * p.dim, r = in.columns, width = in.width;
    weigh_row<Saturated>(in, row, at);
    solve(in, at, small);
    upstream(in, g, row, at, small);
    solve_backward(in, at, small);
    const E *mu_i = p.mu_img + start, *lv_i = p.logvar_img + start;
    const E *mu_e = p.mu_evt + start, *lv_e = p.logvar_evt + start;
    const E* grad_mean = g.grad_mean ? g.grad_mean + start : g.zeros;
    E *grad_mu_i = g.grad_mu_img + start, *grad_lv_i = g.grad_logvar_img + start;
    E *grad_mu_e = g.grad_mu_evt + start, *grad_lv_e = g.grad_logvar_evt + start;
    T *sum_c_i = sums + 2 * r * width, *sum_c_e = sum_c_i + width;
    over<T>(p.dim, streamed, [&](int64_t d, auto io) {
        const V wi = load(at[kWI] + d), we = load(at[kWE] + d), ab = load(at[kAB] + d);
        const V alpha = load(at[kAlpha] + d), beta = load(at[kBeta] + d), z = load(at[kZ] + d);
        const V gs = load(at[kGs] + d), ge = load(at[kGe] + d), gw = load(at[kGw] + d), gf = -gw * ab;
        const T *f_i = in.factors + d, *f_e = f_i + r * width;
        const V x_other = T(2) * load(at[kIE] + d), g_other = T(2) * ab;
        const auto i = half_of<T>(f_i, f_e, 0, r, r, width, small, T(2) * we, T(2) * load(at[kII] + d), g_other,
                                  x_other, z * beta, gs * alpha, sums + d);
        const auto e = half_of<T>(f_e, f_i, r, 0, r, width, small, T(2) * wi, T(2) * load(at[kEE] + d), g_other,
                                  x_other, z * alpha, -gs * beta, sums + r * width + d);

        const V m_i = io.load(mu_i + d), m_e = io.load(mu_e + d), l_i = io.load(lv_i + d), l_e = io.load(lv_e + d);
        const V grad_m = io.load(grad_mean + d);
        const auto w = weigh<T, Saturated>(l_i, l_e, io.load(p.c_img + d), io.load(p.c_evt + d), p.eps, p.limit);
        const V a_i = w.u_img + p.eps, a_e = w.u_evt + p.eps, total = T(1) / (a_i + a_e);
        const V grad_z = beta * i.u + alpha * e.u, through = grad_z / root(a_i + a_e);
        io.stream(grad_mu_i + d, wi * grad_m + through);
        io.stream(grad_mu_e + d, we * grad_m - through);

        const V apart = i.p - e.p, f = ab * apart + (wi - we) * i.q;
        const V form = wi * i.p - T(2) * ab * i.q + we * e.p, s = alpha * i.s - beta * e.s;
        const V theta = wi * we * (i.t - e.t - ge * apart - T(2) * gf * i.q - gw - grad_m * (m_i - m_e)) +
                        T(0.5) * ab * (wi - we) * (T(2) * (i.o - ge * i.q) + gf * apart - gw * f) +
                        T(0.5) * (beta * wi * (z * i.u - gs * e.s) - alpha * we * (z * e.u + gs * i.s));
        const V grad_log_var = ge * (T(1) + form) + T(0.5) * gs * s, grad_log_q = T(-0.5) * grad_z * z;
        // d log var/d logvar = u/a·(a_other/q), d log q/d logvar = u/q
        const V rest_i = w.u_img / a_i * (a_e * total) * grad_log_var + w.u_img * total * grad_log_q;
        const V rest_e = w.u_evt / a_e * (a_i * total) * grad_log_var + w.u_evt * total * grad_log_q;
        const V weight_i = theta * w.follow_img, weight_e = -theta * w.follow_evt;
        // a saturated variance no longer follows its logvar, but still its factor c
        io.stream(grad_lv_i + d, weight_i + (Saturated ? (l_i > p.limit ? V{} : rest_i) : rest_i));
        io.stream(grad_lv_e + d, weight_e + (Saturated ? (l_e > p.limit ? V{} : rest_e) : rest_e));
        if (WithC) {
            store(sum_c_i + d, load(sum_c_i + d) + weight_i + rest_i);
            store(sum_c_e + d, load(sum_c_e + d) + weight_e + rest_e);
        }
    });
}

template <bool WithC, class E, class T = Arithmetic<E>>
void backward(const LowRankInputs<E>& in, const LowRankGradients<E>& g) {
    const FusionInputs<E>& p = in.beliefs;
    const int64_t dim = p.dim, width = in.width, rows = 2 * in.columns + 2;
    E* const fields[] = {g.grad_mu_img, g.grad_logvar_img, g.grad_mu_evt, g.grad_logvar_evt};
    const bool streamed = past_caches(p.rows, dim, fields);
#pragma omp parallel num_threads(p.threads)
    {
        const Row<T> at{in.room + this_thread() * low_rank_room(width), width};
        Small<T> small;
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < fusion_blocks; ++block) {
            T* sums = g.partial + block * rows * width;
            memset(sums, 0, rows * width * sizeof(T));
            const int64_t end = p.rows * (block + 1) / fusion_blocks;
            for (int64_t row = p.rows * block / fusion_blocks; row < end; ++row) {
                const int64_t start = row * dim;
                if (!is_valid(p, row)) {
                    for (E* field : fields) memset((void*)(field + start), 0, dim * sizeof(E));
                    continue;
                }
                if (any_above(p.logvar_img + start, p.logvar_evt + start, dim, p.limit))
                    backward_row<true, WithC>(in, g, row, streamed, at, small, sums);
                else
                    backward_row<false, WithC>(in, g, row, streamed, at, small, sums);
            }
        }
        if (streamed) finish_streams();
    }
    for (int64_t k = 0; k < (WithC ? rows : rows - 2) * width; ++k) {
        double total = 0;
        for (int64_t block = 0; block < fusion_blocks; ++block) total += g.partial[block * rows * width + k];
        const int64_t column = k / width, d = k % width;
        if (column < rows - 2)
            g.grad_factors[k] = T(total);
        else if (d < dim && column == rows - 2)
            g.grad_c_img[d] = T(total / p.c_img[d]);
        else if (d < dim)
            g.grad_c_evt[d] = T(total / p.c_evt[d]);
    }
}

}  // namespace

template <class E>
void low_rank_forward(const LowRankInputs<E>& in, const LowRankOutputs<E>& out) {
    using T = Arithmetic<E>;
    const FusionInputs<E>& p = in.beliefs;
    E* const fields[] = {out.mean, out.var, out.w_img, out.w_evt};
    const bool streamed = past_caches(p.rows, p.dim, fields);
#pragma omp parallel num_threads(p.threads)
    {
        const Row<T> at{in.room + this_thread() * low_rank_room(in.width), in.width};
        Small<T> small;
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < p.rows; ++row) {
            if (is_valid(p, row)) {
                forward_row(in, out, row, streamed, at, small);
                continue;
            }
            for (E* field : fields) memset((void*)(field + row * p.dim), 0, p.dim * sizeof(E));
        }
        if (streamed) finish_streams();
    }
}

template <class E>
void low_rank_backward(const LowRankInputs<E>& in, const LowRankGradients<E>& g) {
    if (g.grad_c_img)
        backward<true>(in, g);
    else
        backward<false>(in, g);
}

#define IEF_INSTANTIATE(E)                                                               \
    template void low_rank_forward<E>(const LowRankInputs<E>&, const LowRankOutputs<E>&); \
    template void low_rank_backward<E>(const LowRankInputs<E>&, const LowRankGradients<E>&);
IEF_INSTANTIATE(float)
IEF_INSTANTIATE(double)
IEF_INSTANTIATE(bfloat16)
IEF_INSTANTIATE(float16)

}  // namespace ief::IEF_ISA
