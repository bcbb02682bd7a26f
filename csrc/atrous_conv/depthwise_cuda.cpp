#include "depthwise.h"

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "depthwise_host.h"

namespace segkern {
namespace {

Tensor depthwise_conv2d_cuda(const Tensor& input, const Tensor& weight,
                            const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                            const std::optional<Tensor>& residual,
                            const std::optional<Tensor>& slope, IntList stride, IntList padding,
                            IntList dilation, int64_t activation) {
  const OnDeviceOf device(input);
  return depthwise_conv2d_host(
      input, weight, scale, shift, residual, slope, stride, padding, dilation, activation, true,
      [&](const DepthwiseParams& p) { launch_depthwise_conv(p, device.stream()); });
}

Tensor depthwise_grad_input_cuda(const Tensor& grad, const Tensor& weight, int64_t input_h,
                                int64_t input_w, IntList stride, IntList padding,
                                IntList dilation) {
  const OnDeviceOf device(grad);
  return depthwise_grad_input_host(
      grad, weight, input_h, input_w, stride, padding, dilation, true,
      [&](const DepthwiseParams& p) { launch_depthwise_conv(p, device.stream()); });
}

Tensor depthwise_grad_weight_cuda(const Tensor& grad, const Tensor& input, int64_t kernel_h,
                                 int64_t kernel_w, IntList stride, IntList padding,
                                 IntList dilation) {
  const OnDeviceOf device(input);
  return depthwise_grad_weight_host(
      grad, input, kernel_h, kernel_w, stride, padding, dilation,
      [&](const DepthwiseWeightGradParams& p) {
        Tensor partial = empty_in_layout({depthwise_partial_elements(p)}, accumulator_of(input),
                                         input, false);
        launch_depthwise_weight_grad(p, partial.data_ptr(), device.stream());
      });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d_cuda));
  m.impl("_depthwise_conv2d_grad_input", TORCH_BOX(&depthwise_grad_input_cuda));
  m.impl("_depthwise_conv2d_grad_weight", TORCH_BOX(&depthwise_grad_weight_cuda));
}

}  // namespace segkern
