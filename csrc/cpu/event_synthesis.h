// Event counts of video segments, and their surrogate gradient.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace ief {

// Where the pixels are. Strides count elements; the `width * channels` values of a row are contiguous.
struct EventFrames {
    const void* data;  // (segments, frames, rows, width, channels)
    int64_t segment_stride, frame_stride, row_stride;
    const void* carry;  // (segments, rows, width, channels), or null
    int64_t carry_segment_stride, carry_row_stride;
    int64_t segments, frames, rows, width;
    int channels;  // 3: RGB, 1: luma
};

struct EventRule {
    int32_t threshold;  // in 1e-4 grey levels; an event is a difference strictly above it
    int32_t clamp;      // 1 .. 255
    bool split;         // two maps, brighter and darker, instead of one
};

}  // namespace ief

IEF_FOR_EACH_ISA(
    // maps (segments, [2,] rows, width), contiguous, get min(count, clamp) / divisor; peaks (segments) get the largest
    // min(count, clamp) of each segment. Pixel: uint8_t, float or double; Map: float or double, or uint8_t (no divisor).
    template <class Pixel, class Map>
    void event_forward(const EventFrames& frames, const EventRule& rule, Map divisor, Map* maps, int32_t* peaks,
                       int threads);

    // grad (segments, [2,] rows, width), contiguous, is d loss / d map; scale is the divisor of the maps, one for each
    // segment (scale_stride 1) or one for all (0). grad_frames and grad_carry (null without carry) are contiguous.
    // surrogate is tau in grey levels. Counts saturate at 255, so a clamp of 255 lets every gradient through; there is at
    // least one frame.
    template <class Pixel>
    void event_backward(const EventFrames& frames, const EventRule& rule, Pixel surrogate, const Pixel* grad,
                        const Pixel* scale, int64_t scale_stride, Pixel* grad_frames, Pixel* grad_carry, int threads);
)
