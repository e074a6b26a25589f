// Event counts with 16-byte loads of interleaved RGB: three vectors hold 16 pixels, which one thread follows through all
// frames of a segment with their luma and counts in registers. Every byte of the frames is read once, the map written once.
//
// Rows without gaps between them count as one long row. Where rows or frames start off a 16-byte boundary, a thread loads
// the four aligned vectors around its 48 bytes and shifts them into place; groups that would reach over the end (or the
// start) of a row load single bytes, so nothing outside the frames is read.
#include <cuda_runtime.h>

#include "cuda/event_synthesis.h"

namespace ief::cuda {
namespace {

constexpr int GROUP = 16;  // pixels per thread
constexpr int THREADS = 128;
constexpr uint32_t RED = 2989, GREEN = 5870, BLUE = 1140, GREY = 10000;

struct Launch {
    EventFrames frames;
    EventRule rule;
    float divisor;
    void* maps;
    int32_t* peaks;
    int64_t groups, blocks;  // groups of a row, blocks of a segment
};

template <int CHANNELS>
struct Words {
    uint32_t w[4 * CHANNELS];  // the bytes of one group
};

__device__ __forceinline__ void unpack(const uint4& from, uint32_t* to) {
    to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
}

// `size` bytes of the group at `at` exist; the rest is zero.
template <int CHANNELS>
__device__ __forceinline__ Words<CHANNELS> load_bytes(const uint8_t* at, int size) {
    Words<CHANNELS> words;
#pragma unroll
    for (int k = 0; k < 4 * CHANNELS; ++k) {
        words.w[k] = 0;
#pragma unroll
        for (int b = 0; b < 4; ++b)
            if (4 * k + b < size) words.w[k] |= uint32_t(__ldg(at + 4 * k + b)) << 8 * b;
    }
    return words;
}

// The group at `at` in a row from `begin` to `end`.
template <int CHANNELS, bool ALIGNED>
__device__ __forceinline__ Words<CHANNELS> load(const uint8_t* at, const uint8_t* begin, const uint8_t* end) {
    constexpr int SIZE = GROUP * CHANNELS;
    const int shift = ALIGNED ? 0 : int(reinterpret_cast<uintptr_t>(at) & 15);
    const int64_t left = end - at;
    if (left < (shift ? SIZE + 16 - shift : SIZE) || at - begin < shift)
        return load_bytes<CHANNELS>(at, left < SIZE ? int(left) : SIZE);
    const uint4* vectors = reinterpret_cast<const uint4*>(at - shift);
    Words<CHANNELS> words;
    if constexpr (ALIGNED) {
#pragma unroll
        for (int k = 0; k < CHANNELS; ++k) unpack(__ldg(vectors + k), words.w + 4 * k);
    } else {
        uint32_t wide[4 * CHANNELS + 4];
#pragma unroll
        for (int k = 0; k < CHANNELS; ++k) unpack(__ldg(vectors + k), wide + 4 * k);
        unpack(shift ? __ldg(vectors + CHANNELS) : make_uint4(0, 0, 0, 0), wide + 4 * CHANNELS);
        // Whole words first, by selection, because registers cannot be indexed; then bytes.
#pragma unroll
        for (int k = 0; k < 4 * CHANNELS + 2; ++k) wide[k] = shift & 8 ? wide[k + 2] : wide[k];
#pragma unroll
        for (int k = 0; k < 4 * CHANNELS + 1; ++k) wide[k] = shift & 4 ? wide[k + 1] : wide[k];
#pragma unroll
        for (int k = 0; k < 4 * CHANNELS; ++k) words.w[k] = __funnelshift_r(wide[k], wide[k + 1], 8 * (shift & 3));
    }
    return words;
}

// Luma of 16 pixels by dot products of bytes with 16-bit weights: `lo` takes the lower two bytes of a word, `hi` the upper.
__device__ __forceinline__ void luma_of(const Words<3>& words, int32_t* y) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const uint32_t a = words.w[3 * k], b = words.w[3 * k + 1], c = words.w[3 * k + 2];
        const uint32_t second = __funnelshift_r(a, b, 24), third = __funnelshift_r(b, c, 16);
        y[4 * k] = int32_t(__dp2a_hi(BLUE, a, __dp2a_lo(GREEN << 16 | RED, a, 0u)));
        y[4 * k + 1] = int32_t(__dp2a_hi(BLUE, second, __dp2a_lo(GREEN << 16 | RED, second, 0u)));
        y[4 * k + 2] = int32_t(__dp2a_hi(BLUE, third, __dp2a_lo(GREEN << 16 | RED, third, 0u)));
        y[4 * k + 3] = int32_t(__dp2a_hi(BLUE << 16 | GREEN, c, __dp2a_lo(RED << 16, c, 0u)));
    }
}

__device__ __forceinline__ void luma_of(const Words<1>& words, int32_t* y) {
#pragma unroll
    for (int k = 0; k < GROUP; ++k) y[k] = int32_t(GREY * (words.w[k / 4] >> 8 * (k % 4) & 255));
}

// Clamps the counts of `size` pixels and stores them at pixel `place` of the maps; returns the largest.
__device__ __forceinline__ int32_t store(const int32_t* counts, int size, const Launch& launch, int64_t place) {
    int32_t clamped[GROUP], peak = 0;
#pragma unroll
    for (int k = 0; k < GROUP; ++k) {
        clamped[k] = min(counts[k], launch.rule.clamp);
        if (k < size) peak = max(peak, clamped[k]);
    }
    if (launch.divisor == 0) {
        uint8_t* map = static_cast<uint8_t*>(launch.maps) + place;
#pragma unroll
        for (int k = 0; k < GROUP; ++k)
            if (k < size) map[k] = uint8_t(clamped[k]);
        return peak;
    }
    float* map = static_cast<float*>(launch.maps) + place;
    if (size == GROUP && reinterpret_cast<uintptr_t>(map) % 16 == 0) {
#pragma unroll
        for (int k = 0; k < GROUP; k += 4)
            reinterpret_cast<float4*>(map)[k / 4] =
                make_float4(__fdiv_rn(float(clamped[k]), launch.divisor), __fdiv_rn(float(clamped[k + 1]), launch.divisor),
                            __fdiv_rn(float(clamped[k + 2]), launch.divisor),
                            __fdiv_rn(float(clamped[k + 3]), launch.divisor));
    } else {
#pragma unroll
        for (int k = 0; k < GROUP; ++k)
            if (k < size) map[k] = __fdiv_rn(float(clamped[k]), launch.divisor);
    }
    return peak;
}

template <int CHANNELS, bool SPLIT, bool ALIGNED>
__global__ void __launch_bounds__(THREADS) event_kernel(const __grid_constant__ Launch launch) {
    const EventFrames& f = launch.frames;
    const int64_t segment = blockIdx.x / launch.blocks;
    const int64_t index = (blockIdx.x % launch.blocks) * THREADS + threadIdx.x;  // group within the segment
    const int64_t row = index / launch.groups, first = (index % launch.groups) * GROUP;
    int32_t peak = 0;
    if (row < f.rows) {
        const int64_t length = f.width * CHANNELS;
        int32_t y[GROUP], up[GROUP], down[SPLIT ? GROUP : 1];
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            up[k] = 0;
            if (SPLIT) down[k] = 0;
        }
        const auto frame = [&](int64_t t) {
            const uint8_t* begin = t < 0 ? f.carry + segment * f.carry_segment_stride + row * f.carry_row_stride
                                         : f.data + segment * f.segment_stride + t * f.frame_stride + row * f.row_stride;
            return load<CHANNELS, ALIGNED>(begin + first * CHANNELS, begin, begin + length);
        };
        int64_t t = f.carry ? -1 : 0;
        if (f.frames - t > 1) {
            luma_of(frame(t), y);
            Words<CHANNELS> words = frame(t + 1);
            for (t += 2;; ++t) {
                Words<CHANNELS> ahead = words;
                if (t < f.frames) ahead = frame(t);  // on its way while the frame before it is worked on
                int32_t now[GROUP];
                luma_of(words, now);
#pragma unroll
                for (int k = 0; k < GROUP; ++k) {
                    const int32_t delta = now[k] - y[k];
                    up[k] += (SPLIT ? delta : abs(delta)) > launch.rule.threshold;
                    if (SPLIT) down[k] += -delta > launch.rule.threshold;
                    y[k] = now[k];
                }
                if (t >= f.frames) break;
                words = ahead;
            }
        }
        const int size = f.width - first < GROUP ? int(f.width - first) : GROUP;
        const int64_t area = f.rows * f.width, place = segment * (SPLIT ? 2 : 1) * area + row * f.width + first;
        peak = store(up, size, launch, place);
        if (SPLIT) peak = max(peak, store(down, size, launch, place + area));
    }
    // Integers and a maximum: the result does not depend on the order.
    if (launch.peaks) {
        peak = __reduce_max_sync(0xffffffffu, peak);
        if (threadIdx.x % 32 == 0 && peak > 0) atomicMax(launch.peaks + segment, peak);
    }
}

template <int CHANNELS>
cudaError_t start(const Launch& launch, bool aligned, cudaStream_t stream) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(launch.frames.segments * launch.blocks));
    config.blockDim = dim3(THREADS);
    config.stream = stream;
    const auto kernel = launch.rule.split ? (aligned ? event_kernel<CHANNELS, true, true> : event_kernel<CHANNELS, true, false>)
                                          : (aligned ? event_kernel<CHANNELS, false, true> : event_kernel<CHANNELS, false, false>);
    return cudaLaunchKernelEx(&config, kernel, launch);
}

}  // namespace

const char* event_forward(const EventFrames& frames, const EventRule& rule, float divisor, void* maps, int32_t* peaks,
                          int device, void* stream) {
    Launch launch{frames, rule, divisor, maps, peaks, 0, 0};
    EventFrames& f = launch.frames;
    const int64_t length = f.width * f.channels;
    if (f.row_stride == length && (!f.carry || f.carry_row_stride == length)) f.width *= f.rows, f.rows = 1;
    if (f.segments * f.rows * f.width == 0) return nullptr;
    launch.groups = (f.width + GROUP - 1) / GROUP;
    launch.blocks = (f.rows * launch.groups + THREADS - 1) / THREADS;
    if (f.segments * launch.blocks > 0x7fffffff) return "more pixels than one launch can serve; pass fewer segments";
    uintptr_t offsets = reinterpret_cast<uintptr_t>(f.data) | f.frame_stride | f.segment_stride;
    if (f.rows > 1) offsets |= f.row_stride | f.carry_row_stride;
    if (f.carry) offsets |= reinterpret_cast<uintptr_t>(f.carry) | f.carry_segment_stride;

    int before = device;
    cudaError_t error = cudaGetDevice(&before);
    if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
    if (error == cudaSuccess) {
        const auto on = static_cast<cudaStream_t>(stream);
        const bool aligned = offsets % 16 == 0;
        error = f.channels == 3 ? start<3>(launch, aligned, on) : start<1>(launch, aligned, on);
    }
    if (before != device) cudaSetDevice(before);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ief::cuda
