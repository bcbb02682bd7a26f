#include "grouped.h"

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "grouped_host.h"

namespace segkern {
namespace {

Tensor grouped_conv2d_cuda(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                           const std::optional<Tensor>& residual,
                           const std::optional<Tensor>& slope, IntList stride, IntList padding,
                           IntList dilation, int64_t groups, int64_t activation) {
  const OnDeviceOf device(input);
  return grouped_conv2d_host(
      input, weight, scale, shift, residual, slope, stride, padding, dilation, groups, activation,
      true, [&](const GroupedParams& p) { launch_grouped_conv(p, device.stream()); });
}

Tensor grouped_grad_input_cuda(const Tensor& grad, const Tensor& weight, int64_t input_h,
                               int64_t input_w, IntList stride, IntList padding, IntList dilation,
                               int64_t groups) {
  const OnDeviceOf device(grad);
  return grouped_grad_input_host(
      grad, weight, input_h, input_w, stride, padding, dilation, groups, true,
      [&](const GroupedParams& p) { launch_grouped_conv(p, device.stream()); });
}

Tensor grouped_grad_weight_cuda(const Tensor& grad, const Tensor& input, int64_t kernel_h,
                                int64_t kernel_w, IntList stride, IntList padding,
                                IntList dilation, int64_t groups) {
  const OnDeviceOf device(input);
  return grouped_grad_weight_host(
      grad, input, kernel_h, kernel_w, stride, padding, dilation, groups, true,
      [&](const GroupedWeightGradParams& p) {
        Tensor partial = empty_in_layout({grouped_partial_elements(p)}, accumulator_of(input),
                                         input, false);
        launch_grouped_weight_grad(p, partial.data_ptr(), device.stream());
      });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("grouped_conv2d", TORCH_BOX(&grouped_conv2d_cuda));
  m.impl("_grouped_conv2d_grad_input", TORCH_BOX(&grouped_grad_input_cuda));
  m.impl("_grouped_conv2d_grad_weight", TORCH_BOX(&grouped_grad_weight_cuda));
}

}  // namespace segkern
