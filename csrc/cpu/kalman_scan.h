// Elementwise Kalman filter over time on the CPU: arguments and entry points.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace ief {

// All tensors are contiguous; (batch, steps, dim) unless said otherwise. "or null": may be absent.
template <class T>
struct ScanInputs {
    const T *x, *var;
    const int64_t* lengths;  // (batch,) or null: everything is valid
    const T* q;              // (dim,) process noise
    const T* influence;      // (1,): 1/(nu+1) of the robust update, or null: plain update
    const T *s0, *p0;        // (batch, dim) initial state, or both null
    T eps;
    T diffuse;               // variance of a state that has seen nothing
    int64_t batch, steps, dim;
    int threads;
};

template <class T>
struct ScanOutputs {
    T *mean, *var, *gain;  // (batch, steps, dim)
    T *s, *p;              // (batch, dim) state after the last valid step
};

template <class T>
struct ScanGradients {
    const T *mean, *var;                             // what the forward pass returned
    const T *grad_mean, *grad_variance, *grad_gain;  // incoming, (batch, steps, dim) or null
    const T *grad_s, *grad_p;                        // incoming, (batch, dim) or null
    T *grad_x, *grad_var;                            // outgoing, (batch, steps, dim)
    T *grad_s0, *grad_p0;                            // outgoing, (batch, dim), or null without an initial state
    double* partial;                                 // (2, batch, dim) workspace: sums over time for q and influence
    T *grad_q, *grad_influence;                      // outgoing, (dim,) and (1,)
};

}  // namespace ief

IEF_FOR_EACH_ISA(
    template <class T> void scan_forward(const ScanInputs<T>&, const ScanOutputs<T>&);
    template <class T> void scan_backward(const ScanInputs<T>&, const ScanGradients<T>&);)
