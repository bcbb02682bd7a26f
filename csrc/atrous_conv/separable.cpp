#include "separable.h"

#include <torch/csrc/stable/library.h>

#include "separable_host.h"

namespace segkern {
namespace {

Tensor separable_conv2d_cpu(
    const Tensor& input, const std::optional<Tensor>& depthwise_weight,
    const std::optional<Tensor>& depthwise_scale, const std::optional<Tensor>& depthwise_shift,
    const std::optional<Tensor>& depthwise_slope, const Tensor& weight,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
    const std::optional<Tensor>& residual, const std::optional<Tensor>& slope, IntList stride,
    IntList padding, IntList dilation, int64_t depthwise_activation, int64_t activation) {
  return separable_conv2d_host(
      input, depthwise_weight, depthwise_scale, depthwise_shift, depthwise_slope, weight, scale,
      shift, residual, slope, stride, padding, dilation, depthwise_activation, activation, false,
      [](const SeparableParams& p) { separable_conv_cpu(p); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("separable_conv2d", TORCH_BOX(&separable_conv2d_cpu));
}

}  // namespace segkern
