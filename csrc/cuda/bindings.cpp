// The extension module ief_kernels._cuda. Like ief_kernels._C it receives pointers, sizes and a stream as integers.
// CUDA's runtime is linked in statically and looks for a driver at the first launch, so the module loads anywhere.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "cuda/event_synthesis.h"

namespace {

void check(const char* error, const char* what) {
    if (error) throw std::runtime_error(std::string(what) + " did not start on the GPU: " + error);
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    namespace py = pybind11;
    using namespace pybind11::literals;
    module.doc() = "CUDA kernels of ief_kernels; use them through the functions of that package.";
    module.attr("architectures") = IEF_CUDA_ARCHITECTURES;

    module.def(
        "event_synthesis_forward",
        [](uintptr_t frames, std::array<int64_t, 3> strides, uintptr_t carry, std::array<int64_t, 2> carry_strides,
           std::array<int64_t, 5> shape, int32_t threshold, int32_t clamp, bool split, double divisor, uintptr_t maps,
           uintptr_t peaks, int device, uintptr_t stream) {
            ief::cuda::EventFrames f{};
            f.data = reinterpret_cast<const uint8_t*>(frames);
            f.segment_stride = strides[0], f.frame_stride = strides[1], f.row_stride = strides[2];
            f.carry = reinterpret_cast<const uint8_t*>(carry);
            f.carry_segment_stride = carry_strides[0], f.carry_row_stride = carry_strides[1];
            f.segments = shape[0], f.frames = shape[1], f.rows = shape[2], f.width = shape[3];
            f.channels = static_cast<int>(shape[4]);
            const ief::cuda::EventRule rule{threshold, clamp, split};
            const char* error = nullptr;
            {
                py::gil_scoped_release release;
                error = ief::cuda::event_forward(f, rule, static_cast<float>(divisor), reinterpret_cast<void*>(maps),
                                                 reinterpret_cast<int32_t*>(peaks), device,
                                                 reinterpret_cast<void*>(stream));
            }
            check(error, "event_synthesis");
        },
        "frames"_a, "strides"_a, "carry"_a, "carry_strides"_a, "shape"_a, "threshold"_a, "clamp"_a, "split"_a,
        "divisor"_a, "maps"_a, "peaks"_a, "device"_a, "stream"_a);
}
