// Bindings of csrc/cpu/kalman_scan.cpp for Python; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/kalman_scan.h"

namespace ief {
namespace {

template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

using Shape = std::array<int64_t, 3>;  // batch, steps, dim

// tensors: x, var, lengths, q, influence, s0, p0
template <class T>
ScanInputs<T> inputs(const std::array<uintptr_t, 7>& t, Shape shape, double eps, double diffuse, int threads) {
    return {pointer<const T>(t[0]), pointer<const T>(t[1]), pointer<const int64_t>(t[2]), pointer<const T>(t[3]),
            pointer<const T>(t[4]), pointer<const T>(t[5]), pointer<const T>(t[6]), T(eps), T(diffuse), shape[0],
            shape[1], shape[2], threads};
}

// outputs: mean, var, gain, s, p
template <class T>
void forward(const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 5>& out, Shape shape, double eps,
             double diffuse, int threads) {
    const ScanOutputs<T> outputs{pointer<T>(out[0]), pointer<T>(out[1]), pointer<T>(out[2]), pointer<T>(out[3]),
                                 pointer<T>(out[4])};
    const auto arguments = inputs<T>(in, shape, eps, diffuse, threads);
    IEF_SELECT(scan_forward<T>)(arguments, outputs);
}

// incoming: saved mean, saved var, gradients of mean, var, gain, s, p; outgoing: x, var, s0, p0, partial (float64), q,
// influence
template <class T>
void backward(const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 7>& incoming,
              const std::array<uintptr_t, 7>& outgoing, Shape shape, double eps, double diffuse, int threads) {
    ScanGradients<T> g{};
    g.mean = pointer<const T>(incoming[0]), g.var = pointer<const T>(incoming[1]);
    g.grad_mean = pointer<const T>(incoming[2]), g.grad_variance = pointer<const T>(incoming[3]);
    g.grad_gain = pointer<const T>(incoming[4]);
    g.grad_s = pointer<const T>(incoming[5]), g.grad_p = pointer<const T>(incoming[6]);
    g.grad_x = pointer<T>(outgoing[0]), g.grad_var = pointer<T>(outgoing[1]);
    g.grad_s0 = pointer<T>(outgoing[2]), g.grad_p0 = pointer<T>(outgoing[3]);
    g.partial = pointer<double>(outgoing[4]);
    g.grad_q = pointer<T>(outgoing[5]), g.grad_influence = pointer<T>(outgoing[6]);
    const auto arguments = inputs<T>(in, shape, eps, diffuse, threads);
    IEF_SELECT(scan_backward<T>)(arguments, g);
}

}  // namespace

void bind_kalman_scan(pybind11::module_& module) {
    namespace py = pybind11;
    using namespace py::literals;
    module.def(
        "scan_forward",
        [](bool wide, const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 5>& out, Shape shape, double eps,
           double diffuse, int threads) {
            py::gil_scoped_release release;
            (wide ? forward<double> : forward<float>)(in, out, shape, eps, diffuse, threads);
        },
        "wide"_a, "inputs"_a, "outputs"_a, "shape"_a, "eps"_a, "diffuse"_a, "threads"_a);
    module.def(
        "scan_backward",
        [](bool wide, const std::array<uintptr_t, 7>& in, const std::array<uintptr_t, 7>& incoming,
           const std::array<uintptr_t, 7>& outgoing, Shape shape, double eps, double diffuse, int threads) {
            py::gil_scoped_release release;
            (wide ? backward<double> : backward<float>)(in, incoming, outgoing, shape, eps, diffuse, threads);
        },
        "wide"_a, "inputs"_a, "incoming"_a, "outgoing"_a, "shape"_a, "eps"_a, "diffuse"_a, "threads"_a);
}

}  // namespace ief
