// The element types of half precision, and the type of their arithmetic.
#pragma once

#include <cstdint>

namespace ief {

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

template <class Element>
struct ArithmeticOf {
    using type = float;
};
template <>
struct ArithmeticOf<double> {
    using type = double;
};
template <class Element>
using Arithmetic = typename ArithmeticOf<Element>::type;

}  // namespace ief
