// The arguments of the box operators, checked; common to both devices.
#pragma once

#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/layout.h"
#include "roi_axis.h"

namespace segkern {

using IntList = std::vector<int64_t>;

constexpr int64_t kMaxSamplingRatio = 1024;
constexpr int64_t kMaxRoiBins = 65536;  // an axis

inline ScalarType boxes_type(Element element) {
  return element == Element::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

// The part of the params that boxes and bins decide.
inline RoiParams check_boxes(const char* op, const Tensor& like, const Tensor& boxes,
                             int64_t bins_h, int64_t bins_w, int64_t sampling_ratio) {
  RoiParams p{};
  p.element = element_of(like, op, "input");
  SEGKERN_CHECK(boxes.dim() == 2 && boxes.size(1) == 5 &&
                    boxes.scalar_type() == boxes_type(p.element) &&
                    boxes.device() == like.device(),
                op, ": rois must be (K, 5) on the device of input, float32, or float64 where "
                "input is, got ", shape_string(sizes_of(boxes)), " ",
                torch::headeronly::toString(boxes.scalar_type()));
  SEGKERN_CHECK(bins_h >= 1 && bins_w >= 1 && bins_h <= kMaxRoiBins && bins_w <= kMaxRoiBins, op,
                ": output_size must be 1 to ", kMaxRoiBins, ", got (", bins_h, ", ", bins_w, ")");
  SEGKERN_CHECK(sampling_ratio <= kMaxSamplingRatio, op, ": sampling_ratio must be at most ",
                kMaxSamplingRatio, ", got ", sampling_ratio);
  p.rois = boxes.size(0);
  p.bins_h = bins_h;
  p.bins_w = bins_w;
  p.sampling_ratio = sampling_ratio > 0 ? sampling_ratio : 0;
  p.levels = 1;
  return p;
}

// On the CPU a box of no image is an error; CUDA kernels leave such boxes out.
inline void check_images_cpu(const char* op, const Tensor& dense_boxes, const RoiParams& p) {
  const auto check = [&](const auto* rows) {
    for (int64_t n = 0; n < p.rois; ++n) {
      const double image = static_cast<double>(rows[5 * n]);
      SEGKERN_CHECK(image >= 0 && image < static_cast<double>(p.images), op,
                    ": the first column of rois must be an image, 0 to ", p.images - 1, ", got ",
                    image, " in row ", n);
    }
  };
  if (p.element == Element::kFloat64) {
    check(static_cast<const double*>(dense_boxes.data_ptr()));
  } else {
    check(static_cast<const float*>(dense_boxes.data_ptr()));
  }
}

// Boxes' positions on a map are floats with a fraction.
inline void check_maps(const char* op, const RoiParams& p) {
  for (int64_t k = 0; k < p.levels; ++k) {
    SEGKERN_CHECK(p.level[k].height <= kRoiFarthest && p.level[k].width <= kRoiFarthest, op,
                  ": maps must have at most ", kRoiFarthest, " rows and columns, got (",
                  p.level[k].height, ", ", p.level[k].width, ")");
  }
}

// scales (levels), limits (levels - 1).
inline void check_levels(const char* op, RoiParams& p, int64_t levels,
                         const std::vector<double>& scales, const std::vector<double>& limits) {
  SEGKERN_CHECK(levels >= 1 && levels <= kMaxRoiLevels, op, ": input must have 1 to ",
                kMaxRoiLevels, " levels, got ", levels);
  SEGKERN_CHECK(static_cast<int64_t>(scales.size()) == levels &&
                    static_cast<int64_t>(limits.size()) == levels - 1,
                op, ": spatial_scale must have one number a level, ", levels, ", got ",
                scales.size());
  p.levels = levels;
  for (int64_t k = 0; k < levels; ++k) {
    p.level[k].scale = scales[k];
    if (k > 0) {
      p.level_size[k - 1] = limits[k - 1];
    }
  }
}

}  // namespace segkern
