// The arguments of resize_bilinear and its backward, checked; common to both devices.
#pragma once

#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/layout.h"
#include "resize.h"

namespace segkern {

struct ResizeCall {
  Tensor from, to;
  ResizeParams params;

  bool has_work() const { return params.in_elements() > 0 && params.out_elements() > 0; }
};

// `from` is what is read; `backward` says that it is the output's gradient.
inline ResizeCall prepare_resize(const char* op, const char* name, const char* size_name,
                                 const Tensor& from, int64_t h, int64_t w, bool align_corners,
                                 bool backward) {
  SEGKERN_CHECK(from.dim() == 4 && from.size(2) > 0 && from.size(3) > 0, op, ": ", name,
                " must be (N, C, H, W) with at least one row and column, got ",
                shape_string(sizes_of(from)));
  SEGKERN_CHECK(h > 0 && w > 0, op, ": ", size_name, " must be positive, got (", h, ", ", w, ")");
  ResizeCall call{};
  ResizeParams& p = call.params;
  p.items = from.size(0);
  p.channels = from.size(1);
  p.in_h = backward ? h : from.size(2);
  p.in_w = backward ? w : from.size(3);
  p.out_h = backward ? from.size(2) : h;
  p.out_w = backward ? from.size(3) : w;
  p.element = element_of(from, op, name);
  p.align_corners = align_corners;
  const bool channels_last = is_channels_last(from);
  p.channels_last = channels_last && p.channels > 1;  // with one channel both are the same memory
  call.from = as_layout(from, channels_last);
  call.to = empty_in_layout({p.items, p.channels, h, w}, from.scalar_type(), from, channels_last);
  p.from = call.from.data_ptr();
  p.to = call.to.data_ptr();
  return call;
}

inline ResizeCall prepare_resize_bilinear(const Tensor& input, int64_t h, int64_t w,
                                          bool align_corners) {
  return prepare_resize("resize_bilinear", "input", "size", input, h, w, align_corners, false);
}

inline ResizeCall prepare_resize_bilinear_backward(const Tensor& grad, int64_t h, int64_t w,
                                                   bool align_corners) {
  return prepare_resize("_resize_bilinear_backward", "grad", "input_h and input_w", grad, h, w,
                        align_corners, true);
}

}  // namespace segkern
