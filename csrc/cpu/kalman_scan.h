// Elementwise Kalman filter over time on the CPU: arguments and entry points.
#pragma once

#include <cstdint>

#include "common/halves.h"
#include "common/isa.h"

namespace ief {

// The backward pass computes states again from every scan_block-th.
constexpr int64_t scan_block = 16;

// All tensors are contiguous; (batch, steps, dim) unless said otherwise. "or null": may be absent.
// E is what tensors hold (float, double, bfloat16 or float16), T what is computed in: double for double, else float.
template <class E, class T = Arithmetic<E>>
struct ScanInputs {
    const E *x, *var;
    const int64_t* lengths;  // (batch,) or null: everything is valid
    const T* q;              // (dim,) process noise
    const T* influence;      // (1,): 1/(nu+1) of the robust update, or null: plain update
    const T *s0, *p0;        // (batch, dim) initial state, or both null
    T eps;
    T diffuse;               // variance of a state that has seen nothing
    int64_t batch, steps, dim;
    int threads;
};

template <class E, class T = Arithmetic<E>>
struct ScanOutputs {
    E *mean, *var, *gain;       // (batch, steps, dim)
    T *s, *p;                   // (batch, dim) state after the last valid step
    T *kept_mean, *kept_var;    // (batch, (steps - 1) / scan_block, dim): states not rounded, before steps scan_block,
                                // 2·scan_block, ...; or both null
};

template <class E, class T = Arithmetic<E>>
struct ScanGradients {
    const T *mean, *var;                             // what the forward pass kept; if E is T, mean and var themselves
    const E *grad_mean, *grad_variance, *grad_gain;  // incoming, (batch, steps, dim) or null
    const T *grad_s, *grad_p;                        // incoming, (batch, dim) or null
    E *grad_x, *grad_var;                            // outgoing, (batch, steps, dim)
    T *grad_s0, *grad_p0;                            // outgoing, (batch, dim), or null without an initial state
    double* partial;                                 // (2, batch, dim) workspace: sums over time for q and influence
    T *grad_q, *grad_influence;                      // outgoing, (dim,) and (1,)
};

}  // namespace ief

IEF_FOR_EACH_ISA(
    template <class E> void scan_forward(const ScanInputs<E>&, const ScanOutputs<E>&);
    template <class E> void scan_backward(const ScanInputs<E>&, const ScanGradients<E>&);)
