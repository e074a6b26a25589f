// Python's door to csrc/cpu/event_resize.cpp; pointers are integers, 0 stands for an absent tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/event_resize.h"

namespace ief {
namespace {

template <class Map>
void run(const EventFrames& frames, const ResizeAxis& rows, const ResizeAxis& columns, bool halve,
         const EventRule& rule, double divisor, uintptr_t resized, uintptr_t maps, uintptr_t peaks, int threads) {
    IEF_SELECT(event_resize<Map>)
    (frames, rows, columns, halve, rule, static_cast<Map>(divisor), reinterpret_cast<uint8_t*>(resized),
     reinterpret_cast<Map*>(maps), reinterpret_cast<int32_t*>(peaks), threads);
}

ResizeAxis axis(std::array<uintptr_t, 2> tables, int64_t source, int64_t size) {
    return {reinterpret_cast<const int32_t*>(tables[0]), reinterpret_cast<const int16_t*>(tables[1]), source, size};
}

}  // namespace

void bind_event_resize(pybind11::module_& module) {
    namespace py = pybind11;
    using namespace pybind11::literals;

    module.def(
        "event_resize",
        [](bool counts, uintptr_t frames, std::array<int64_t, 3> strides, uintptr_t carry,
           std::array<int64_t, 2> carry_strides, std::array<int64_t, 4> shape, std::array<int64_t, 2> size,
           std::array<uintptr_t, 2> rows, std::array<uintptr_t, 2> columns, bool halve, int32_t threshold,
           int32_t clamp, bool split, double divisor, uintptr_t resized, uintptr_t maps, uintptr_t peaks, int threads) {
            EventFrames f{};
            f.data = reinterpret_cast<const void*>(frames);
            f.segment_stride = strides[0], f.frame_stride = strides[1], f.row_stride = strides[2];
            f.carry = reinterpret_cast<const void*>(carry);
            f.carry_segment_stride = carry_strides[0], f.carry_row_stride = carry_strides[1];
            f.segments = shape[0], f.frames = shape[1], f.rows = shape[2], f.width = shape[3], f.channels = 3;
            const ResizeAxis down = axis(rows, shape[2], size[1]), across = axis(columns, shape[3], size[0]);
            const EventRule rule{threshold, clamp, split};
            py::gil_scoped_release release;
            (counts ? run<uint8_t> : run<float>)(f, down, across, halve, rule, divisor, resized, maps, peaks, threads);
        },
        "counts"_a, "frames"_a, "strides"_a, "carry"_a, "carry_strides"_a, "shape"_a, "size"_a, "rows"_a, "columns"_a,
        "halve"_a, "threshold"_a, "clamp"_a, "split"_a, "divisor"_a, "resized"_a, "maps"_a, "peaks"_a, "threads"_a);
}

}  // namespace ief
