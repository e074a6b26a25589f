// Bindings of csrc/cpu/event_synthesis.cpp for Python; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "common/checks.h"
#include "cpu/event_synthesis.h"

namespace ief {
namespace {

using Strides = std::array<int64_t, 3>;  // segment, frame, row

EventFrames describe(uintptr_t frames, Strides strides, uintptr_t carry, std::array<int64_t, 2> carry_strides,
                     std::array<int64_t, 5> shape) {
    if (require_sizes({shape[0], shape[1], shape[2], shape[3], shape[4]}, 1)) require_memory("frames", {frames});
    if (shape[4] != 1 && shape[4] != 3) refuse("a pixel must have 1 or 3 channels, got " + std::to_string(shape[4]));
    EventFrames f{};
    f.data = reinterpret_cast<const void*>(frames);
    f.segment_stride = strides[0], f.frame_stride = strides[1], f.row_stride = strides[2];
    f.carry = reinterpret_cast<const void*>(carry);
    f.carry_segment_stride = carry_strides[0], f.carry_row_stride = carry_strides[1];
    f.segments = shape[0], f.frames = shape[1], f.rows = shape[2], f.width = shape[3];
    f.channels = static_cast<int>(shape[4]);
    return f;
}

void require(const EventFrames& f, const EventRule& rule, int threads) {
    require_sizes({f.segments, f.frames, f.rows, f.width}, threads);
    if (rule.threshold < 0) refuse("threshold must not be negative");
    if (rule.clamp < 1 || rule.clamp > 255) refuse("clamp must be from 1 to 255");
}

template <class Pixel, class Map>
void forward(const EventFrames& frames, const EventRule& rule, double divisor, uintptr_t maps, uintptr_t peaks,
             int threads) {
    IEF_SELECT(event_forward<Pixel, Map>)
    (frames, rule, static_cast<Map>(divisor), reinterpret_cast<Map*>(maps), reinterpret_cast<int32_t*>(peaks), threads);
}

template <class Pixel>
void backward(const EventFrames& frames, const EventRule& rule, double surrogate, uintptr_t grad, uintptr_t scale,
              int64_t scale_stride, uintptr_t grad_frames, uintptr_t grad_carry, int threads) {
    IEF_SELECT(event_backward<Pixel>)
    (frames, rule, static_cast<Pixel>(surrogate), reinterpret_cast<const Pixel*>(grad),
     reinterpret_cast<const Pixel*>(scale), scale_stride, reinterpret_cast<Pixel*>(grad_frames),
     reinterpret_cast<Pixel*>(grad_carry), threads);
}

}  // namespace

void bind_event_synthesis(pybind11::module_& module) {
    namespace py = pybind11;
    using namespace pybind11::literals;

    module.def(
        "event_synthesis_forward",
        [](const std::string& dtype, bool counts, uintptr_t frames, Strides strides, uintptr_t carry,
           std::array<int64_t, 2> carry_strides, std::array<int64_t, 5> shape, int32_t threshold, int32_t clamp,
           bool split, double divisor, uintptr_t maps, uintptr_t peaks, int threads) {
            const EventFrames f = describe(frames, strides, carry, carry_strides, shape);
            const EventRule rule{threshold, clamp, split};
            require(f, rule, threads);
            if (f.segments) require_memory("an output", {peaks});
            if (f.segments && f.rows && f.width) require_memory("an output", {maps});
            py::gil_scoped_release release;
            if (dtype == "uint8")
                (counts ? forward<uint8_t, uint8_t> : forward<uint8_t, float>)(f, rule, divisor, maps, peaks, threads);
            else if (dtype == "float32")
                (counts ? forward<float, uint8_t> : forward<float, float>)(f, rule, divisor, maps, peaks, threads);
            else if (dtype == "float64")
                (counts ? forward<double, uint8_t> : forward<double, double>)(f, rule, divisor, maps, peaks, threads);
            else
                throw std::invalid_argument("event_synthesis_forward: dtype " + dtype);
        },
        "dtype"_a, "counts"_a, "frames"_a, "strides"_a, "carry"_a, "carry_strides"_a, "shape"_a, "threshold"_a,
        "clamp"_a, "split"_a, "divisor"_a, "maps"_a, "peaks"_a, "threads"_a);

    module.def(
        "event_synthesis_backward",
        [](const std::string& dtype, uintptr_t frames, Strides strides, uintptr_t carry,
           std::array<int64_t, 2> carry_strides, std::array<int64_t, 5> shape, int32_t threshold, int32_t clamp,
           bool split, double surrogate, uintptr_t grad, uintptr_t scale, int64_t scale_stride, uintptr_t grad_frames,
           uintptr_t grad_carry, int threads) {
            const EventFrames f = describe(frames, strides, carry, carry_strides, shape);
            const EventRule rule{threshold, clamp, split};
            require(f, rule, threads);
            if (f.segments && f.frames && f.rows && f.width) {
                require_memory("an input", {grad, scale});
                require_memory("an output", {grad_frames});
                if (carry) require_memory("an output", {grad_carry});
            }
            py::gil_scoped_release release;
            if (dtype == "float32")
                backward<float>(f, rule, surrogate, grad, scale, scale_stride, grad_frames, grad_carry, threads);
            else if (dtype == "float64")
                backward<double>(f, rule, surrogate, grad, scale, scale_stride, grad_frames, grad_carry, threads);
            else
                throw std::invalid_argument("event_synthesis_backward: dtype " + dtype);
        },
        "dtype"_a, "frames"_a, "strides"_a, "carry"_a, "carry_strides"_a, "shape"_a, "threshold"_a, "clamp"_a,
        "split"_a, "surrogate"_a, "grad"_a, "scale"_a, "scale_stride"_a, "grad_frames"_a, "grad_carry"_a, "threads"_a);
}

}  // namespace ief
