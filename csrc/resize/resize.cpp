#include "resize.h"

#include <torch/csrc/stable/library.h>

#include "resize_args.h"

namespace segkern {
namespace {

Tensor resize_bilinear_cpu(const Tensor& input, int64_t output_h, int64_t output_w,
                           bool align_corners) {
  ResizeCall call = prepare_resize_bilinear(input, output_h, output_w, align_corners);
  if (call.has_work()) {
    resize_fwd_cpu(call.params);
  }
  return call.to;
}

Tensor resize_bilinear_backward_cpu(const Tensor& grad, int64_t input_h, int64_t input_w,
                                    bool align_corners) {
  ResizeCall call = prepare_resize_bilinear_backward(grad, input_h, input_w, align_corners);
  if (call.has_work()) {
    resize_bwd_cpu(call.params);
  }
  return call.to;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("resize_bilinear", TORCH_BOX(&resize_bilinear_cpu));
  m.impl("_resize_bilinear_backward", TORCH_BOX(&resize_bilinear_backward_cpu));
}

}  // namespace segkern
