// Low-rank plus diagonal fusion on the CPU: arguments and entry points.
#pragma once

#include "cpu/precision_fusion.h"

namespace ief {

constexpr int64_t kMostColumns = 16;  // of a factor
constexpr int64_t kColumnGroup = 4;   // columns taken at a time; their number is a multiple of it
constexpr int64_t kRowMultiple = 16;  // rows of a factor are filled up to a multiple of the longest vector

// `width` is dim filled up to whole vectors. What is beyond dim, and columns beyond the rank, are zero.
template <class E, class T = Arithmetic<E>>
struct LowRankInputs {
    FusionInputs<E> beliefs;
    const T* factors;  // (2, columns, width): image, event
    int64_t columns, width;
    T* room;           // (threads, low_rank_room) workspace of zeros; they stay zeros beyond a row's last vector
};

template <class E>
struct LowRankOutputs {
    E *mean, *var, *w_img, *w_evt;  // (rows, dim)
};

template <class E, class T = Arithmetic<E>>
struct LowRankGradients {
    const E *grad_mean, *grad_var, *grad_w_img, *grad_w_evt;           // incoming, (rows, dim) or null
    const E* zeros;                                                    // (dim,) of zeros, read in place of null
    E *grad_mu_img, *grad_logvar_img, *grad_mu_evt, *grad_logvar_evt;  // outgoing, (rows, dim)
    T* partial;                  // (fusion_blocks, 2·columns + 2, width) workspace
    T* grad_factors;             // outgoing, (2, columns, width)
    T *grad_c_img, *grad_c_evt;  // outgoing, (dim,), or null
};

constexpr int64_t low_rank_arrays = 24;  // rows of numbers per dimension that a thread keeps

// Elements of workspace that a thread needs.
constexpr int64_t low_rank_room(int64_t width) { return low_rank_arrays * width; }

}  // namespace ief

IEF_FOR_EACH_ISA(
    template <class E> void low_rank_forward(const LowRankInputs<E>&, const LowRankOutputs<E>&);
    template <class E> void low_rank_backward(const LowRankInputs<E>&, const LowRankGradients<E>&);)
