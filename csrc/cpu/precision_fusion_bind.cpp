// Bindings of csrc/cpu/precision_fusion.cpp for Python; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>

#include "common/by_dtype.h"
#include "cpu/fusion_call.h"

namespace ief {
namespace {

// outputs: mean, var, w_img, w_evt, terms
template <class E, class T = Arithmetic<E>>
void forward(const FusionTensors& in, const std::array<uintptr_t, 5>& out, FusionShape shape, FusionFactors factors, double eps,
             double limit, int threads) {
    const FusionCall<E> call(in, shape, factors, eps, limit, threads);
    if (out[0]) require_memory("an output", {out[1], out[2], out[3]});
    const auto partial = out[4] ? room<double>(4 * shape[0]) : nullptr;
    const FusionOutputs<E> outputs{pointer<E>(out[0]), pointer<E>(out[1]), pointer<E>(out[2]),
                                   pointer<E>(out[3]), partial.get(),      pointer<T>(out[4])};
    IEF_SELECT(fusion_forward<E>)(call.inputs, outputs);
}

// incoming: mean, var, w_img, w_evt, terms; outgoing: mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt
template <class E, class T = Arithmetic<E>>
void backward(const FusionTensors& in, const std::array<uintptr_t, 5>& incoming, const std::array<uintptr_t, 6>& outgoing,
              FusionShape shape, FusionFactors factors, double eps, double limit, int threads) {
    const FusionCall<E> call(in, shape, factors, eps, limit, threads);
    if (shape[0] && shape[2]) require_memory("an output", {outgoing[0], outgoing[1], outgoing[2], outgoing[3]});
    if (outgoing[4]) require_memory("an output", {outgoing[5]});
    const auto partial = outgoing[4] ? room<T>(fusion_blocks * 2 * shape[2]) : nullptr;
    const auto zeros = room<E>(shape[2]);
    std::fill_n(zeros.get(), shape[2], E{});
    FusionGradients<E> g{};
    g.grad_mean = pointer<const E>(incoming[0]), g.grad_var = pointer<const E>(incoming[1]);
    g.grad_w_img = pointer<const E>(incoming[2]), g.grad_w_evt = pointer<const E>(incoming[3]);
    g.grad_terms = pointer<const T>(incoming[4]), g.zeros = zeros.get();
    g.grad_mu_img = pointer<E>(outgoing[0]), g.grad_logvar_img = pointer<E>(outgoing[1]);
    g.grad_mu_evt = pointer<E>(outgoing[2]), g.grad_logvar_evt = pointer<E>(outgoing[3]);
    g.partial = partial.get(), g.grad_c_img = pointer<T>(outgoing[4]), g.grad_c_evt = pointer<T>(outgoing[5]);
    IEF_SELECT(fusion_backward<E>)(call.inputs, g);
}

}  // namespace

void bind_precision_fusion(pybind11::module_& module) {
    namespace py = pybind11;
    using namespace py::literals;
    module.def(
        "fusion_forward",
        [](const std::string& dtype, const FusionTensors& in, FusionShape shape, FusionFactors factors, double eps, double limit,
           int threads, const std::array<uintptr_t, 5>& out) {
            const auto run = IEF_BY_DTYPE(dtype, forward);
            py::gil_scoped_release release;
            run(in, out, shape, factors, eps, limit, threads);
        },
        "dtype"_a, "inputs"_a, "shape"_a, "factors"_a, "eps"_a, "limit"_a, "threads"_a, "outputs"_a);
    module.def(
        "fusion_backward",
        [](const std::string& dtype, const FusionTensors& in, FusionShape shape, FusionFactors factors, double eps, double limit,
           int threads, const std::array<uintptr_t, 5>& incoming, const std::array<uintptr_t, 6>& outgoing) {
            const auto run = IEF_BY_DTYPE(dtype, backward);
            py::gil_scoped_release release;
            run(in, incoming, outgoing, shape, factors, eps, limit, threads);
        },
        "dtype"_a, "inputs"_a, "shape"_a, "factors"_a, "eps"_a, "limit"_a, "threads"_a, "incoming"_a, "outgoing"_a);
}

}  // namespace ief
