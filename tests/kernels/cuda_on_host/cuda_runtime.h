// As much of CUDA as csrc/cuda needs, run by a plain C++ compiler: the threads of a block one after another, each warp from
// its last lane to its first, so that lane 0 sees the whole warp's maximum. Races do not show here; indices and arithmetic do.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <cstdlib>

using std::abs;
using std::max;
using std::min;

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    explicit dim3(unsigned size) : x(size) {}
};
inline dim3 blockIdx, threadIdx, blockDim, gridDim;

struct uint4 {
    uint32_t x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class Value>
Value __ldg(const Value* at) {
    if (reinterpret_cast<uintptr_t>(at) % sizeof(Value)) abort();  // a GPU faults
    return *at;
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return uint32_t((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline uint32_t __dp2a_lo(uint32_t pair, uint32_t bytes, uint32_t sum) {
    return sum + (pair & 0xffff) * (bytes & 255) + (pair >> 16) * (bytes >> 8 & 255);
}
inline uint32_t __dp2a_hi(uint32_t pair, uint32_t bytes, uint32_t sum) { return __dp2a_lo(pair, bytes >> 16, sum); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int32_t __reduce_max_sync(uint32_t, int32_t value) {
    static int32_t largest;
    largest = threadIdx.x % 32 == 31 ? value : max(largest, value);
    return largest;
}
inline void atomicMax(int32_t* at, int32_t value) { *at = max(*at, value); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    unsigned dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Actual&&... arguments) {
    gridDim = config->gridDim, blockDim = config->blockDim;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
        for (unsigned warp = 0; warp < blockDim.x; warp += 32)
            for (int lane = 31; lane >= 0; --lane) {
                threadIdx.x = warp + lane;
                kernel(arguments...);
            }
    return cudaSuccess;
}
