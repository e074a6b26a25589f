// Bindings of csrc/cpu/low_rank_fusion.cpp for Python; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <tuple>

#include "common/by_dtype.h"
#include "cpu/fusion_call.h"
#include "cpu/low_rank_fusion.h"

namespace ief {
namespace {

using Columns = std::tuple<uintptr_t, int64_t, int64_t>;  // factors, columns of each, width

template <class T>
std::unique_ptr<T[]> zeroed(int64_t count) { return std::unique_ptr<T[]>(new T[count]()); }

void require_columns(const Columns& columns, int64_t dim) {
    const auto [factors, count, width] = columns;
    if (count < 0 || count > kMostColumns || count % kColumnGroup || width < dim || width % kRowMultiple)
        refuse("the factors have another layout than the kernel takes");
    if (count) require_memory("a factor", {factors});
}

template <class E, class T = Arithmetic<E>>
LowRankInputs<E> with_factors(const FusionCall<E>& call, const Columns& columns, T* workspace) {
    return {call.inputs, pointer<const T>(std::get<0>(columns)), std::get<1>(columns), std::get<2>(columns), workspace};
}

// outputs: mean, var, w_img, w_evt
template <class E, class T = Arithmetic<E>>
void forward(const FusionTensors& in, const std::array<uintptr_t, 4>& out, FusionShape shape, FusionFactors factors,
             double eps, double limit, int threads, const Columns& columns) {
    const FusionCall<E> call(in, shape, factors, eps, limit, threads);
    require_columns(columns, shape[2]);
    if (shape[0] && shape[2]) require_memory("an output", {out[0], out[1], out[2], out[3]});
    const auto workspace = zeroed<T>(threads * low_rank_room(std::get<2>(columns)));
    const LowRankOutputs<E> outputs{pointer<E>(out[0]), pointer<E>(out[1]), pointer<E>(out[2]), pointer<E>(out[3])};
    IEF_SELECT(low_rank_forward<E>)(with_factors(call, columns, workspace.get()), outputs);
}

// incoming: mean, var, w_img, w_evt; outgoing: mu_img, logvar_img, mu_evt, logvar_evt, factors, c_img, c_evt
template <class E, class T = Arithmetic<E>>
void backward(const FusionTensors& in, const std::array<uintptr_t, 4>& incoming, const std::array<uintptr_t, 7>& outgoing,
              FusionShape shape, FusionFactors factors, double eps, double limit, int threads, const Columns& columns) {
    const FusionCall<E> call(in, shape, factors, eps, limit, threads);
    require_columns(columns, shape[2]);
    if (shape[0] && shape[2]) require_memory("an output", {outgoing[0], outgoing[1], outgoing[2], outgoing[3]});
    if (std::get<1>(columns)) require_memory("an output", {outgoing[4]});
    const int64_t width = std::get<2>(columns);
    const auto workspace = zeroed<T>(threads * low_rank_room(width));
    const auto partial = room<T>(fusion_blocks * (2 * std::get<1>(columns) + 2) * width);
    const auto zeros = zeroed<E>(shape[2]);
    LowRankGradients<E> g{};
    g.grad_mean = pointer<const E>(incoming[0]), g.grad_var = pointer<const E>(incoming[1]);
    g.grad_w_img = pointer<const E>(incoming[2]), g.grad_w_evt = pointer<const E>(incoming[3]);
    g.zeros = zeros.get();
    g.grad_mu_img = pointer<E>(outgoing[0]), g.grad_logvar_img = pointer<E>(outgoing[1]);
    g.grad_mu_evt = pointer<E>(outgoing[2]), g.grad_logvar_evt = pointer<E>(outgoing[3]);
    g.partial = partial.get(), g.grad_factors = pointer<T>(outgoing[4]);
    g.grad_c_img = pointer<T>(outgoing[5]), g.grad_c_evt = pointer<T>(outgoing[6]);
    IEF_SELECT(low_rank_backward<E>)(with_factors(call, columns, workspace.get()), g);
}

}  // namespace

void bind_low_rank_fusion(pybind11::module_& module) {
    namespace py = pybind11;
    using namespace py::literals;
    module.def(
        "low_rank_forward",
        [](const std::string& dtype, const FusionTensors& in, FusionShape shape, FusionFactors factors, double eps,
           double limit, int threads, const Columns& columns, const std::array<uintptr_t, 4>& out) {
            const auto run = IEF_BY_DTYPE(dtype, forward);
            py::gil_scoped_release release;
            run(in, out, shape, factors, eps, limit, threads, columns);
        },
        "dtype"_a, "inputs"_a, "shape"_a, "factors"_a, "eps"_a, "limit"_a, "threads"_a, "columns"_a, "outputs"_a);
    module.def(
        "low_rank_backward",
        [](const std::string& dtype, const FusionTensors& in, FusionShape shape, FusionFactors factors, double eps,
           double limit, int threads, const Columns& columns, const std::array<uintptr_t, 4>& incoming,
           const std::array<uintptr_t, 7>& outgoing) {
            const auto run = IEF_BY_DTYPE(dtype, backward);
            py::gil_scoped_release release;
            run(in, incoming, outgoing, shape, factors, eps, limit, threads, columns);
        },
        "dtype"_a, "inputs"_a, "shape"_a, "factors"_a, "eps"_a, "limit"_a, "threads"_a, "columns"_a, "incoming"_a,
        "outgoing"_a);
}

}  // namespace ief
