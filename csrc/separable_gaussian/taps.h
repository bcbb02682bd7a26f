// Which taps the separable Gaussian has; shared by the kernels of both devices.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace segkern {

// Standard deviations from the middle to where a tap is 2^-24 of the middle one: sqrt(48 ln 2).
// What is left out is less than 1e-8 of the mass.
constexpr float kGaussianReach = 5.7681f;

// The largest offset of a tap, in pixels, of an axis of `length` pixels. The width is positive.
SEGKERN_HOST_DEVICE inline int64_t gaussian_radius(float width, int64_t length) {
  const float reach = kGaussianReach * width;
  return reach < static_cast<float>(length - 1) ? static_cast<int64_t>(reach) : length - 1;
}

}  // namespace segkern
