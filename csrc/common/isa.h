// One kernel source, several instruction sets, chosen at run time.
//
// setup.py compiles every csrc/cpu/<op>.cpp once per instruction set, with -DIEF_ISA=scalar, avx2 or avx512 and the
// matching -m flags. Such a file puts everything it defines into `namespace ief::IEF_ISA { ... }`. Its header
// csrc/cpu/<op>.h declares the entry points for all of them at once:
//
//     IEF_FOR_EACH_ISA(void axpy(const float* x, float* y, int64_t n, int threads);)
//
// csrc/cpu/<op>_bind.cpp is compiled once, defines `void ief::bind_<op>(pybind11::module_&)`, and picks the version
// that this processor runs:
//
//     IEF_SELECT(axpy)(x, y, n, threads);
//
// Kernel files must keep helpers in their own namespace (or `static`), and must not instantiate templates of the
// standard library: the linker keeps one copy of those, and it may be one that needs a newer processor.
#pragma once

#if defined(IEF_HAVE_AVX2)
#define IEF_ONLY_AVX2(...) __VA_ARGS__
#else
#define IEF_ONLY_AVX2(...)
#endif
#if defined(IEF_HAVE_AVX512)
#define IEF_ONLY_AVX512(...) __VA_ARGS__
#else
#define IEF_ONLY_AVX512(...)
#endif

#define IEF_FOR_EACH_ISA(...)                                \
    namespace ief::scalar {                                  \
    __VA_ARGS__                                              \
    }                                                        \
    IEF_ONLY_AVX2(namespace ief::avx2 { __VA_ARGS__ })       \
    IEF_ONLY_AVX512(namespace ief::avx512 { __VA_ARGS__ })

namespace ief {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2 };

// The best instruction set that was compiled, that this processor has, and that IEF_KERNELS_ISA allows.
Isa active_isa();
// Lowers (or restores) it, for tests and comparisons; returns false where the processor or the build has none.
bool set_active_isa(Isa isa);
const char* isa_name(Isa isa);

template <class Function>
Function* select(Function* scalar, Function* avx2, Function* avx512) {
    const Isa isa = active_isa();
    if (isa == Isa::avx512 && avx512) return avx512;
    if (isa >= Isa::avx2 && avx2) return avx2;
    return scalar;
}

}  // namespace ief

#if defined(IEF_HAVE_AVX2)
#define IEF_AVX2_OR_SCALAR(...) &::ief::avx2::__VA_ARGS__
#else
#define IEF_AVX2_OR_SCALAR(...) &::ief::scalar::__VA_ARGS__
#endif
#if defined(IEF_HAVE_AVX512)
#define IEF_AVX512_OR_SCALAR(...) &::ief::avx512::__VA_ARGS__
#else
#define IEF_AVX512_OR_SCALAR(...) &::ief::scalar::__VA_ARGS__
#endif

#define IEF_SELECT(...) \
    ::ief::select(&::ief::scalar::__VA_ARGS__, IEF_AVX2_OR_SCALAR(__VA_ARGS__), IEF_AVX512_OR_SCALAR(__VA_ARGS__))
