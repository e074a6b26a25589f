// From the name of a tensor's element type to the template for it, for bindings.
#pragma once

#include <stdexcept>
#include <string>

#include "common/halves.h"

namespace ief {

template <class Function>
Function* by_dtype(const std::string& dtype, Function* f32, Function* f64, Function* bf16, Function* f16) {
    if (dtype == "float32") return f32;
    if (dtype == "float64") return f64;
    if (dtype == "bfloat16") return bf16;
    if (dtype == "float16") return f16;
    throw std::invalid_argument("no kernel for dtype " + dtype);
}

}  // namespace ief

#define IEF_BY_DTYPE(dtype, function) \
    ::ief::by_dtype(dtype, &function<float>, &function<double>, &function<::ief::bfloat16>, &function<::ief::float16>)
