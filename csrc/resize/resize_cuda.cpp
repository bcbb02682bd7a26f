#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "resize.h"
#include "resize_args.h"

namespace segkern {
namespace {

Tensor resize_bilinear_cuda(const Tensor& input, int64_t output_h, int64_t output_w,
                            bool align_corners) {
  const OnDeviceOf device(input);
  ResizeCall call = prepare_resize_bilinear(input, output_h, output_w, align_corners);
  if (call.has_work()) {
    launch_resize_fwd(call.params, device.stream());
  }
  return call.to;
}

Tensor resize_bilinear_backward_cuda(const Tensor& grad, int64_t input_h, int64_t input_w,
                                     bool align_corners) {
  const OnDeviceOf device(grad);
  ResizeCall call = prepare_resize_bilinear_backward(grad, input_h, input_w, align_corners);
  if (call.has_work()) {
    launch_resize_bwd(call.params, device.stream());
  }
  return call.to;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("resize_bilinear", TORCH_BOX(&resize_bilinear_cuda));
  m.impl("_resize_bilinear_backward", TORCH_BOX(&resize_bilinear_backward_cuda));
}

}  // namespace segkern
