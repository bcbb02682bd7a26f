// The arguments of _nms, checked; common to both devices.
#pragma once

#include <optional>

#include "../common/check.h"
#include "../common/layout.h"
#include "nms.h"

namespace segkern {

struct NmsCall {
  Tensor boxes, labels, live, keep, pairs, gone;
  NmsParams params;
};

inline NmsCall prepare_nms(const Tensor& boxes, const std::optional<Tensor>& labels,
                           const Tensor& live, double threshold) {
  constexpr const char* op = "_nms";
  SEGKERN_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 &&
                    (boxes.scalar_type() == ScalarType::Float ||
                     boxes.scalar_type() == ScalarType::Double),
                op, ": boxes must be float32 or float64 (N, 4), got ",
                torch::headeronly::toString(boxes.scalar_type()), " ",
                shape_string(sizes_of(boxes)));
  NmsCall call{};
  NmsParams& p = call.params;
  p.count = boxes.size(0);
  const auto check = [&](const char* name, const Tensor& tensor, ScalarType dtype) {
    SEGKERN_CHECK(tensor.dim() == 1 && tensor.size(0) == p.count &&
                      tensor.scalar_type() == dtype && tensor.device() == boxes.device(),
                  op, ": ", name, " must be ", torch::headeronly::toString(dtype), " (", p.count,
                  ",) on the device of the boxes, got ",
                  torch::headeronly::toString(tensor.scalar_type()), " ",
                  shape_string(sizes_of(tensor)));
    return torch::stable::contiguous(tensor);
  };
  call.boxes = torch::stable::contiguous(boxes);
  p.boxes = call.boxes.data_ptr();
  p.wide = boxes.scalar_type() == ScalarType::Double;
  if (labels) {
    call.labels = check("labels", *labels, ScalarType::Long);
    p.labels = static_cast<const int64_t*>(call.labels.data_ptr());
  }
  call.live = check("live", live, ScalarType::Bool);
  p.live = static_cast<const bool*>(call.live.data_ptr());
  p.threshold = threshold;
  call.keep = empty_in_layout({p.count}, ScalarType::Bool, boxes, false);
  p.keep = static_cast<bool*>(call.keep.data_ptr());
  return call;
}

}  // namespace segkern
