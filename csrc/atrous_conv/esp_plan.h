// How the CUDA kernels of the spatial pyramid lay out what lies between them: the reduced map, by
// row, 32 bytes of channels, and pixel, with zeros before and behind each row, and the branches'
// weights as the tensor cores read them.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "esp.h"

namespace segkern {

constexpr int kEspPixels = 32;   // of a row, a warp's
constexpr int kEspRows = 8;      // of a block, one a warp
constexpr int kEspOutputs = 16;  // channels of a group, of every branch
constexpr int kEspDepth = 32;    // bytes of channels in one step of products

struct EspPlan {
  int32_t steps;        // of a pixel of the reduced map
  int32_t halo, pitch;  // zeros before and behind a row, and pixels of a row with them
  int32_t groups;       // of outputs, of the widest branch
  int32_t in_groups;    // of channels of the reduced map, where there is a reduction
  int32_t weight_blocks, prepare_blocks, pyramid_blocks;
  int64_t reduced_bytes, weight_bytes;  // of the two buffers

  // Throws where a count that the kernels keep in 32 bits has more.
  explicit EspPlan(const EspParams& p) {
    const int64_t size = element_size(p.element);
    const int64_t deep = (p.reduced * size + kEspDepth - 1) / kEspDepth;
    int64_t widest = 0, reach = 0;
    for (int b = 0; b < p.branches; ++b) {
      widest = std::max(widest, p.outputs[b]);
      for (int64_t k = 1; k <= p.kernel_w / 2 && k * p.rate_w[b] < p.width; ++k) {
        reach = std::max(reach, k * p.rate_w[b]);
      }
    }
    const int64_t around = (reach + 15) / 16 * 16;
    const int64_t segments = (p.width + kEspPixels - 1) / kEspPixels;
    const int64_t row = segments * kEspPixels + 2 * around;
    const int64_t output_groups = (widest + kEspOutputs - 1) / kEspOutputs;
    const int64_t own = p.reduce ? (deep * kEspDepth / size + kEspOutputs - 1) / kEspOutputs : 1;
    const int64_t items =
        p.branches * output_groups * p.kernel_h * p.kernel_w * deep * int64_t{32};
    const int64_t warps = p.batch * p.height * (row / kEspPixels) * own;
    const int64_t packing = (items + 255) / 256, preparing = packing + (warps + 7) / 8;
    const int64_t bands = (p.height + kEspRows - 1) / kEspRows;
    const int64_t blocks = p.batch * bands * segments * output_groups;
    constexpr int64_t kMost = INT32_MAX / 2;
    if (p.height * p.width > kMost || p.height * (p.kernel_h + 2) > kMost ||
        p.width * (p.kernel_w + 2) > kMost || row * deep * kEspDepth > kMost ||
        p.in_channels > kMost || widest > kMost || p.reduced > kMost / kEspDepth ||
        items > kMost || preparing > kMost || blocks > kMost) {
      throw std::runtime_error("esp_pyramid: input must have fewer pixels or channels");
    }
    steps = static_cast<int32_t>(deep);
    halo = static_cast<int32_t>(around);
    pitch = static_cast<int32_t>(row);
    groups = static_cast<int32_t>(output_groups);
    in_groups = static_cast<int32_t>(own);
    weight_blocks = static_cast<int32_t>(packing);
    prepare_blocks = static_cast<int32_t>(preparing);
    pyramid_blocks = static_cast<int32_t>(blocks);
    reduced_bytes = p.batch * p.height * row * deep * kEspDepth;
    weight_bytes = items * 16;
  }
};

}  // namespace segkern
