// The depthwise operators from checked arguments to a result, for the hosts of every device: `run`
// is what computes, called with params where there is work. `by_tap` asks for the weight as
// (taps, C) in channels-last instead of (C, taps).
#pragma once

#include "conv_args.h"

namespace segkern {

inline DepthwiseParams features_params(const char* op, const char* name, const Tensor& in,
                                       bool channels_last) {
  DepthwiseParams p{};
  p.batch = in.size(0);
  p.channels = in.size(1);
  p.element = element_of(in, op, name);
  p.channels_last = channels_last;
  p.in = in.data_ptr();
  return p;
}

inline void check_depthwise_weight(const char* op, const Tensor& weight, const Tensor& features) {
  check_same(op, "weight", weight, features);
  SEGKERN_CHECK(weight.dim() == 4 && weight.size(0) == features.size(1) && weight.size(1) == 1, op,
                ": weight must be (C, 1, kh, kw) with C = ", features.size(1), ", got ",
                shape_string(sizes_of(weight)));
}

inline Tensor depthwise_weight(const char* op, const Tensor& weight, const Tensor& features,
                               bool by_tap) {
  const Tensor taps = as_accumulator(op, "weight", weight, features);
  return by_tap ? as_layout(torch::stable::transpose(taps, 0, 1), true) : taps;
}

template <typename Run>
Tensor depthwise_conv2d_host(const Tensor& input, const Tensor& weight,
                             const std::optional<Tensor>& scale,
                             const std::optional<Tensor>& shift,
                             const std::optional<Tensor>& residual,
                             const std::optional<Tensor>& slope, IntList stride, IntList padding,
                             IntList dilation, int64_t activation, bool by_tap, const Run& run) {
  constexpr const char* op = "depthwise_conv2d";
  check_map(op, "input", input);
  check_depthwise_weight(op, weight, input);
  ConvWindow w =
      make_conv_window(op, weight.size(2), weight.size(3), stride, padding, dilation);
  set_plane(op, w, input.size(2), input.size(3));
  const bool channels_last = is_channels_last(input);
  const std::vector<int64_t> sizes = {input.size(0), input.size(1), w.out_h, w.out_w};
  const EpilogueArgs epilogue = epilogue_args(op, input, sizes, channels_last, scale, shift,
                                              residual, slope, activation);
  const Tensor in = as_layout(input, channels_last);
  const Tensor taps = depthwise_weight(op, weight, input, by_tap && channels_last);
  Tensor out = empty_in_layout(sizes, input.scalar_type(), input, channels_last);
  DepthwiseParams p = features_params(op, "input", in, channels_last);
  p.window = w;
  p.weight = taps.data_ptr();
  p.scale = data_or_null(epilogue.scale);
  p.shift = data_or_null(epilogue.shift);
  p.residual = data_or_null(epilogue.residual);
  p.slope = data_or_null(epilogue.slope);
  p.slope_step = epilogue.slope.has_value() && epilogue.slope->size(0) > 1 ? 1 : 0;
  p.activation = epilogue.activation;
  p.out = out.data_ptr();
  if (p.batch > 0) {
    run(p);
  }
  return out;
}

template <typename Run>
Tensor depthwise_grad_input_host(const Tensor& grad, const Tensor& weight, int64_t input_h,
                                 int64_t input_w, IntList stride, IntList padding,
                                 IntList dilation, bool by_tap, const Run& run) {
  constexpr const char* op = "_depthwise_conv2d_grad_input";
  check_map(op, "grad", grad);
  check_depthwise_weight(op, weight, grad);
  ConvWindow w =
      make_conv_window(op, weight.size(2), weight.size(3), stride, padding, dilation);
  set_plane(op, w, input_h, input_w);
  check_sizes(op, "grad", grad, {grad.size(0), grad.size(1), w.out_h, w.out_w});
  const bool channels_last = is_channels_last(grad);
  const Tensor in = as_layout(grad, channels_last);
  const Tensor taps = depthwise_weight(op, weight, grad, by_tap && channels_last);
  Tensor out = empty_in_layout({grad.size(0), grad.size(1), input_h, input_w}, grad.scalar_type(),
                               grad, channels_last);
  DepthwiseParams p = features_params(op, "grad", in, channels_last);
  p.window = transposed(w);
  p.flip = true;
  p.weight = taps.data_ptr();
  p.activation = Activation::kNone;
  p.out = out.data_ptr();
  if (p.batch > 0) {
    run(p);
  }
  return out;
}

template <typename Run>
Tensor depthwise_grad_weight_host(const Tensor& grad, const Tensor& input, int64_t kernel_h,
                                  int64_t kernel_w, IntList stride, IntList padding,
                                  IntList dilation, const Run& run) {
  constexpr const char* op = "_depthwise_conv2d_grad_weight";
  check_map(op, "input", input);
  check_map(op, "grad", grad);
  check_same(op, "grad", grad, input);
  ConvWindow w = make_conv_window(op, kernel_h, kernel_w, stride, padding, dilation);
  set_plane(op, w, input.size(2), input.size(3));
  check_sizes(op, "grad", grad, {input.size(0), input.size(1), w.out_h, w.out_w});
  const bool channels_last = is_channels_last(input);
  const Tensor in = as_layout(input, channels_last);
  const Tensor g = as_layout(grad, channels_last);
  Tensor sums = torch::stable::new_zeros(input, {input.size(1), 1, kernel_h, kernel_w},
                                         accumulator_of(input));
  DepthwiseWeightGradParams p{};
  p.window = w;
  p.batch = input.size(0);
  p.channels = input.size(1);
  p.element = element_of(input, op, "input");
  p.channels_last = channels_last;
  p.grad = g.data_ptr();
  p.in = in.data_ptr();
  p.weight_grad = sums.data_ptr();
  if (p.batch > 0) {
    run(p);
  }
  return torch::stable::to(sums, input.scalar_type());
}

}  // namespace segkern
