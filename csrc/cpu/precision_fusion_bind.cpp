// Bindings of csrc/cpu/precision_fusion.cpp for Python; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>

#include "common/by_dtype.h"
#include "cpu/precision_fusion.h"

namespace ief {
namespace {

template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

using Shape = std::array<int64_t, 3>;     // rows, steps, dim
using Factors = std::array<double, 2>;    // c_img and c_evt where they are one number, that is where their tensor is null
using Inputs = std::array<uintptr_t, 7>;  // mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt, lengths

// Workspace, not initialised.
template <class T>
std::unique_ptr<T[]> room(int64_t count) { return std::unique_ptr<T[]>(new T[count]); }

// What a kernel takes, and the memory behind numbers that it reads per dimension.
template <class E, class T = Arithmetic<E>>
struct Call {
    std::unique_ptr<T[]> filled[2];
    FusionInputs<E> inputs;

    Call(const Inputs& t, Shape shape, Factors factors, double eps, double limit, int threads) {
        const T* c[2];
        for (int k = 0; k < 2; ++k) {
            c[k] = pointer<const T>(t[4 + k]);
            if (c[k]) continue;
            filled[k] = room<T>(shape[2]);
            std::fill_n(filled[k].get(), shape[2], T(factors[k]));
            c[k] = filled[k].get();
        }
        inputs = {pointer<const E>(t[0]), pointer<const E>(t[1]), pointer<const E>(t[2]), pointer<const E>(t[3]),
                  c[0], c[1], pointer<const int64_t>(t[6]), shape[0], shape[1], shape[2], T(eps), T(limit), threads};
    }
};

// outputs: mean, var, w_img, w_evt, terms
template <class E, class T = Arithmetic<E>>
void forward(const Inputs& in, const std::array<uintptr_t, 5>& out, Shape shape, Factors factors, double eps,
             double limit, int threads) {
    const Call<E> call(in, shape, factors, eps, limit, threads);
    const auto partial = out[4] ? room<double>(4 * shape[0]) : nullptr;
    const FusionOutputs<E> outputs{pointer<E>(out[0]), pointer<E>(out[1]), pointer<E>(out[2]),
                                   pointer<E>(out[3]), partial.get(),      pointer<T>(out[4])};
    IEF_SELECT(fusion_forward<E>)(call.inputs, outputs);
}

// incoming: mean, var, w_img, w_evt, terms; outgoing: mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt
template <class E, class T = Arithmetic<E>>
void backward(const Inputs& in, const std::array<uintptr_t, 5>& incoming, const std::array<uintptr_t, 6>& outgoing,
              Shape shape, Factors factors, double eps, double limit, int threads) {
    const Call<E> call(in, shape, factors, eps, limit, threads);
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
        [](const std::string& dtype, const Inputs& in, Shape shape, Factors factors, double eps, double limit,
           int threads, const std::array<uintptr_t, 5>& out) {
            const auto run = IEF_BY_DTYPE(dtype, forward);
            py::gil_scoped_release release;
            run(in, out, shape, factors, eps, limit, threads);
        },
        "dtype"_a, "inputs"_a, "shape"_a, "factors"_a, "eps"_a, "limit"_a, "threads"_a, "outputs"_a);
    module.def(
        "fusion_backward",
        [](const std::string& dtype, const Inputs& in, Shape shape, Factors factors, double eps, double limit,
           int threads, const std::array<uintptr_t, 5>& incoming, const std::array<uintptr_t, 6>& outgoing) {
            const auto run = IEF_BY_DTYPE(dtype, backward);
            py::gil_scoped_release release;
            run(in, incoming, outgoing, shape, factors, eps, limit, threads);
        },
        "dtype"_a, "inputs"_a, "shape"_a, "factors"_a, "eps"_a, "limit"_a, "threads"_a, "incoming"_a, "outgoing"_a);
}

}  // namespace ief
