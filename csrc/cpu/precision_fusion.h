// Precision-weighted fusion and its loss terms on the CPU: arguments and entry points.
#pragma once

#include <cstdint>

#include "common/halves.h"
#include "common/isa.h"

namespace ief {

// All tensors are contiguous (rows, dim); row = b·steps + t. Pointers marked "or null" may be absent.
// E is what tensors hold (float, double, bfloat16 or float16), T what is computed in: double for double, else float.
template <class E, class T = Arithmetic<E>>
struct FusionInputs {
    const E *mu_img, *logvar_img, *mu_evt, *logvar_evt;
    const T *c_img, *c_evt;    // (dim,): ν/(ν+1)
    const int64_t* lengths;    // (rows/steps,) or null: everything is valid
    int64_t rows, steps, dim;
    T eps;
    T limit;                   // logvar beyond which variances saturate
    int threads;
};

template <class E, class T = Arithmetic<E>>
struct FusionOutputs {
    E *mean, *var, *w_img, *w_evt;  // (rows, dim), or mean null: no fusion
    double* partial;                // (rows, 4) workspace, or null: no terms
    T* terms;                       // (4,)
};

template <class E, class T = Arithmetic<E>>
struct FusionGradients {
    const E *grad_mean, *grad_var, *grad_w_img, *grad_w_evt;           // incoming, (rows, dim) or null
    const T* grad_terms;                                               // incoming, (4,) or null
    const E* zeros;                                                    // (dim,) of zeros, read in place of null
    E *grad_mu_img, *grad_logvar_img, *grad_mu_evt, *grad_logvar_evt;  // outgoing, (rows, dim)
    T* partial;                    // (fusion_blocks, 2, dim) workspace, or null: no gradient of c
    T *grad_c_img, *grad_c_evt;    // outgoing, (dim,)
};

// Rows are cut into this many blocks for the gradient of c, whatever the number of threads.
constexpr int64_t fusion_blocks = 32;

}  // namespace ief

IEF_FOR_EACH_ISA(
    template <class E> void fusion_forward(const FusionInputs<E>&, const FusionOutputs<E>&);
    template <class E> void fusion_backward(const FusionInputs<E>&, const FusionGradients<E>&);)
