#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace ief {
namespace {

bool supported(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return true;
        case Isa::avx2:
#if defined(IEF_HAVE_AVX2)
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
            return false;
#endif
        case Isa::avx512:
#if defined(IEF_HAVE_AVX512)
            return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
            return false;
#endif
    }
    return false;
}

Isa detect() {
    Isa limit = Isa::avx512;
    if (const char* wanted = std::getenv("IEF_KERNELS_ISA")) {
        for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
            if (std::strcmp(wanted, isa_name(isa)) == 0) limit = isa;
    }
    for (Isa isa : {Isa::avx512, Isa::avx2})
        if (isa <= limit && supported(isa)) return isa;
    return Isa::scalar;
}

std::atomic<Isa>& current() {
    static std::atomic<Isa> isa{detect()};
    return isa;
}

}  // namespace

Isa active_isa() { return current().load(std::memory_order_relaxed); }

bool set_active_isa(Isa isa) {
    if (!supported(isa)) return false;
    current().store(isa, std::memory_order_relaxed);
    return true;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        case Isa::scalar:
            break;
    }
    return "scalar";
}

}  // namespace ief
