// What the bindings check before a kernel follows an address: sizes, missing memory, and the values of parameters.
// Shapes, dtypes and devices are Python's part (ief_kernels/_operands.py).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>

namespace ief {

[[noreturn]] inline void refuse(const std::string& why) { throw std::invalid_argument(why); }

// No size is negative, their product is a number of elements, and there is a thread; returns the product.
inline int64_t require_sizes(std::initializer_list<int64_t> sizes, int threads) {
    int64_t count = 1;
    for (int64_t size : sizes) {
        if (size < 0) refuse("a size is negative: " + std::to_string(size));
        if (__builtin_mul_overflow(count, size, &count)) refuse("the number of elements is beyond 63 bits");
    }
    if (threads < 1) refuse("the number of threads must be at least 1, got " + std::to_string(threads));
    return count;
}

// A tensor whose storage was freed has the address 0.
inline void require_memory(const char* what, std::initializer_list<uintptr_t> addresses) {
    for (uintptr_t address : addresses)
        if (!address) refuse(std::string(what) + " has no memory");
}

inline void require_eps(double eps) {
    if (!(eps >= 0 && eps <= std::numeric_limits<double>::max()))
        refuse("eps must be a finite number, 0 or more, got " + std::to_string(eps));
}

// q >= 0. NaN and infinity pass: they make the outputs not finite (docs/specification.md#not-finite).
template <class T>
void require_noise(const T* q, int64_t count) {
    bool bad = false;
    for (int64_t d = 0; d < count; ++d) bad |= q[d] < 0;
    if (!bad) return;
    for (int64_t d = 0; d < count; ++d)
        if (q[d] < 0) refuse("process_noise must not be negative, got a tensor that contains " + std::to_string(q[d]));
}

// The factor c = nu/(nu + 1) of a positive nu; NaN passes.
template <class T>
void require_factor(const char* modality, const T* c, int64_t count) {
    bool bad = false;
    for (int64_t d = 0; d < count; ++d) bad |= (c[d] <= 0) | (c[d] > 1);
    if (!bad) return;
    for (int64_t d = 0; d < count; ++d)
        if (c[d] <= 0 || c[d] > 1)
            refuse(std::string("nu must be positive, got ") + std::to_string(double(c[d]) / (1 - double(c[d]))) +
                   " for the " + modality + " belief");
}

// k = 1/(nu + 1) of a positive nu; NaN passes.
template <class T>
void require_influence(const T* k) {
    if (k && (*k < 0 || *k > 1)) refuse("nu must be positive, got " + std::to_string(1 / double(*k) - 1));
}

}  // namespace ief
