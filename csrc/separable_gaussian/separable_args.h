// The separable Gaussian's operator arguments, checked the same way for both devices.
#pragma once

#include <vector>

#include "../common/check.h"
#include "../common/layout.h"

namespace segkern {

struct SeparableCall {
  Tensor values, widths;       // dense
  std::vector<int64_t> sizes;  // of the axes, in the order of the widths: the last axis first
  int64_t planes;              // N * C

  int64_t axes() const { return static_cast<int64_t>(sizes.size()); }
  // Elements of a plane, and elements from one pixel to the next along an axis.
  int64_t pixels() const { return step(axes()); }
  int64_t step(int64_t axis) const {
    int64_t elements = 1;
    for (int64_t i = 0; i < axis; ++i) {
      elements *= sizes[i];
    }
    return elements;
  }
};

inline SeparableCall check_separable(const Tensor& values, const Tensor& widths,
                                     int64_t derivative) {
  constexpr const char* op = "separable_gaussian";
  SEGKERN_CHECK(values.dim() >= 3 && values.dim() <= 5 &&
                    values.scalar_type() == ScalarType::Float,
                op, ": values must be float32 (N, C, W), (N, C, H, W) or (N, C, D, H, W), got ",
                torch::headeronly::toString(values.scalar_type()), " ",
                shape_string(sizes_of(values)));
  const int64_t axes = values.dim() - 2;
  SEGKERN_CHECK(widths.dim() == 1 && widths.size(0) == axes &&
                    widths.scalar_type() == ScalarType::Float &&
                    widths.device() == values.device(),
                op, ": widths must be float32 (", axes, ",) on the device of values, got ",
                torch::headeronly::toString(widths.scalar_type()), " ",
                shape_string(sizes_of(widths)));
  SEGKERN_CHECK(derivative >= -1 && derivative < axes, op,
                ": derivative must be -1 or an axis, got ", derivative);
  SeparableCall call{as_layout(values, false), as_layout(widths, false), {},
                     values.size(0) * values.size(1)};
  for (int64_t i = 0; i < axes; ++i) {
    call.sizes.push_back(values.size(values.dim() - 1 - i));
  }
  return call;
}

}  // namespace segkern
