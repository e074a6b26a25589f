// What the bindings of both fusions do with the arguments from Python.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "common/checks.h"
#include "cpu/precision_fusion.h"

namespace ief {
namespace {

template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

using FusionShape = std::array<int64_t, 3>;      // rows, steps, dim
using FusionFactors = std::array<double, 2>;     // c_img and c_evt where they are one number: their tensor is null
using FusionTensors = std::array<uintptr_t, 7>;  // mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt, lengths

// Workspace, not initialised.
template <class T>
std::unique_ptr<T[]> room(int64_t count) { return std::unique_ptr<T[]>(new T[count]); }

// What a kernel takes, and the memory behind numbers that it reads per dimension.
template <class E, class T = Arithmetic<E>>
struct FusionCall {
    std::unique_ptr<T[]> filled[2];
    FusionInputs<E> inputs;

    FusionCall(const FusionTensors& t, FusionShape shape, FusionFactors factors, double eps, double limit,
               int threads) {
        if (require_sizes({shape[0], shape[2]}, threads)) require_memory("an input", {t[0], t[1], t[2], t[3]});
        if (shape[1] < 0 || (t[6] && shape[0] && (shape[1] == 0 || shape[0] % shape[1])))
            refuse("rows and steps do not fit each other");
        require_eps(eps);
        const T* c[2];
        for (int k = 0; k < 2; ++k) {
            const char* const modality = k == 0 ? "image" : "event";
            c[k] = pointer<const T>(t[4 + k]);
            if (c[k]) {
                require_factor(modality, c[k], shape[2]);
                continue;
            }
            require_factor(modality, &factors[k], 1);
            filled[k] = room<T>(shape[2]);
            std::fill_n(filled[k].get(), shape[2], T(factors[k]));
            c[k] = filled[k].get();
        }
        inputs = {pointer<const E>(t[0]), pointer<const E>(t[1]), pointer<const E>(t[2]), pointer<const E>(t[3]),
                  c[0], c[1], pointer<const int64_t>(t[6]), shape[0], shape[1], shape[2], T(eps), T(limit), threads};
    }
};

}  // namespace
}  // namespace ief
