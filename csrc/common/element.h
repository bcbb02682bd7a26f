// Element types of feature tensors, named without torch so that kernels' params can carry them.
#pragma once

#include <cstdint>

namespace segkern {

enum class Element : int32_t { kFloat64, kFloat32, kFloat16, kBFloat16 };

inline int64_t element_size(Element element) {
  return element == Element::kFloat64 ? 8 : element == Element::kFloat32 ? 4 : 2;
}

}  // namespace segkern
