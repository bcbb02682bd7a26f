#include "grouped.h"

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "conv_args.h"

namespace segkern {
namespace {

// Channels of a group of (N, C, H, W) features; throws where the groups do not divide them.
int64_t share(const char* op, const char* name, int64_t channels, int64_t groups) {
  SEGKERN_CHECK(groups >= 1 && channels % groups == 0, op, ": groups must divide the channels of ",
                name, ", ", channels, ", got ", groups);
  return channels / groups;
}

ConvWindow grouped_window(const char* op, const Tensor& weight, const IntList& stride,
                          const IntList& padding, const IntList& dilation, int64_t in_h,
                          int64_t in_w) {
  ConvWindow w =
      make_conv_window(op, weight.size(2), weight.size(3), stride, padding, dilation);
  set_plane(op, w, in_h, in_w);
  return w;
}

// Counts of channels that are not known yet are -1.
void check_weight(const char* op, const Tensor& weight, const Tensor& features,
                  int64_t out_channels, int64_t in_channels) {
  check_same(op, "weight", weight, features);
  SEGKERN_CHECK(weight.dim() == 4 && (out_channels < 0 || weight.size(0) == out_channels) &&
                    weight.size(0) >= 1 && (in_channels < 0 || weight.size(1) == in_channels) &&
                    weight.size(1) >= 1,
                op, ": weight must be (C_out, C_in / groups, kh, kw), got ",
                shape_string(sizes_of(weight)));
}

Tensor grouped_conv2d_cuda(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                           const std::optional<Tensor>& residual,
                           const std::optional<Tensor>& slope, IntList stride, IntList padding,
                           IntList dilation, int64_t groups, int64_t activation) {
  constexpr const char* op = "grouped_conv2d";
  const OnDeviceOf device(input);
  check_map(op, "input", input);
  GroupedParams p{};
  p.element = element_of(input, op, "input");
  p.batch = input.size(0);
  p.groups = groups;
  p.in_channels = share(op, "input", input.size(1), groups);
  check_weight(op, weight, input, -1, p.in_channels);
  p.out_channels = share(op, "the output", weight.size(0), groups);
  p.window = grouped_window(op, weight, stride, padding, dilation, input.size(2), input.size(3));
  p.channels_last = is_channels_last(input);
  const std::vector<int64_t> sizes = {p.batch, weight.size(0), p.window.out_h, p.window.out_w};
  const EpilogueArgs epilogue = epilogue_args(op, input, sizes, p.channels_last, scale, shift,
                                              residual, slope, activation);
  const Tensor in = as_layout(input, p.channels_last), taps = as_layout(weight, false);
  Tensor out = empty_in_layout(sizes, input.scalar_type(), input, p.channels_last);
  p.in = in.data_ptr();
  p.weight = taps.data_ptr();
  p.weight_in = p.window.taps();
  p.weight_out = p.in_channels * p.weight_in;
  p.scale = data_or_null(epilogue.scale);
  p.shift = data_or_null(epilogue.shift);
  p.residual = data_or_null(epilogue.residual);
  p.slope = data_or_null(epilogue.slope);
  p.slope_step = epilogue.slope.has_value() && epilogue.slope->size(0) > 1 ? 1 : 0;
  p.activation = epilogue.activation;
  p.out = out.data_ptr();
  if (p.batch > 0) {
    launch_grouped_conv(p, device.stream());
  }
  return out;
}

Tensor grouped_grad_input_cuda(const Tensor& grad, const Tensor& weight, int64_t input_h,
                               int64_t input_w, IntList stride, IntList padding, IntList dilation,
                               int64_t groups) {
  constexpr const char* op = "_grouped_conv2d_grad_input";
  const OnDeviceOf device(grad);
  check_map(op, "grad", grad);
  GroupedParams p{};
  p.element = element_of(grad, op, "grad");
  p.batch = grad.size(0);
  p.groups = groups;
  p.in_channels = share(op, "grad", grad.size(1), groups);
  check_weight(op, weight, grad, grad.size(1), -1);
  p.out_channels = weight.size(1);
  const ConvWindow w = grouped_window(op, weight, stride, padding, dilation, input_h, input_w);
  check_sizes(op, "grad", grad, {p.batch, grad.size(1), w.out_h, w.out_w});
  p.window = transposed(w);
  p.flip = true;
  p.channels_last = is_channels_last(grad);
  const Tensor in = as_layout(grad, p.channels_last), taps = as_layout(weight, false);
  Tensor out = empty_in_layout({p.batch, groups * p.out_channels, input_h, input_w},
                               grad.scalar_type(), grad, p.channels_last);
  p.in = in.data_ptr();
  p.weight = taps.data_ptr();
  p.weight_out = w.taps();
  p.weight_in = p.out_channels * p.weight_out;
  p.activation = Activation::kNone;
  p.out = out.data_ptr();
  if (p.batch > 0) {
    launch_grouped_conv(p, device.stream());
  }
  return out;
}

Tensor grouped_grad_weight_cuda(const Tensor& grad, const Tensor& input, int64_t kernel_h,
                                int64_t kernel_w, IntList stride, IntList padding,
                                IntList dilation, int64_t groups) {
  constexpr const char* op = "_grouped_conv2d_grad_weight";
  const OnDeviceOf device(input);
  check_map(op, "input", input);
  check_map(op, "grad", grad);
  check_same(op, "grad", grad, input);
  GroupedWeightGradParams p{};
  p.element = element_of(input, op, "input");
  p.batch = input.size(0);
  p.groups = groups;
  p.in_channels = share(op, "input", input.size(1), groups);
  p.out_channels = share(op, "grad", grad.size(1), groups);
  p.window = make_conv_window(op, kernel_h, kernel_w, stride, padding, dilation);
  set_plane(op, p.window, input.size(2), input.size(3));
  check_sizes(op, "grad", grad, {p.batch, grad.size(1), p.window.out_h, p.window.out_w});
  p.channels_last = is_channels_last(input);
  const Tensor g = as_layout(grad, p.channels_last), in = as_layout(input, p.channels_last);
  Tensor sums = empty_in_layout({grad.size(1), p.in_channels, kernel_h, kernel_w},
                                accumulator_of(input), input, false);
  p.grad = g.data_ptr();
  p.in = in.data_ptr();
  p.weight_grad = sums.data_ptr();
  if (p.batch == 0) {
    torch::stable::zero_(sums);
  } else {
    Tensor partial =
        empty_in_layout({grouped_partial_elements(p)}, accumulator_of(input), input, false);
    launch_grouped_weight_grad(p, partial.data_ptr(), device.stream());
  }
  return torch::stable::to(sums, input.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("grouped_conv2d", TORCH_BOX(&grouped_conv2d_cuda));
  m.impl("_grouped_conv2d_grad_input", TORCH_BOX(&grouped_grad_input_cuda));
  m.impl("_grouped_conv2d_grad_weight", TORCH_BOX(&grouped_grad_weight_cuda));
}

}  // namespace segkern
