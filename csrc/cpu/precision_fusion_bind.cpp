// Bindings of csrc/cpu/precision_fusion.cpp for Python; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "common/by_dtype.h"
#include "cpu/precision_fusion.h"

namespace ief {
namespace {

template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

using Shape = std::array<int64_t, 3>;  // rows, steps, dim

// tensors: mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt, lengths
template <class E, class T = Arithmetic<E>>
FusionInputs<E> inputs(const std::array<uintptr_t, 7>& t, Shape shape, double eps, double limit, int threads) {
    return {pointer<const E>(t[0]), pointer<const E>(t[1]), pointer<const E>(t[2]), pointer<const E>(t[3]),
            pointer<const T>(t[4]), pointer<const T>(t[5]), pointer<const int64_t>(t[6]), shape[0], shape[1], shape[2],
            T(eps), T(limit), threads};
}

// outputs: mean, var, w_img, w_evt, partial (float64), terms
template <class E, class T = Arithmetic<E>>
void forward(const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 6>& out, Shape shape, double eps,
             double limit, int threads) {
    const FusionOutputs<E> outputs{pointer<E>(out[0]), pointer<E>(out[1]),      pointer<E>(out[2]),
                                   pointer<E>(out[3]), pointer<double>(out[4]), pointer<T>(out[5])};
    const auto arguments = inputs<E>(in, shape, eps, limit, threads);
    IEF_SELECT(fusion_forward<E>)(arguments, outputs);
}

// incoming: mean, var, w_img, w_evt, terms, zeros; outgoing: mu_img, logvar_img, mu_evt, logvar_evt, partial, c_img, c_evt
template <class E, class T = Arithmetic<E>>
void backward(const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 6>& incoming,
              const std::array<uintptr_t, 7>& outgoing, Shape shape, double eps, double limit, int threads) {
    FusionGradients<E> g{};
    g.grad_mean = pointer<const E>(incoming[0]), g.grad_var = pointer<const E>(incoming[1]);
    g.grad_w_img = pointer<const E>(incoming[2]), g.grad_w_evt = pointer<const E>(incoming[3]);
    g.grad_terms = pointer<const T>(incoming[4]), g.zeros = pointer<const E>(incoming[5]);
    g.grad_mu_img = pointer<E>(outgoing[0]), g.grad_logvar_img = pointer<E>(outgoing[1]);
    g.grad_mu_evt = pointer<E>(outgoing[2]), g.grad_logvar_evt = pointer<E>(outgoing[3]);
    g.partial = pointer<T>(outgoing[4]), g.grad_c_img = pointer<T>(outgoing[5]), g.grad_c_evt = pointer<T>(outgoing[6]);
    const auto arguments = inputs<E>(in, shape, eps, limit, threads);
    IEF_SELECT(fusion_backward<E>)(arguments, g);
}

}  // namespace

void bind_precision_fusion(pybind11::module_& module) {
    namespace py = pybind11;
    using namespace py::literals;
    module.attr("fusion_blocks") = fusion_blocks;
    module.def(
        "fusion_forward",
        [](const std::string& dtype, const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 6>& out, Shape shape, double eps,
           double limit, int threads) {
            const auto run = IEF_BY_DTYPE(dtype, forward);
            py::gil_scoped_release release;
            run(in, out, shape, eps, limit, threads);
        },
        "dtype"_a, "inputs"_a, "outputs"_a, "shape"_a, "eps"_a, "limit"_a, "threads"_a);
    module.def(
        "fusion_backward",
        [](const std::string& dtype, const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 6>& incoming,
           const std::array<uintptr_t, 7>& outgoing, Shape shape, double eps, double limit, int threads) {
            const auto run = IEF_BY_DTYPE(dtype, backward);
            py::gil_scoped_release release;
            run(in, incoming, outgoing, shape, eps, limit, threads);
        },
        "dtype"_a, "inputs"_a, "incoming"_a, "outgoing"_a, "shape"_a, "eps"_a, "limit"_a, "threads"_a);
}

}  // namespace ief
