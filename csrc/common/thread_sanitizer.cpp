// Tells the thread sanitizer what OpenMP orders: what is written before a parallel region is seen in it, and what is
// written in it is seen after. GCC's OpenMP library is not compiled with the sanitizer, which would take every result of
// a region for a race. Compiled with IEF_KERNELS_SANITIZE=thread alone.
#if defined(__SANITIZE_THREAD__) && defined(_OPENMP)
#include <dlfcn.h>

extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);

namespace {

struct Region {
    void (*body)(void*);
    void* data;
    char begun, done;
};

__attribute__((no_sanitize("thread"))) void run(void* region) {
    Region* const r = static_cast<Region*>(region);
    __tsan_acquire(&r->begun);
    r->body(r->data);
    __tsan_release(&r->done);
}

template <class Function>
Function* original(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace

// The two functions by which GCC starts a parallel region with a static and with a dynamic schedule.
extern "C" __attribute__((no_sanitize("thread"))) void GOMP_parallel(void (*body)(void*), void* data, unsigned threads,
                                                          unsigned flags) {
    Region region{body, data, 0, 0};
    __tsan_release(&region.begun);
    original<void(void (*)(void*), void*, unsigned, unsigned)>("GOMP_parallel")(run, &region, threads, flags);
    __tsan_acquire(&region.done);
}

extern "C" __attribute__((no_sanitize("thread"))) void GOMP_parallel_loop_nonmonotonic_dynamic(
    void (*body)(void*), void* data, unsigned threads, long start, long end, long step, long chunk, unsigned flags) {
    Region region{body, data, 0, 0};
    __tsan_release(&region.begun);
    using Loop = void(void (*)(void*), void*, unsigned, long, long, long, long, unsigned);
    original<Loop>("GOMP_parallel_loop_nonmonotonic_dynamic")(run, &region, threads, start, end, step, chunk, flags);
    __tsan_acquire(&region.done);
}
#endif
