// Bindings of csrc/cpu/kalman_scan.cpp for Python; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "common/by_dtype.h"
#include "cpu/kalman_scan.h"

namespace ief {
namespace {

template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

using Shape = std::array<int64_t, 3>;  // batch, steps, dim

// tensors: x, var, lengths, q, influence, s0, p0
template <class E, class T = Arithmetic<E>>
ScanInputs<E> inputs(const std::array<uintptr_t, 7>& t, Shape shape, double eps, double diffuse, int threads) {
    return {pointer<const E>(t[0]), pointer<const E>(t[1]), pointer<const int64_t>(t[2]), pointer<const T>(t[3]),
            pointer<const T>(t[4]), pointer<const T>(t[5]), pointer<const T>(t[6]), T(eps), T(diffuse), shape[0],
            shape[1], shape[2], threads};
}

// outputs: mean, var, gain, s, p, kept mean, kept var
template <class E, class T = Arithmetic<E>>
void forward(const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 7>& out, Shape shape, double eps,
             double diffuse, int threads) {
    const ScanOutputs<E> outputs{pointer<E>(out[0]), pointer<E>(out[1]), pointer<E>(out[2]), pointer<T>(out[3]),
                                 pointer<T>(out[4]), pointer<T>(out[5]), pointer<T>(out[6])};
    const auto arguments = inputs<E>(in, shape, eps, diffuse, threads);
    IEF_SELECT(scan_forward<E>)(arguments, outputs);
}

// incoming: kept mean, kept var, gradients of mean, var, gain, s, p; outgoing: x, var, s0, p0, partial (float64), q,
// influence
template <class E, class T = Arithmetic<E>>
void backward(const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 7>& incoming,
              const std::array<uintptr_t, 7>& outgoing, Shape shape, double eps, double diffuse, int threads) {
    ScanGradients<E> g{};
    g.mean = pointer<const T>(incoming[0]), g.var = pointer<const T>(incoming[1]);
    g.grad_mean = pointer<const E>(incoming[2]), g.grad_variance = pointer<const E>(incoming[3]);
    g.grad_gain = pointer<const E>(incoming[4]);
    g.grad_s = pointer<const T>(incoming[5]), g.grad_p = pointer<const T>(incoming[6]);
    g.grad_x = pointer<E>(outgoing[0]), g.grad_var = pointer<E>(outgoing[1]);
    g.grad_s0 = pointer<T>(outgoing[2]), g.grad_p0 = pointer<T>(outgoing[3]);
    g.partial = pointer<double>(outgoing[4]);
    g.grad_q = pointer<T>(outgoing[5]), g.grad_influence = pointer<T>(outgoing[6]);
    const auto arguments = inputs<E>(in, shape, eps, diffuse, threads);
    IEF_SELECT(scan_backward<E>)(arguments, g);
}

}  // namespace

void bind_kalman_scan(pybind11::module_& module) {
    namespace py = pybind11;
    using namespace py::literals;
    module.attr("scan_block") = scan_block;
    module.def(
        "scan_forward",
        [](const std::string& dtype, const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 7>& out, Shape shape, double eps,
           double diffuse, int threads) {
            const auto run = IEF_BY_DTYPE(dtype, forward);
            py::gil_scoped_release release;
            run(in, out, shape, eps, diffuse, threads);
        },
        "dtype"_a, "inputs"_a, "outputs"_a, "shape"_a, "eps"_a, "diffuse"_a, "threads"_a);
    module.def(
        "scan_backward",
        [](const std::string& dtype, const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 7>& incoming,
           const std::array<uintptr_t, 7>& outgoing, Shape shape, double eps, double diffuse, int threads) {
            const auto run = IEF_BY_DTYPE(dtype, backward);
            py::gil_scoped_release release;
            run(in, incoming, outgoing, shape, eps, diffuse, threads);
        },
        "dtype"_a, "inputs"_a, "incoming"_a, "outgoing"_a, "shape"_a, "eps"_a, "diffuse"_a, "threads"_a);
}

}  // namespace ief
