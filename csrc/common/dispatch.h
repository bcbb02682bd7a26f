// From run-time dtypes to template arguments.
#pragma once

#include "check.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "element.h"

namespace segkern {

// The element type of a floating tensor, or an error naming the op.
inline Element element_of(const torch::stable::Tensor& tensor, const char* op, const char* name) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Element::kFloat64;
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::Half:
      return Element::kFloat16;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    default:
      fail(op, ": ", name, " must be float64, float32, float16 or bfloat16, got ",
           torch::headeronly::toString(tensor.scalar_type()));
  }
}

}  // namespace segkern

// Calls body with scalar_t = double, float, Half or BFloat16 on the host.
#define SEGKERN_DISPATCH_FLOATING(element, ...)             \
  switch (element) {                                        \
    case ::segkern::Element::kFloat64: {                    \
      using scalar_t = double;                              \
      __VA_ARGS__();                                        \
      break;                                                \
    }                                                       \
    case ::segkern::Element::kFloat32: {                    \
      using scalar_t = float;                               \
      __VA_ARGS__();                                        \
      break;                                                \
    }                                                       \
    case ::segkern::Element::kFloat16: {                    \
      using scalar_t = ::torch::headeronly::Half;           \
      __VA_ARGS__();                                        \
      break;                                                \
    }                                                       \
    case ::segkern::Element::kBFloat16: {                   \
      using scalar_t = ::torch::headeronly::BFloat16;       \
      __VA_ARGS__();                                        \
      break;                                                \
    }                                                       \
  }
