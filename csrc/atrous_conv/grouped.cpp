#include "grouped.h"

#include <torch/csrc/stable/library.h>

#include "grouped_host.h"

namespace segkern {
namespace {

Tensor grouped_conv2d_cpu(const Tensor& input, const Tensor& weight,
                          const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                          const std::optional<Tensor>& residual,
                          const std::optional<Tensor>& slope, IntList stride, IntList padding,
                          IntList dilation, int64_t groups, int64_t activation) {
  return grouped_conv2d_host(input, weight, scale, shift, residual, slope, stride, padding,
                             dilation, groups, activation, false, grouped_conv_cpu);
}

Tensor grouped_grad_input_cpu(const Tensor& grad, const Tensor& weight, int64_t input_h,
                              int64_t input_w, IntList stride, IntList padding, IntList dilation,
                              int64_t groups) {
  return grouped_grad_input_host(grad, weight, input_h, input_w, stride, padding, dilation, groups,
                                 false, grouped_conv_cpu);
}

Tensor grouped_grad_weight_cpu(const Tensor& grad, const Tensor& input, int64_t kernel_h,
                               int64_t kernel_w, IntList stride, IntList padding, IntList dilation,
                               int64_t groups) {
  return grouped_grad_weight_host(grad, input, kernel_h, kernel_w, stride, padding, dilation,
                                  groups, false, grouped_weight_grad_cpu);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("grouped_conv2d", TORCH_BOX(&grouped_conv2d_cpu));
  m.impl("_grouped_conv2d_grad_input", TORCH_BOX(&grouped_grad_input_cpu));
  m.impl("_grouped_conv2d_grad_weight", TORCH_BOX(&grouped_grad_weight_cpu));
}

}  // namespace segkern
