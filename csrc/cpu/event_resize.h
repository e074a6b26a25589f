// Video frames brought to another size, and the event counts of the result, in one pass over the native frames.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "cpu/event_synthesis.h"

namespace ief {

// Bilinear interpolation along one axis: output i lies between source elements index[i] and index[i] + 1, which weigh
// weight[2 i] and weight[2 i + 1] 2048ths. Indices beyond the ends stand for the end elements.
struct ResizeAxis {
    const int32_t* index;
    const int16_t* weight;
    int64_t source, size;
};

}  // namespace ief

IEF_FOR_EACH_ISA(
    // frames (RGB, its rows and width those of the source) to resized (segments, frames, rows.size, columns.size, 3),
    // which may be null, and to event counts as event_forward's of what `resized` holds: maps (segments, [2,] rows.size,
    // columns.size) or null, and peaks (segments). Everything written is contiguous. With `halve` (both axes exactly
    // half the source) a pixel is the rounded mean of four instead.
    template <class Map>
    void event_resize(const EventFrames& frames, const ResizeAxis& rows, const ResizeAxis& columns, bool halve,
                      const EventRule& rule, Map divisor, uint8_t* resized, Map* maps, int32_t* peaks, int threads);
)
