// Fusion of two beliefs and its loss terms, forward and backward, one pass over the tensors each.
//
// With u = c·exp(logvar), a = u + eps, s = a_i + a_e:  w_i = a_e/s, w_e = a_i/s, mean = w_i·mu_i + w_e·mu_e,
// var = a_i·a_e/s. A row holding a logvar above `limit` takes the Saturated path: weights from both variances divided
// by exp(shift), var and KL from logvar cut at the limit, so that nothing overflows.
//
// Gradient: with G = grad_mean·(mu_i - mu_e) + grad_wi - grad_we and h = 1/s
//   d mean/d mu_m = w_m
//   logvar_i: -G·w_i·u_i·h + grad_var·w_i²·u_i        logvar_e: +G·w_e·u_e·h + grad_var·w_e²·u_e
// KL over n valid rows: d/d mu = mu/(n·dim), d/d logvar = -(1 - u)/(2·n·dim); c like logvar, divided by c.
// cosine: d cos/d mu_i = mu_e/(N_i·N_e) - cos·mu_i/N_i²;  norm: d |N_i - N_e|/d mu_i = sign(N_i - N_e)·mu_i/N_i.
//
// float16 variances end at 65504, and no gradient passes where one was cut.
//
// Every sum has a fixed order (rows, or fixed blocks of rows), so results do not depend on the number of threads.
#include "cpu/precision_fusion.h"

#include <math.h>

#include "cpu/fusion_weights.h"

namespace ief::IEF_ISA {
namespace {

constexpr int64_t kChunk = 512;  // columns summed in T before the sum goes on in double

template <class E>
int64_t valid_rows(const FusionInputs<E>& in) {
    if (!in.lengths || in.steps == 0) return in.rows;
    int64_t count = 0;
    for (int64_t b = 0; b < in.rows / in.steps; ++b) count += larger<int64_t>(0, smaller(in.lengths[b], in.steps));
    return count;
}

// The next row: it is not in a cache yet, and the hardware's prefetcher stops at the end of each page.
template <class... Pointers>
inline void prefetch_all(int64_t d, Pointers... rows) { (__builtin_prefetch(rows + d), ...); }

struct RowSums {
    double kl_img = 0, kl_evt = 0;  // Σ logvar - mu² - u
    double square_img = 0, square_evt = 0, dot = 0;
};

template <bool Saturated, bool Fuse, bool Terms, class E, class T = Arithmetic<E>>
void forward_row(const FusionInputs<E>& in, const FusionOutputs<E>& out, int64_t row, bool streamed, RowSums& sums) {
    const int64_t at = row * in.dim;
    const T eps = in.eps, limit = in.limit;
    for (int64_t start = 0; start < in.dim; start += kChunk) {
        const E *mu_i = in.mu_img + at + start, *lv_i = in.logvar_img + at + start;
        const E *mu_e = in.mu_evt + at + start, *lv_e = in.logvar_evt + at + start;
        const T *c_i = in.c_img + start, *c_e = in.c_evt + start;
        E* mean = Fuse ? out.mean + at + start : nullptr;
        E* var = Fuse ? out.var + at + start : nullptr;
        E* w_i = Fuse ? out.w_img + at + start : nullptr;
        E* w_e = Fuse ? out.w_evt + at + start : nullptr;
        Vec<T> kl_i{}, kl_e{}, sq_i{}, sq_e{}, dot{};
        over<T>(smaller(kChunk, in.dim - start), streamed, [&](int64_t d, auto io) {
            prefetch_all(d + in.dim, mu_i, lv_i, mu_e, lv_e);
            const Vec<T> m_i = io.load(mu_i + d), m_e = io.load(mu_e + d);
            const Vec<T> l_i = io.load(lv_i + d), l_e = io.load(lv_e + d);
            const auto w = weigh<T, Saturated>(l_i, l_e, io.load(c_i + d), io.load(c_e + d), eps, limit);
            if (Fuse) {
                io.stream(mean + d, w.w_img * m_i + w.w_evt * m_e);
                io.stream(var + d, cut(w.var, var));
                io.stream(w_i + d, w.w_img);
                io.stream(w_e + d, w.w_evt);
            }
            if (Terms) {  // lanes beyond the end add 0: their c is 0, and so is u
                kl_i += (l_i - w.u_img) - m_i * m_i;
                kl_e += (l_e - w.u_evt) - m_e * m_e;
                sq_i += m_i * m_i;
                sq_e += m_e * m_e;
                dot += m_i * m_e;
            }
        });
        if (Terms) {
            sums.kl_img += sum_of<T>(kl_i), sums.kl_evt += sum_of<T>(kl_e);
            sums.square_img += sum_of<T>(sq_i), sums.square_evt += sum_of<T>(sq_e), sums.dot += sum_of<T>(dot);
        }
    }
}

template <bool Fuse, bool Terms, class E, class T = Arithmetic<E>>
void forward(const FusionInputs<E>& in, const FusionOutputs<E>& out) {
    const int64_t dim = in.dim;
    E* const fields[] = {out.mean, out.var, out.w_img, out.w_evt};
    const bool streamed = Fuse && past_caches(in.rows, dim, fields);
    double log_c[2] = {0, 0};
    if (Terms) {
        for (int64_t d = 0; d < dim; ++d) {
            log_c[0] += ::log(double(in.c_img[d]));
            log_c[1] += ::log(double(in.c_evt[d]));
        }
    }
#pragma omp parallel num_threads(in.threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < in.rows; ++row) {
            const int64_t at = row * dim;
            if (!is_valid(in, row)) {
                if (Fuse)
                    for (E* field : fields) memset((void*)(field + at), 0, dim * sizeof(E));
                if (Terms) memset(out.partial + 4 * row, 0, 4 * sizeof(double));
                continue;
            }
            RowSums sums;
            if (any_above(in.logvar_img + at, in.logvar_evt + at, dim, in.limit))
                forward_row<true, Fuse, Terms>(in, out, row, streamed, sums);
            else
                forward_row<false, Fuse, Terms>(in, out, row, streamed, sums);
            if (Terms) {
                const double norm_i = ::sqrt(sums.square_img), norm_e = ::sqrt(sums.square_evt);
                const bool alive = norm_i > 0 && norm_e > 0;
                double* partial = out.partial + 4 * row;
                partial[0] = -0.5 * (dim + log_c[0] + sums.kl_img);
                partial[1] = -0.5 * (dim + log_c[1] + sums.kl_evt);
                // NaN inputs must come out as NaN, a zero vector as cosine 0
                const bool zero = sums.square_img == 0 || sums.square_evt == 0;
                partial[2] = alive || !zero ? 1 - sums.dot / norm_i / norm_e : 1.0;
                partial[3] = ::fabs(norm_i - norm_e);
            }
        }
        if (streamed) finish_streams();
    }
    if (Terms) {
        const int64_t valid = valid_rows(in);
        const double positions = valid ? 1.0 / double(valid) : 0.0, elements = dim ? positions / double(dim) : 0.0;
        double total[4] = {0, 0, 0, 0};
        for (int64_t row = 0; row < in.rows; ++row)
            for (int k = 0; k < 4; ++k) total[k] += out.partial[4 * row + k];
        for (int k = 0; k < 4; ++k) out.terms[k] = T(total[k] * (k < 2 ? elements : positions));
    }
}

// What the loss terms add to the gradient of one row: mu_m gets own_m·mu_m + cross·mu_other, logvar_m -kl_m/2·(1 - u).
template <class T>
struct TermSlopes {
    T own_img = 0, own_evt = 0, cross = 0, kl_img = 0, kl_evt = 0;
};

template <class E, class T = Arithmetic<E>>
TermSlopes<T> term_slopes(const FusionInputs<E>& in, const T* g, int64_t row, double per_position) {
    double square_i = 0, square_e = 0, dot = 0;
    for (int64_t start = 0; start < in.dim; start += kChunk) {
        const E *mu_i = in.mu_img + row * in.dim + start, *mu_e = in.mu_evt + row * in.dim + start;
        Vec<T> sq_i{}, sq_e{}, product{};
        over<T>(smaller(kChunk, in.dim - start), false, [&](int64_t d, auto io) {
            const Vec<T> m_i = io.load(mu_i + d), m_e = io.load(mu_e + d);
            sq_i += m_i * m_i;
            sq_e += m_e * m_e;
            product += m_i * m_e;
        });
        square_i += sum_of<T>(sq_i), square_e += sum_of<T>(sq_e), dot += sum_of<T>(product);
    }
    const double norm_i = ::sqrt(square_i), norm_e = ::sqrt(square_e);
    const double kl_i = g[0] * per_position / in.dim, kl_e = g[1] * per_position / in.dim;
    const double grad_cosine = g[2] * per_position;
    const double grad_norm = g[3] * per_position * (norm_i > norm_e ? 1 : norm_i < norm_e ? -1 : 0);
    double own_i = kl_i, own_e = kl_e, cross = 0;
    if (norm_i > 0) own_i += grad_norm / norm_i;
    if (norm_e > 0) own_e -= grad_norm / norm_e;
    if (norm_i > 0 && norm_e > 0) {
        const double cosine = dot / norm_i / norm_e;
        cross = -grad_cosine / norm_i / norm_e;
        own_i += grad_cosine * cosine / norm_i / norm_i;
        own_e += grad_cosine * cosine / norm_e / norm_e;
    }
    TermSlopes<T> out;
    out.own_img = T(own_i), out.own_evt = T(own_e), out.cross = T(cross), out.kl_img = T(kl_i), out.kl_evt = T(kl_e);
    return out;
}

template <bool Saturated, bool WithC, class E, class T = Arithmetic<E>>
void backward_row(const FusionInputs<E>& in, const FusionGradients<E>& g, int64_t row, bool streamed,
                  const TermSlopes<T>& slopes, T* sum_i, T* sum_e) {
    const int64_t at = row * in.dim;
    const T eps = in.eps, limit = in.limit;
    const E *mu_i = in.mu_img + at, *lv_i = in.logvar_img + at, *mu_e = in.mu_evt + at, *lv_e = in.logvar_evt + at;
    const T *c_i = in.c_img, *c_e = in.c_evt;
    const E* grad_mean = g.grad_mean ? g.grad_mean + at : g.zeros;
    const E* grad_var = g.grad_var ? g.grad_var + at : g.zeros;
    const E* grad_wi = g.grad_w_img ? g.grad_w_img + at : g.zeros;
    const E* grad_we = g.grad_w_evt ? g.grad_w_evt + at : g.zeros;
    E *grad_mu_i = g.grad_mu_img + at, *grad_lv_i = g.grad_logvar_img + at;
    E *grad_mu_e = g.grad_mu_evt + at, *grad_lv_e = g.grad_logvar_evt + at;
    const TermSlopes<T> s = slopes;
    const T half_i = s.kl_img / 2, half_e = s.kl_evt / 2;
    over<T>(in.dim, streamed, [&](int64_t d, auto io) {
        using V = Vec<T>;
        prefetch_all(d + in.dim, mu_i, lv_i, mu_e, lv_e, grad_mean, grad_var);
        const V m_i = io.load(mu_i + d), m_e = io.load(mu_e + d), l_i = io.load(lv_i + d), l_e = io.load(lv_e + d);
        const auto w = weigh<T, Saturated>(l_i, l_e, io.load(c_i + d), io.load(c_e + d), eps, limit);
        const V grad_m = io.load(grad_mean + d), grad_v = through_cut(io.load(grad_var + d), w.var, grad_var);
        io.stream(grad_mu_i + d, w.w_img * grad_m + s.own_img * m_i + s.cross * m_e);
        io.stream(grad_mu_e + d, w.w_evt * grad_m + s.own_evt * m_e + s.cross * m_i);
        const V change = grad_m * (m_i - m_e) + (io.load(grad_wi + d) - io.load(grad_we + d));
        const V share_i = -change * w.slope_img, share_e = change * w.slope_evt;
        const V rest_i = grad_v * w.var_slope_img + half_i * w.u_img, rest_e = grad_v * w.var_slope_evt + half_e * w.u_evt;
        // a saturated variance no longer follows its logvar, but still its factor c
        const V follows_i = Saturated ? (l_i > limit ? V{} : rest_i) : rest_i;
        const V follows_e = Saturated ? (l_e > limit ? V{} : rest_e) : rest_e;
        io.stream(grad_lv_i + d, share_i + follows_i - half_i);
        io.stream(grad_lv_e + d, share_e + follows_e - half_e);
        if (WithC) {
            io.store(sum_i + d, io.load(sum_i + d) + (share_i + rest_i - half_i));
            io.store(sum_e + d, io.load(sum_e + d) + (share_e + rest_e - half_e));
        }
    });
}

template <bool WithC, class E, class T = Arithmetic<E>>
void backward(const FusionInputs<E>& in, const FusionGradients<E>& g) {
    const int64_t dim = in.dim, valid = valid_rows(in);
    E* const fields[] = {g.grad_mu_img, g.grad_logvar_img, g.grad_mu_evt, g.grad_logvar_evt};
    const bool streamed = past_caches(in.rows, dim, fields);
    const double per_position = valid ? 1.0 / double(valid) : 0.0;
#pragma omp parallel num_threads(in.threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < fusion_blocks; ++block) {
            T* sum_i = WithC ? g.partial + 2 * block * dim : nullptr;
            T* sum_e = WithC ? sum_i + dim : nullptr;
            if (WithC) memset(sum_i, 0, 2 * dim * sizeof(T));
            const int64_t end = in.rows * (block + 1) / fusion_blocks;
            for (int64_t row = in.rows * block / fusion_blocks; row < end; ++row) {
                const int64_t at = row * dim;
                if (!is_valid(in, row)) {
                    for (E* field : fields) memset((void*)(field + at), 0, dim * sizeof(E));
                    continue;
                }
                TermSlopes<T> slopes;
                if (g.grad_terms) slopes = term_slopes(in, g.grad_terms, row, per_position);
                if (any_above(in.logvar_img + at, in.logvar_evt + at, dim, in.limit))
                    backward_row<true, WithC>(in, g, row, streamed, slopes, sum_i, sum_e);
                else
                    backward_row<false, WithC>(in, g, row, streamed, slopes, sum_i, sum_e);
            }
        }
        if (streamed) finish_streams();
    }
    if (WithC) {
        for (int64_t d = 0; d < dim; ++d) {
            double total_i = 0, total_e = 0;
            for (int64_t block = 0; block < fusion_blocks; ++block) {
                total_i += g.partial[2 * block * dim + d];
                total_e += g.partial[(2 * block + 1) * dim + d];
            }
            g.grad_c_img[d] = T(total_i / in.c_img[d]);
            g.grad_c_evt[d] = T(total_e / in.c_evt[d]);
        }
    }
}

}  // namespace

template <class E>
void fusion_forward(const FusionInputs<E>& in, const FusionOutputs<E>& out) {
    if (out.mean && out.partial)
        forward<true, true>(in, out);
    else if (out.mean)
        forward<true, false>(in, out);
    else if (out.partial)
        forward<false, true>(in, out);
}

template <class E>
void fusion_backward(const FusionInputs<E>& in, const FusionGradients<E>& g) {
    if (g.partial)
        backward<true>(in, g);
    else
        backward<false>(in, g);
}

#define IEF_INSTANTIATE(E)                                                           \
    template void fusion_forward<E>(const FusionInputs<E>&, const FusionOutputs<E>&); \
    template void fusion_backward<E>(const FusionInputs<E>&, const FusionGradients<E>&);
IEF_INSTANTIATE(float)
IEF_INSTANTIATE(double)
IEF_INSTANTIATE(bfloat16)
IEF_INSTANTIATE(float16)

}  // namespace ief::IEF_ISA
