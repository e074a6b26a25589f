// Kalman filter with a random-walk state, forward and backward; lanes (b, d) are independent, time is sequential.
//
//   a = p + q + eps,  b = var_t + eps [+ k·r²],  r = x_t - s,  h = 1/(a + b),  g = a·h:   p' = b·g,  s' = s + g·r
//
// The backward pass takes s and p of every 16th step and computes the others again, from the same numbers by the same
// operations. With S, P the adjoints of s', p' and Γ the incoming gradient of the gain, e = b·h = 1 - g:
//
//   γ = Γ + S·r                      (through g: dg/da = e·h, dg/db = -g·h)
//   A = P·e² + γ·e·h                 → p and q            B = P·g² - γ·g·h        → var_t and, times r², k
//   R = S·g [+ 2·k·r·B]              → x_t                S - R                   → s
//
// A task is one sequence and a run of neighbouring lanes, so every row of it is read and written contiguously and the
// lanes of a row hide each other's latency. Results do not depend on how lanes are cut or on the number of threads.
#include "cpu/kalman_scan.h"

#include "common/vectors.h"

namespace ief::IEF_ISA {
namespace {

constexpr int64_t kMaxLanes = 384;  // states of a block of steps stay in the caches of a core
constexpr int64_t kFlush = 64;      // steps summed in T before the sum goes on in double; a multiple of scan_block
constexpr int64_t kAhead = 4;       // steps from a prefetch to its use: the hardware's stops at the end of a run
constexpr int64_t kAheadBack = 2;   // the same in the backward pass

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a batch of rows is cut into tasks: as few runs as fill the threads, each a multiple of 64 bytes of any type.
struct Tasks {
    int64_t runs, lanes;

    Tasks(int64_t batch, int64_t dim, int threads) {
        const int64_t cache = ceil_div(dim, kMaxLanes), fill = batch ? ceil_div(threads, batch) : 1;
        const int64_t wanted = larger(cache, fill);
        lanes = larger<int64_t>(32, wanted ? ceil_div(ceil_div(dim, wanted), 32) * 32 : 32);
        runs = ceil_div(dim, lanes);
    }
};

template <class E>
int64_t length_of(const ScanInputs<E>& in, int64_t b) {
    return in.lengths ? larger<int64_t>(0, smaller(in.lengths[b], in.steps)) : in.steps;
}

template <class E>
void clear(E* rows, int64_t steps, int64_t stride, int64_t n) {
    for (int64_t t = 0; t < steps; ++t) memset((void*)(rows + t * stride), 0, n * sizeof(E));
}

// What a step computes from the state before it.
template <class T, bool Robust>
struct Step {
    Vec<T> r, a, b, h, gain;

    Step(Vec<T> x, Vec<T> var, Vec<T> s, Vec<T> p, Vec<T> q, T eps, T k) {
        r = x - s;
        a = p + q + eps;
        b = Robust ? var + eps + k * r * r : var + eps;
        h = T(1) / (a + b);
        gain = a * h + T(0) * b;  // NaN for an infinite b, which a * h alone would hide as gain 0
    }
    Vec<T> mean(Vec<T> s) const { return s + gain * r; }
    Vec<T> var() const { return b * gain; }
};

// Sets the state before step `t` of a sequence where that is the initial one; returns the first step to compute.
template <class E, class T = Arithmetic<E>>
int64_t begin(const ScanInputs<E>& in, int64_t origin, int64_t lane, int64_t n, T* s, T* p) {
    if (in.s0) {
        memcpy(s, in.s0 + lane, n * sizeof(T));
        memcpy(p, in.p0 + lane, n * sizeof(T));
        return 0;
    }
    over<T>(n, false, [&](int64_t d, auto io) {
        io.store(s + d, io.load(in.x + origin + d));
        io.store(p + d, io.load(in.var + origin + d));
    });
    return 1;
}

template <bool Robust, class E, class T = Arithmetic<E>>
void forward_lanes(const ScanInputs<E>& in, const ScanOutputs<E>& out, int64_t b, int64_t first, int64_t n,
                   bool streamed) {
    const int64_t dim = in.dim, length = length_of(in, b), origin = b * in.steps * dim + first, lane = b * dim + first;
    const T eps = in.eps, k = Robust ? *in.influence : T(0);
    const T* q = in.q + first;
    alignas(64) T s[kMaxLanes], p[kMaxLanes];
    int64_t t = 0;
    if (length > 0 || in.s0)
        t = begin(in, origin, lane, n, s, p);
    else
        for (int64_t d = 0; d < n; ++d) s[d] = T(0), p[d] = in.diffuse;
    if (t == 1)
        over<T>(n, streamed, [&](int64_t d, auto io) {
            io.stream(out.mean + origin + d, io.load(s + d));
            io.stream(out.var + origin + d, io.load(p + d));
            io.stream(out.gain + origin + d, splat(T(1)));
        });
    for (; t < length; ++t) {
        const int64_t at = origin + t * dim;
        if (t % scan_block == 0 && t > 0 && out.kept_mean) {
            const int64_t row = (b * ((in.steps - 1) / scan_block) + t / scan_block - 1) * dim + first;
            memcpy(out.kept_mean + row, s, n * sizeof(T));
            memcpy(out.kept_var + row, p, n * sizeof(T));
        }
        const int64_t next = t + kAhead < length ? kAhead * dim : 0;
        over<T>(n, streamed, [&](int64_t d, auto io) {
            __builtin_prefetch(in.x + at + d + next);
            __builtin_prefetch(in.var + at + d + next);
            const Vec<T> before = io.load(s + d);
            const Step<T, Robust> step(io.load(in.x + at + d), io.load(in.var + at + d), before, io.load(p + d),
                                       io.load(q + d), eps, k);
            const Vec<T> mean = step.mean(before), var = step.var();
            io.store(s + d, mean);
            io.store(p + d, var);
            io.stream(out.mean + at + d, mean);
            io.stream(out.var + at + d, var);
            io.stream(out.gain + at + d, step.gain);
        });
    }
    const int64_t end = origin + length * dim, padding = in.steps - length;
    clear(out.mean + end, padding, dim, n);
    clear(out.var + end, padding, dim, n);
    clear(out.gain + end, padding, dim, n);
    memcpy(out.s + lane, s, n * sizeof(T));
    memcpy(out.p + lane, p, n * sizeof(T));
    if (streamed) finish_streams();
}

// Adjoints of a run of lanes while time runs backwards.
template <class T>
struct Adjoint {
    alignas(64) T s[kMaxLanes], p[kMaxLanes];  // of the state after the step at hand
    T q[kMaxLanes], k[kMaxLanes];              // sums over the last few steps
    double q_sum[kMaxLanes], k_sum[kMaxLanes];

    void flush(int64_t n) {
        for (int64_t d = 0; d < n; ++d) {
            q_sum[d] += q[d];
            k_sum[d] += k[d];
            q[d] = k[d] = T(0);
        }
    }
};

// What a block of steps is computed from again: states before each step, and h.
template <class T>
struct Block {
    static constexpr int64_t kPad = 64 / sizeof(T);  // rows at the same place of every page would evict each other
    alignas(64) T s[scan_block + 1][kMaxLanes + kPad], p[scan_block + 1][kMaxLanes + kPad], h[scan_block][kMaxLanes + kPad];
};

template <class E>
const E* row_or(const E* rows, int64_t at, const E* zeros) { return rows ? rows + at : zeros; }

// The states before steps start .. end - 1 of block number `index`, and h; returns the first step that has them.
template <bool Robust, class E, class T = Arithmetic<E>>
int64_t recompute(const ScanInputs<E>& in, const ScanGradients<E>& g, int64_t b, int64_t first, int64_t n,
                  int64_t index, int64_t end, Block<T>& block) {
    const int64_t dim = in.dim, origin = b * in.steps * dim + first, start = index * scan_block;
    const T eps = in.eps, k = Robust ? *in.influence : T(0);
    const T* q = in.q + first;
    int64_t t = start;
    if (index == 0) {
        t = begin(in, origin, b * dim + first, n, block.s[0], block.p[0]);
        if (t == 1) {
            memcpy(block.s[1], block.s[0], n * sizeof(T));
            memcpy(block.p[1], block.p[0], n * sizeof(T));
        }
    } else {
        // if nothing is rounded, the outputs are the states
        constexpr bool every = sizeof(E) == sizeof(T);
        const int64_t row = every ? origin + (start - 1) * dim
                                  : (b * ((in.steps - 1) / scan_block) + index - 1) * dim + first;
        memcpy(block.s[0], g.mean + row, n * sizeof(T));
        memcpy(block.p[0], g.var + row, n * sizeof(T));
    }
    const int64_t begun = t;
    for (; t < end; ++t) {
        const int64_t at = origin + t * dim, j = t - start;
        over<T>(n, false, [&](int64_t d, auto io) {
            const Vec<T> before = io.load(block.s[j] + d);
            const Step<T, Robust> step(io.load(in.x + at + d), io.load(in.var + at + d), before,
                                       io.load(block.p[j] + d), io.load(q + d), eps, k);
            io.store(block.s[j + 1] + d, step.mean(before));
            io.store(block.p[j + 1] + d, step.var());
            io.store(block.h[j] + d, step.h);
        });
    }
    return begun;
}

template <bool Robust, class E, class T = Arithmetic<E>>
void backward_lanes(const ScanInputs<E>& in, const ScanGradients<E>& g, int64_t b, int64_t first, int64_t n,
                    bool streamed) {
    const int64_t dim = in.dim, length = length_of(in, b), origin = b * in.steps * dim + first, lane = b * dim + first;
    const T eps = in.eps, k = Robust ? *in.influence : T(0);
    const T* q = in.q + first;
    E zeros[kMaxLanes];
    memset((void*)zeros, 0, n * sizeof(E));
    Adjoint<T> adjoint;
    T *S = adjoint.s, *P = adjoint.p, *Q = adjoint.q, *K = adjoint.k;
    for (int64_t d = 0; d < n; ++d) {
        S[d] = g.grad_s ? g.grad_s[lane + d] : T(0);
        P[d] = g.grad_p ? g.grad_p[lane + d] : T(0);
        Q[d] = K[d] = T(0);
        adjoint.q_sum[d] = adjoint.k_sum[d] = 0;
    }
    Block<T> block;
    for (int64_t index = ceil_div(length, scan_block) - 1; index >= 0; --index) {
        const int64_t start = index * scan_block;
        const int64_t begun = recompute<Robust>(in, g, b, first, n, index, smaller(length, start + scan_block), block);
        for (int64_t t = smaller(length, start + scan_block) - 1; t >= begun; --t) {
            const int64_t at = origin + t * dim, j = t - start;
            const E *x = in.x + at, *var = in.var + at;
            const T *s = block.s[j], *p = block.p[j], *h = block.h[j];
            const E *grad_mean = row_or(g.grad_mean, at, zeros), *grad_variance = row_or(g.grad_variance, at, zeros);
            const E* grad_gain = row_or(g.grad_gain, at, zeros);
            E *grad_x = g.grad_x + at, *grad_var = g.grad_var + at;
            // what the block before this one is computed from, and the next rows of the gradient
            const int64_t block_before = t >= scan_block ? -scan_block * dim : 0;
            const int64_t rows_before = g.grad_mean && t >= kAheadBack ? -kAheadBack * dim : 0;
            over<T>(n, streamed, [&](int64_t d, auto io) {
                using V = Vec<T>;
                __builtin_prefetch(x + d + block_before);
                __builtin_prefetch(var + d + block_before);
                __builtin_prefetch(grad_mean + d + rows_before);
                const V h_t = io.load(h + d), r = io.load(x + d) - io.load(s + d);
                const V a = io.load(p + d) + io.load(q + d) + eps;
                const V b_t = Robust ? io.load(var + d) + eps + k * r * r : io.load(var + d) + eps;
                const V gain = a * h_t, rest = b_t * h_t;
                const V S_t = io.load(S + d) + io.load(grad_mean + d), P_t = io.load(P + d) + io.load(grad_variance + d);
                const V slope = (io.load(grad_gain + d) + S_t * r) * h_t;
                const V grad_a = (P_t * rest + slope) * rest, grad_b = (P_t * gain - slope) * gain;
                const V grad_r = Robust ? S_t * gain + T(2) * k * r * grad_b : S_t * gain;
                io.stream(grad_x + d, grad_r);
                io.stream(grad_var + d, grad_b);
                io.store(S + d, S_t - grad_r);
                io.store(P + d, grad_a);
                io.store(Q + d, io.load(Q + d) + grad_a);
                if (Robust) io.store(K + d, io.load(K + d) + grad_b * r * r);
            });
        }
        if (start % kFlush == 0) adjoint.flush(n);
    }
    if (in.s0) {
        memcpy(g.grad_s0 + lane, S, n * sizeof(T));
        memcpy(g.grad_p0 + lane, P, n * sizeof(T));
    } else if (length > 0) {
        const E* grad_mean = row_or(g.grad_mean, origin, zeros);
        const E* grad_variance = row_or(g.grad_variance, origin, zeros);
        over<T>(n, false, [&](int64_t d, auto io) {
            io.store(g.grad_x + origin + d, io.load(S + d) + io.load(grad_mean + d));
            io.store(g.grad_var + origin + d, io.load(P + d) + io.load(grad_variance + d));
        });
    }
    clear(g.grad_x + origin + length * dim, in.steps - length, dim, n);
    clear(g.grad_var + origin + length * dim, in.steps - length, dim, n);
    memcpy(g.partial + lane, adjoint.q_sum, n * sizeof(double));
    memcpy(g.partial + in.batch * dim + lane, adjoint.k_sum, n * sizeof(double));
    if (streamed) finish_streams();
}

}  // namespace

template <class E>
void scan_forward(const ScanInputs<E>& in, const ScanOutputs<E>& out) {
    const Tasks tasks(in.batch, in.dim, in.threads);
    E* const fields[] = {out.mean, out.var, out.gain};
    const bool streamed = past_caches(in.batch * in.steps, in.dim, fields);
#pragma omp parallel for num_threads(in.threads) schedule(dynamic)
    for (int64_t task = 0; task < in.batch * tasks.runs; ++task) {
        const int64_t b = task / tasks.runs, first = task % tasks.runs * tasks.lanes;
        const int64_t n = smaller(in.dim - first, tasks.lanes);
        if (in.influence)
            forward_lanes<true>(in, out, b, first, n, streamed);
        else
            forward_lanes<false>(in, out, b, first, n, streamed);
    }
}

template <class E>
void scan_backward(const ScanInputs<E>& in, const ScanGradients<E>& g) {
    const Tasks tasks(in.batch, in.dim, in.threads);
    E* const fields[] = {g.grad_x, g.grad_var};
    const bool streamed = past_caches(in.batch * in.steps, in.dim, fields);
#pragma omp parallel for num_threads(in.threads) schedule(dynamic)
    for (int64_t task = 0; task < in.batch * tasks.runs; ++task) {
        const int64_t b = task / tasks.runs, first = task % tasks.runs * tasks.lanes;
        const int64_t n = smaller(in.dim - first, tasks.lanes);
        if (in.influence)
            backward_lanes<true>(in, g, b, first, n, streamed);
        else
            backward_lanes<false>(in, g, b, first, n, streamed);
    }
    double total = 0;
    for (int64_t d = 0; d < in.dim; ++d) {
        double sum = 0;
        for (int64_t b = 0; b < in.batch; ++b) {
            sum += g.partial[b * in.dim + d];
            total += g.partial[(in.batch + b) * in.dim + d];
        }
        g.grad_q[d] = Arithmetic<E>(sum);
    }
    g.grad_influence[0] = Arithmetic<E>(total);
}

#define IEF_INSTANTIATE(E)                                                   \
    template void scan_forward<E>(const ScanInputs<E>&, const ScanOutputs<E>&); \
    template void scan_backward<E>(const ScanInputs<E>&, const ScanGradients<E>&);
IEF_INSTANTIATE(float)
IEF_INSTANTIATE(double)
IEF_INSTANTIATE(bfloat16)
IEF_INSTANTIATE(float16)

}  // namespace ief::IEF_ISA
