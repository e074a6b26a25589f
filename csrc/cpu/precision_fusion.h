// Precision-weighted fusion and its loss terms on the CPU: arguments and entry points.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace ief {

// All tensors are contiguous (rows, dim); row = b·steps + t. Pointers marked "or null" may be absent.
template <class T>
struct FusionInputs {
    const T *mu_img, *logvar_img, *mu_evt, *logvar_evt;
    const T *c_img, *c_evt;    // (dim,): ν/(ν+1)
    const int64_t* lengths;    // (rows/steps,) or null: everything is valid
    int64_t rows, steps, dim;
    T eps;
    T limit;                   // logvar beyond which variances saturate
    int threads;
};

template <class T>
struct FusionOutputs {
    T *mean, *var, *w_img, *w_evt;  // (rows, dim), or mean null: no fusion
    double* partial;                // (rows, 4) workspace, or null: no terms
    T* terms;                       // (4,)
};

template <class T>
struct FusionGradients {
    const T *grad_mean, *grad_var, *grad_w_img, *grad_w_evt;           // incoming, (rows, dim) or null
    const T* grad_terms;                                               // incoming, (4,) or null
    const T* zeros;                                                    // (dim,) of zeros, read in place of null
    T *grad_mu_img, *grad_logvar_img, *grad_mu_evt, *grad_logvar_evt;  // outgoing, (rows, dim)
    T* partial;                    // (fusion_blocks, 2, dim) workspace, or null: no gradient of c
    T *grad_c_img, *grad_c_evt;    // outgoing, (dim,)
};

// Rows are cut into this many blocks for the gradient of c, whatever the number of threads.
constexpr int64_t fusion_blocks = 32;

}  // namespace ief

IEF_FOR_EACH_ISA(
    template <class T> void fusion_forward(const FusionInputs<T>&, const FusionOutputs<T>&);
    template <class T> void fusion_backward(const FusionInputs<T>&, const FusionGradients<T>&);)
