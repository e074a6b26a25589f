// Bindings of csrc/cpu/kalman_scan.cpp for Python; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>

#include "common/by_dtype.h"
#include "common/checks.h"
#include "cpu/kalman_scan.h"

namespace ief {
namespace {

template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

using Shape = std::array<int64_t, 3>;     // batch, steps, dim
using Inputs = std::array<uintptr_t, 7>;  // x, var, lengths, q, influence, s0, p0

// What a kernel takes, and the memory behind a process noise that is one number: that is where its tensor is null.
template <class E, class T = Arithmetic<E>>
struct Call {
    std::unique_ptr<T[]> filled;
    ScanInputs<E> inputs;

    Call(const Inputs& t, Shape shape, double noise, double eps, double diffuse, int threads) {
        if (require_sizes({shape[0], shape[1], shape[2]}, threads)) require_memory("x or var", {t[0], t[1]});
        if (!t[5] != !t[6]) refuse("s0 and p0 must both be there, or neither");
        require_eps(eps);
        require_influence(pointer<const T>(t[4]));
        const T* q = pointer<const T>(t[3]);
        q ? require_noise(q, shape[2]) : require_noise(&noise, 1);
        if (!q) {
            filled.reset(new T[shape[2]]);
            std::fill_n(filled.get(), shape[2], T(noise));
            q = filled.get();
        }
        inputs = {pointer<const E>(t[0]), pointer<const E>(t[1]), pointer<const int64_t>(t[2]), q,
                  pointer<const T>(t[4]), pointer<const T>(t[5]), pointer<const T>(t[6]), T(eps), T(diffuse), shape[0],
                  shape[1], shape[2], threads};
    }
};

// outputs: mean, var, gain, s, p, kept mean, kept var
template <class E, class T = Arithmetic<E>>
void forward(const Inputs& in, const std::array<uintptr_t, 7>& out, Shape shape, double noise, double eps,
             double diffuse, int threads) {
    const ScanOutputs<E> outputs{pointer<E>(out[0]), pointer<E>(out[1]), pointer<E>(out[2]), pointer<T>(out[3]),
                                 pointer<T>(out[4]), pointer<T>(out[5]), pointer<T>(out[6])};
    const Call<E> call(in, shape, noise, eps, diffuse, threads);
    if (shape[0] && shape[2]) require_memory("an output", {out[3], out[4]});
    if (shape[0] && shape[1] && shape[2]) require_memory("an output", {out[0], out[1], out[2]});
    if (!out[5] != !out[6]) refuse("kept means and variances must both be there, or neither");
    IEF_SELECT(scan_forward<E>)(call.inputs, outputs);
}

// incoming: kept mean, kept var, gradients of mean, var, gain, s, p; outgoing: x, var, s0, p0, q, influence
template <class E, class T = Arithmetic<E>>
void backward(const Inputs& in, const std::array<uintptr_t, 7>& incoming, const std::array<uintptr_t, 6>& outgoing,
              Shape shape, double noise, double eps, double diffuse, int threads) {
    const Call<E> call(in, shape, noise, eps, diffuse, threads);
    require_memory("an output", {outgoing[4], outgoing[5]});
    if (shape[0] && shape[1] && shape[2]) require_memory("an output", {outgoing[0], outgoing[1]});
    if (shape[0] && shape[2] && in[5]) require_memory("an output", {outgoing[2], outgoing[3]});
    if (shape[0] && shape[2] && shape[1] > scan_block) require_memory("mean or variance", {incoming[0], incoming[1]});
    const std::unique_ptr<double[]> partial(new double[2 * shape[0] * shape[2]]);
    ScanGradients<E> g{};
    g.mean = pointer<const T>(incoming[0]), g.var = pointer<const T>(incoming[1]);
    g.grad_mean = pointer<const E>(incoming[2]), g.grad_variance = pointer<const E>(incoming[3]);
    g.grad_gain = pointer<const E>(incoming[4]);
    g.grad_s = pointer<const T>(incoming[5]), g.grad_p = pointer<const T>(incoming[6]);
    g.grad_x = pointer<E>(outgoing[0]), g.grad_var = pointer<E>(outgoing[1]);
    g.grad_s0 = pointer<T>(outgoing[2]), g.grad_p0 = pointer<T>(outgoing[3]);
    g.partial = partial.get();
    g.grad_q = pointer<T>(outgoing[4]), g.grad_influence = pointer<T>(outgoing[5]);
    IEF_SELECT(scan_backward<E>)(call.inputs, g);
}

}  // namespace

void bind_kalman_scan(pybind11::module_& module) {
    namespace py = pybind11;
    using namespace py::literals;
    module.attr("scan_block") = scan_block;
    module.def(
        "scan_forward",
        [](const std::string& dtype, const Inputs& in, Shape shape, double noise, double eps, double diffuse,
           int threads, const std::array<uintptr_t, 7>& out) {
            const auto run = IEF_BY_DTYPE(dtype, forward);
            py::gil_scoped_release release;
            run(in, out, shape, noise, eps, diffuse, threads);
        },
        "dtype"_a, "inputs"_a, "shape"_a, "noise"_a, "eps"_a, "diffuse"_a, "threads"_a, "outputs"_a);
    module.def(
        "scan_backward",
        [](const std::string& dtype, const Inputs& in, Shape shape, double noise, double eps, double diffuse,
           int threads, const std::array<uintptr_t, 7>& incoming, const std::array<uintptr_t, 6>& outgoing) {
            const auto run = IEF_BY_DTYPE(dtype, backward);
            py::gil_scoped_release release;
            run(in, incoming, outgoing, shape, noise, eps, diffuse, threads);
        },
        "dtype"_a, "inputs"_a, "shape"_a, "noise"_a, "eps"_a, "diffuse"_a, "threads"_a, "incoming"_a, "outgoing"_a);
}

}  // namespace ief
