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
// Every sum has a fixed order (rows, or fixed blocks of rows), so results do not depend on the number of threads.
#include "cpu/precision_fusion.h"

#include "common/vector_exp.h"

namespace ief::IEF_ISA {
namespace {

constexpr int64_t kChunk = 512;  // columns summed in T before the sum goes on in double

template <class T>
bool is_valid(const FusionInputs<T>& in, int64_t row) {
    return !in.lengths || row % in.steps < in.lengths[row / in.steps];
}

template <class T>
int64_t valid_rows(const FusionInputs<T>& in) {
    if (!in.lengths || in.steps == 0) return in.rows;
    int64_t count = 0;
    for (int64_t b = 0; b < in.rows / in.steps; ++b) {
        const int64_t length = in.lengths[b];
        count += length < 0 ? 0 : length > in.steps ? in.steps : length;
    }
    return count;
}

template <class T>
struct Weights {
    T w_img, w_evt;    // normalised weights
    T var;             // fused variance
    T slope_img, slope_evt;          // d w_img/d logvar_img (negated), d w_evt/d logvar_evt (negated)
    T var_slope_img, var_slope_evt;  // d var/d logvar, before saturation is counted
    T u_img, u_evt;                  // variances without eps
};

template <class T>
inline T smaller(T a, T b) { return a < b ? a : b; }
template <class T>
inline T larger(T a, T b) { return a < b ? b : a; }

template <class T, bool Saturated>
inline Weights<T> weigh(T lv_i, T lv_e, T c_i, T c_e, T eps, T limit) {
    Weights<T> out;
    const T shift = Saturated ? larger(larger(lv_i, lv_e) - limit, T(0)) : T(0);
    T u_i = c_i * vector_exp(Saturated ? lv_i - shift : lv_i);
    T u_e = c_e * vector_exp(Saturated ? lv_e - shift : lv_e);
    T a_i = u_i + eps, a_e = u_e + eps;
    T h = T(1) / (a_i + a_e);
    out.w_img = a_e * h;
    out.w_evt = a_i * h;
    out.slope_img = out.w_img * (u_i * h);
    out.slope_evt = out.w_evt * (u_e * h);
    T v_i = out.w_img, v_e = out.w_evt;
    if (Saturated) {
        u_i = c_i * vector_exp(smaller(lv_i, limit));
        u_e = c_e * vector_exp(smaller(lv_e, limit));
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

template <class T>
bool any_above(const T* a, const T* b, int64_t n, T limit) {
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t d = 0; d < n; ++d) found |= (a[d] > limit) | (b[d] > limit);
    return found != 0;
}

struct RowSums {
    double kl_img = 0, kl_evt = 0;  // Σ logvar - mu² - u
    double square_img = 0, square_evt = 0, dot = 0;
};

template <class T, bool Saturated, bool Fuse, bool Terms>
void forward_row(const FusionInputs<T>& in, const FusionOutputs<T>& out, int64_t row, RowSums& sums) {
    const int64_t at = row * in.dim;
    const T eps = in.eps, limit = in.limit;
    for (int64_t start = 0; start < in.dim; start += kChunk) {
        const int64_t n = smaller(kChunk, in.dim - start);
        const T *mu_i = in.mu_img + at + start, *lv_i = in.logvar_img + at + start;
        const T *mu_e = in.mu_evt + at + start, *lv_e = in.logvar_evt + at + start;
        const T *c_i = in.c_img + start, *c_e = in.c_evt + start;
        T* mean = Fuse ? out.mean + at + start : nullptr;
        T* var = Fuse ? out.var + at + start : nullptr;
        T* w_i = Fuse ? out.w_img + at + start : nullptr;
        T* w_e = Fuse ? out.w_evt + at + start : nullptr;
        T kl_i = 0, kl_e = 0, sq_i = 0, sq_e = 0, dot = 0;
#pragma omp simd reduction(+ : kl_i, kl_e, sq_i, sq_e, dot)
        for (int64_t d = 0; d < n; ++d) {
            const T m_i = mu_i[d], m_e = mu_e[d];
            const Weights<T> w = weigh<T, Saturated>(lv_i[d], lv_e[d], c_i[d], c_e[d], eps, limit);
            if (Fuse) {
                mean[d] = w.w_img * m_i + w.w_evt * m_e;
                var[d] = w.var;
                w_i[d] = w.w_img;
                w_e[d] = w.w_evt;
            }
            if (Terms) {
                kl_i += (lv_i[d] - w.u_img) - m_i * m_i;
                kl_e += (lv_e[d] - w.u_evt) - m_e * m_e;
                sq_i += m_i * m_i;
                sq_e += m_e * m_e;
                dot += m_i * m_e;
            }
        }
        sums.kl_img += kl_i, sums.kl_evt += kl_e;
        sums.square_img += sq_i, sums.square_evt += sq_e, sums.dot += dot;
    }
}

template <class T, bool Fuse, bool Terms>
void forward(const FusionInputs<T>& in, const FusionOutputs<T>& out) {
    const int64_t dim = in.dim;
    T* const fields[] = {out.mean, out.var, out.w_img, out.w_evt};
    double log_c[2] = {0, 0};
    if (Terms) {
        for (int64_t d = 0; d < dim; ++d) {
            log_c[0] += ::log(double(in.c_img[d]));
            log_c[1] += ::log(double(in.c_evt[d]));
        }
    }
#pragma omp parallel for num_threads(in.threads) schedule(static)
    for (int64_t row = 0; row < in.rows; ++row) {
        const int64_t at = row * dim;
        if (!is_valid(in, row)) {
            if (Fuse)
                for (T* field : fields) memset(field + at, 0, dim * sizeof(T));
            if (Terms) memset(out.partial + 4 * row, 0, 4 * sizeof(double));
            continue;
        }
        RowSums sums;
        if (any_above(in.logvar_img + at, in.logvar_evt + at, dim, in.limit))
            forward_row<T, true, Fuse, Terms>(in, out, row, sums);
        else
            forward_row<T, false, Fuse, Terms>(in, out, row, sums);
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

template <class T>
TermSlopes<T> term_slopes(const FusionInputs<T>& in, const T* g, int64_t row, double per_position) {
    double square_i = 0, square_e = 0, dot = 0;
    for (int64_t start = 0; start < in.dim; start += kChunk) {
        const int64_t n = smaller(kChunk, in.dim - start);
        const T *mu_i = in.mu_img + row * in.dim + start, *mu_e = in.mu_evt + row * in.dim + start;
        T sq_i = 0, sq_e = 0, product = 0;
#pragma omp simd reduction(+ : sq_i, sq_e, product)
        for (int64_t d = 0; d < n; ++d) {
            sq_i += mu_i[d] * mu_i[d];
            sq_e += mu_e[d] * mu_e[d];
            product += mu_i[d] * mu_e[d];
        }
        square_i += sq_i, square_e += sq_e, dot += product;
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

template <class T, bool Saturated, bool WithC>
void backward_row(const FusionInputs<T>& in, const FusionGradients<T>& g, int64_t row, const TermSlopes<T>& slopes,
                  T* sum_i, T* sum_e) {
    const int64_t at = row * in.dim, dim = in.dim;
    const T eps = in.eps, limit = in.limit;
    const T *mu_i = in.mu_img + at, *lv_i = in.logvar_img + at, *mu_e = in.mu_evt + at, *lv_e = in.logvar_evt + at;
    const T *c_i = in.c_img, *c_e = in.c_evt;
    const T* grad_mean = g.grad_mean ? g.grad_mean + at : g.zeros;
    const T* grad_var = g.grad_var ? g.grad_var + at : g.zeros;
    const T* grad_wi = g.grad_w_img ? g.grad_w_img + at : g.zeros;
    const T* grad_we = g.grad_w_evt ? g.grad_w_evt + at : g.zeros;
    T *grad_mu_i = g.grad_mu_img + at, *grad_lv_i = g.grad_logvar_img + at;
    T *grad_mu_e = g.grad_mu_evt + at, *grad_lv_e = g.grad_logvar_evt + at;
    const TermSlopes<T> s = slopes;
    const T half_i = s.kl_img / 2, half_e = s.kl_evt / 2;
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) {
        const T m_i = mu_i[d], m_e = mu_e[d], grad_m = grad_mean[d], grad_v = grad_var[d];
        const Weights<T> w = weigh<T, Saturated>(lv_i[d], lv_e[d], c_i[d], c_e[d], eps, limit);
        grad_mu_i[d] = w.w_img * grad_m + s.own_img * m_i + s.cross * m_e;
        grad_mu_e[d] = w.w_evt * grad_m + s.own_evt * m_e + s.cross * m_i;
        const T change = grad_m * (m_i - m_e) + (grad_wi[d] - grad_we[d]);
        const T share_i = -change * w.slope_img, share_e = change * w.slope_evt;
        const T rest_i = grad_v * w.var_slope_img + half_i * w.u_img, rest_e = grad_v * w.var_slope_evt + half_e * w.u_evt;
        // a saturated variance no longer follows its logvar, but still its factor c
        grad_lv_i[d] = share_i + (Saturated && lv_i[d] > limit ? T(0) : rest_i) - half_i;
        grad_lv_e[d] = share_e + (Saturated && lv_e[d] > limit ? T(0) : rest_e) - half_e;
        if (WithC) {
            sum_i[d] += share_i + rest_i - half_i;
            sum_e[d] += share_e + rest_e - half_e;
        }
    }
}

template <class T, bool WithC>
void backward(const FusionInputs<T>& in, const FusionGradients<T>& g) {
    const int64_t dim = in.dim, valid = valid_rows(in);
    T* const fields[] = {g.grad_mu_img, g.grad_logvar_img, g.grad_mu_evt, g.grad_logvar_evt};
    const double per_position = valid ? 1.0 / double(valid) : 0.0;
#pragma omp parallel for num_threads(in.threads) schedule(static)
    for (int64_t block = 0; block < fusion_blocks; ++block) {
        T* sum_i = WithC ? g.partial + 2 * block * dim : nullptr;
        T* sum_e = WithC ? sum_i + dim : nullptr;
        if (WithC) memset(sum_i, 0, 2 * dim * sizeof(T));
        const int64_t end = in.rows * (block + 1) / fusion_blocks;
        for (int64_t row = in.rows * block / fusion_blocks; row < end; ++row) {
            const int64_t at = row * dim;
            if (!is_valid(in, row)) {
                for (T* field : fields) memset(field + at, 0, dim * sizeof(T));
                continue;
            }
            TermSlopes<T> slopes;
            if (g.grad_terms) slopes = term_slopes(in, g.grad_terms, row, per_position);
            if (any_above(in.logvar_img + at, in.logvar_evt + at, dim, in.limit))
                backward_row<T, true, WithC>(in, g, row, slopes, sum_i, sum_e);
            else
                backward_row<T, false, WithC>(in, g, row, slopes, sum_i, sum_e);
        }
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

template <class T>
void fusion_forward(const FusionInputs<T>& in, const FusionOutputs<T>& out) {
    if (out.mean && out.partial)
        forward<T, true, true>(in, out);
    else if (out.mean)
        forward<T, true, false>(in, out);
    else if (out.partial)
        forward<T, false, true>(in, out);
}

template <class T>
void fusion_backward(const FusionInputs<T>& in, const FusionGradients<T>& g) {
    if (g.partial)
        backward<T, true>(in, g);
    else
        backward<T, false>(in, g);
}

template void fusion_forward<float>(const FusionInputs<float>&, const FusionOutputs<float>&);
template void fusion_forward<double>(const FusionInputs<double>&, const FusionOutputs<double>&);
template void fusion_backward<float>(const FusionInputs<float>&, const FusionGradients<float>&);
template void fusion_backward<double>(const FusionInputs<double>&, const FusionGradients<double>&);

}  // namespace ief::IEF_ISA
