// Arguments of one pass of the separable Gaussian.
#pragma once

#include <cstdint>

namespace segkern {

struct SeparablePass {
  const float* in;
  float* out;
  const float* width;    // on the device, one number
  int64_t elements;      // of all planes
  int64_t length, step;  // pixels along the axis, and elements from one to the next
  bool derivative;       // taps are their derivatives in the width
};

}  // namespace segkern
