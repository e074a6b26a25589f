// Kalman filter with a random-walk state, forward and backward; lanes (b, d) are independent, time is sequential.
//
//   a = p + q + eps,  b = var_t + eps [+ k·r²],  r = x_t - s,  g = a/(a + b):   p' = b·g,  s' = s + g·r
//
// The backward pass reads s and p from the saved outputs and recomputes the rest. With S, P the adjoints of s', p' and
// Γ the incoming gradient of the gain, h = 1/(a + b), e = b·h = 1 - g:
//
//   γ = Γ + S·r                      (through g: dg/da = e·h, dg/db = -g·h)
//   A = P·e² + γ·e·h                 → p and q            B = P·g² - γ·g·h        → var_t and, times r², k
//   R = S·g [+ 2·k·r·B]              → x_t                S - R                   → s
//
// A task is one sequence and a run of neighbouring lanes, so every row of it is read and written contiguously and the
// lanes of a row hide each other's latency. Results do not depend on how lanes are cut or on the number of threads.
#include "cpu/kalman_scan.h"

#include <string.h>

namespace ief::IEF_ISA {
namespace {

constexpr int64_t kMaxLanes = 512;  // state of a task stays in the first-level cache
constexpr int64_t kFlush = 64;      // steps summed in T before the sum goes on in double

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a batch of rows is cut into tasks: as few runs as fill the threads, each a multiple of a vector.
struct Tasks {
    int64_t runs, lanes;

    Tasks(int64_t batch, int64_t dim, int threads) {
        const int64_t cache = ceil_div(dim, kMaxLanes), fill = batch ? ceil_div(threads, batch) : 1;
        const int64_t wanted = cache > fill ? cache : fill;
        lanes = wanted ? ceil_div(ceil_div(dim, wanted), 16) * 16 : 16;
        if (lanes < 16) lanes = 16;
        runs = ceil_div(dim, lanes);
    }
};

template <class T>
int64_t length_of(const ScanInputs<T>& in, int64_t b) {
    if (!in.lengths) return in.steps;
    const int64_t n = in.lengths[b];
    return n < 0 ? 0 : n > in.steps ? in.steps : n;
}

template <class T>
void clear(T* rows, int64_t steps, int64_t stride, int64_t n) {
    for (int64_t t = 0; t < steps; ++t) memset(rows + t * stride, 0, n * sizeof(T));
}

template <class T, bool Robust>
void forward_lanes(const ScanInputs<T>& in, const ScanOutputs<T>& out, int64_t b, int64_t first, int64_t n) {
    const int64_t dim = in.dim, length = length_of(in, b), origin = b * in.steps * dim + first, lane = b * dim + first;
    const T eps = in.eps, k = Robust ? *in.influence : T(0);
    const T* q = in.q + first;
    T s[kMaxLanes], p[kMaxLanes];
    int64_t t = 0;
    if (in.s0) {
        memcpy(s, in.s0 + lane, n * sizeof(T));
        memcpy(p, in.p0 + lane, n * sizeof(T));
    } else if (length > 0) {
        memcpy(s, in.x + origin, n * sizeof(T));
        memcpy(p, in.var + origin, n * sizeof(T));
        memcpy(out.mean + origin, s, n * sizeof(T));
        memcpy(out.var + origin, p, n * sizeof(T));
        for (int64_t d = 0; d < n; ++d) out.gain[origin + d] = T(1);
        t = 1;
    } else {
        for (int64_t d = 0; d < n; ++d) s[d] = T(0), p[d] = in.diffuse;
    }
    for (; t < length; ++t) {
        const int64_t at = origin + t * dim;
        const T *x = in.x + at, *var = in.var + at;
        T *mean_out = out.mean + at, *var_out = out.var + at, *gain_out = out.gain + at;
#pragma omp simd
        for (int64_t d = 0; d < n; ++d) {
            const T r = x[d] - s[d];
            const T a_t = p[d] + q[d] + eps;
            const T b_t = Robust ? var[d] + eps + k * r * r : var[d] + eps;
            const T g = a_t / (a_t + b_t);
            const T p_next = b_t * g, s_next = s[d] + g * r;
            p[d] = p_next;
            s[d] = s_next;
            mean_out[d] = s_next;
            var_out[d] = p_next;
            gain_out[d] = g;
        }
    }
    const int64_t end = origin + length * dim, padding = in.steps - length;
    clear(out.mean + end, padding, dim, n);
    clear(out.var + end, padding, dim, n);
    clear(out.gain + end, padding, dim, n);
    memcpy(out.s + lane, s, n * sizeof(T));
    memcpy(out.p + lane, p, n * sizeof(T));
}

// Adjoints of a run of lanes while time runs backwards.
template <class T>
struct Adjoint {
    T s[kMaxLanes], p[kMaxLanes];          // of the state after the step at hand
    T q[kMaxLanes], k[kMaxLanes];          // sums over the last few steps
    double q_sum[kMaxLanes], k_sum[kMaxLanes];

    void flush(int64_t n) {
#pragma omp simd
        for (int64_t d = 0; d < n; ++d) {
            q_sum[d] += q[d];
            k_sum[d] += k[d];
            q[d] = k[d] = T(0);
        }
    }
};

template <class T>
inline const T* row_or(const T* rows, int64_t at, const T* zeros) { return rows ? rows + at : zeros; }

template <class T, bool Robust>
void backward_lanes(const ScanInputs<T>& in, const ScanGradients<T>& g, int64_t b, int64_t first, int64_t n) {
    const int64_t dim = in.dim, length = length_of(in, b), origin = b * in.steps * dim + first, lane = b * dim + first;
    const T eps = in.eps, k = Robust ? *in.influence : T(0);
    const T* q = in.q + first;
    T zeros[kMaxLanes];
    memset(zeros, 0, n * sizeof(T));
    Adjoint<T> adjoint;
    memcpy(adjoint.s, row_or(g.grad_s, lane, zeros), n * sizeof(T));
    memcpy(adjoint.p, row_or(g.grad_p, lane, zeros), n * sizeof(T));
    for (int64_t d = 0; d < n; ++d) {
        adjoint.q[d] = adjoint.k[d] = T(0);
        adjoint.q_sum[d] = adjoint.k_sum[d] = 0;
    }
    T *S = adjoint.s, *P = adjoint.p, *Q = adjoint.q, *K = adjoint.k;
    const int64_t start = in.s0 ? 0 : 1;  // the first step without a state is a copy
    for (int64_t t = length - 1; t >= start; --t) {
        const int64_t at = origin + t * dim;
        const T *x = in.x + at, *var = in.var + at;
        const T *s = t ? g.mean + at - dim : in.s0 + lane, *p = t ? g.var + at - dim : in.p0 + lane;
        const T *grad_mean = row_or(g.grad_mean, at, zeros), *grad_variance = row_or(g.grad_variance, at, zeros);
        const T* grad_gain = row_or(g.grad_gain, at, zeros);
        T *grad_x = g.grad_x + at, *grad_var = g.grad_var + at;
#pragma omp simd
        for (int64_t d = 0; d < n; ++d) {
            const T r = x[d] - s[d];
            const T a_t = p[d] + q[d] + eps;
            const T b_t = Robust ? var[d] + eps + k * r * r : var[d] + eps;
            const T h = T(1) / (a_t + b_t), gain = a_t * h, rest = b_t * h;
            const T S_t = S[d] + grad_mean[d], P_t = P[d] + grad_variance[d];
            const T slope = (grad_gain[d] + S_t * r) * h;
            const T grad_a = (P_t * rest + slope) * rest, grad_b = (P_t * gain - slope) * gain;
            const T grad_r = Robust ? S_t * gain + 2 * k * r * grad_b : S_t * gain;
            grad_x[d] = grad_r;
            grad_var[d] = grad_b;
            S[d] = S_t - grad_r;
            P[d] = grad_a;
            Q[d] += grad_a;
            if (Robust) K[d] += grad_b * r * r;
        }
        if (t % kFlush == 0) adjoint.flush(n);
    }
    adjoint.flush(n);
    if (in.s0) {
        memcpy(g.grad_s0 + lane, S, n * sizeof(T));
        memcpy(g.grad_p0 + lane, P, n * sizeof(T));
    } else if (length > 0) {
        const T* grad_mean = row_or(g.grad_mean, origin, zeros);
        const T* grad_variance = row_or(g.grad_variance, origin, zeros);
        for (int64_t d = 0; d < n; ++d) {
            g.grad_x[origin + d] = S[d] + grad_mean[d];
            g.grad_var[origin + d] = P[d] + grad_variance[d];
        }
    }
    clear(g.grad_x + origin + length * dim, in.steps - length, dim, n);
    clear(g.grad_var + origin + length * dim, in.steps - length, dim, n);
    memcpy(g.partial + lane, adjoint.q_sum, n * sizeof(double));
    memcpy(g.partial + in.batch * dim + lane, adjoint.k_sum, n * sizeof(double));
}

}  // namespace

template <class T>
void scan_forward(const ScanInputs<T>& in, const ScanOutputs<T>& out) {
    const Tasks tasks(in.batch, in.dim, in.threads);
#pragma omp parallel for num_threads(in.threads) schedule(dynamic)
    for (int64_t task = 0; task < in.batch * tasks.runs; ++task) {
        const int64_t b = task / tasks.runs, first = task % tasks.runs * tasks.lanes;
        const int64_t n = in.dim - first < tasks.lanes ? in.dim - first : tasks.lanes;
        if (in.influence)
            forward_lanes<T, true>(in, out, b, first, n);
        else
            forward_lanes<T, false>(in, out, b, first, n);
    }
}

template <class T>
void scan_backward(const ScanInputs<T>& in, const ScanGradients<T>& g) {
    const Tasks tasks(in.batch, in.dim, in.threads);
#pragma omp parallel for num_threads(in.threads) schedule(dynamic)
    for (int64_t task = 0; task < in.batch * tasks.runs; ++task) {
        const int64_t b = task / tasks.runs, first = task % tasks.runs * tasks.lanes;
        const int64_t n = in.dim - first < tasks.lanes ? in.dim - first : tasks.lanes;
        if (in.influence)
            backward_lanes<T, true>(in, g, b, first, n);
        else
            backward_lanes<T, false>(in, g, b, first, n);
    }
    double total = 0;
    for (int64_t d = 0; d < in.dim; ++d) {
        double sum = 0;
        for (int64_t b = 0; b < in.batch; ++b) {
            sum += g.partial[b * in.dim + d];
            total += g.partial[(in.batch + b) * in.dim + d];
        }
        g.grad_q[d] = T(sum);
    }
    g.grad_influence[0] = T(total);
}

template void scan_forward<float>(const ScanInputs<float>&, const ScanOutputs<float>&);
template void scan_forward<double>(const ScanInputs<double>&, const ScanOutputs<double>&);
template void scan_backward<float>(const ScanInputs<float>&, const ScanGradients<float>&);
template void scan_backward<double>(const ScanInputs<double>&, const ScanGradients<double>&);

}  // namespace ief::IEF_ISA
