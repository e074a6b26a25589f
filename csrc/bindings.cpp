// The extension module ief_kernels._C. It receives pointers, sizes and strides as integers and knows nothing of torch,
// so that it builds without torch and runs with any version of it. Checking shapes and dtypes is Python's part.
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "common/isa.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

// setup.py defines IEF_OPS(OP) as OP(a) OP(b) ..., one for every csrc/cpu/<op>_bind.cpp.
#define IEF_DECLARE_BIND(op) void bind_##op(pybind11::module_&);
#define IEF_CALL_BIND(op) ief::bind_##op(module);

namespace ief {
IEF_OPS(IEF_DECLARE_BIND)
}

PYBIND11_MODULE(_C, module) {
    module.doc() = "C++ kernels of ief_kernels; use them through the functions of that package.";

    module.def("isa", [] { return std::string(ief::isa_name(ief::active_isa())); },
               "Instruction set in use: scalar, avx2 or avx512.");
    module.def(
        "set_isa",
        [](const std::string& name) {
            for (ief::Isa isa : {ief::Isa::scalar, ief::Isa::avx2, ief::Isa::avx512})
                if (name == ief::isa_name(isa)) return ief::set_active_isa(isa);
            throw std::invalid_argument("unknown instruction set '" + name + "': scalar, avx2 or avx512");
        },
        pybind11::arg("name"), "Use another instruction set; False if the processor or the build has none of that name.");
    module.def("openmp", [] {
#if defined(_OPENMP)
        return true;
#else
        return false;
#endif
    }, "Whether the kernels were compiled with OpenMP.");

    IEF_OPS(IEF_CALL_BIND)
}
