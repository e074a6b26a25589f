// Event counts of uint8 video segments on a CUDA device.
#pragma once

#include <cstdint>

namespace ief::cuda {

// Where the pixels are. Strides count bytes; the width * channels bytes of a row are contiguous.
struct EventFrames {
    const uint8_t* data;  // (segments, frames, rows, width, channels)
    int64_t segment_stride, frame_stride, row_stride;
    const uint8_t* carry;  // (segments, rows, width, channels), or null
    int64_t carry_segment_stride, carry_row_stride;
    int64_t segments, frames, rows, width;
    int channels;  // 3: RGB, 1: luma
};

struct EventRule {
    int32_t threshold;  // in 1e-4 grey levels; an event is a difference strictly above it
    int32_t clamp;      // 1 .. 255
    bool split;         // two maps, brighter and darker, instead of one
};

// Starts the kernel on a stream (a cudaStream_t) of a device and returns at once. maps (segments, [2,] rows, width),
// contiguous, get min(count, clamp) / divisor in float32, or with divisor 0 the clamped counts as bytes. peaks (segments),
// zero before, get each segment's largest clamped count, or is null. Returns null, or the text of CUDA's error.
const char* event_forward(const EventFrames& frames, const EventRule& rule, float divisor, void* maps, int32_t* peaks,
                          int device, void* stream);

}  // namespace ief::cuda
