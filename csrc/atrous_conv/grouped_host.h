// The convolution of small groups from checked arguments to a result, for the hosts of every
// device: `run` is what computes, called with params where there is work. `on_cuda` asks for what
// grouped.h says for CUDA: either layout and the weight in the features' type, instead of
// contiguous maps and the accumulating type. Results have the layout of the features.
#pragma once

#include "conv_args.h"
#include "grouped.h"

namespace segkern {

// `of_output`: the features are those of the output.
inline void check_grouped_weight(const char* op, const Tensor& weight, const Tensor& features,
                                 int64_t groups, bool of_output) {
  check_same(op, "weight", weight, features);
  const int64_t channels = features.size(1);
  SEGKERN_CHECK(weight.dim() == 4 && groups >= 1 && weight.size(0) >= 1 && weight.size(1) >= 1 &&
                    weight.size(0) % groups == 0 &&
                    channels == (of_output ? weight.size(0) : weight.size(1) * groups),
                op, ": weight must be (C_out, C_in / groups, kh, kw) for ", channels,
                of_output ? " output" : " input", " channels and groups ", groups, ", got ",
                shape_string(sizes_of(weight)));
}

inline Tensor grouped_taps(const char* op, const Tensor& weight, const Tensor& features,
                           bool on_cuda) {
  return on_cuda ? as_layout(weight, false) : as_accumulator(op, "weight", weight, features);
}

template <typename Run>
Tensor grouped_conv2d_host(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                           const std::optional<Tensor>& residual,
                           const std::optional<Tensor>& slope, IntList stride, IntList padding,
                           IntList dilation, int64_t groups, int64_t activation, bool on_cuda,
                           const Run& run) {
  constexpr const char* op = "grouped_conv2d";
  check_map(op, "input", input);
  check_grouped_weight(op, weight, input, groups, false);
  ConvWindow w = make_conv_window(op, weight.size(2), weight.size(3), stride, padding, dilation);
  set_plane(op, w, input.size(2), input.size(3));
  const bool keep_last = is_channels_last(input), channels_last = on_cuda && keep_last;
  const std::vector<int64_t> sizes = {input.size(0), weight.size(0), w.out_h, w.out_w};
  const EpilogueArgs epilogue = epilogue_args(op, input, sizes, channels_last, scale, shift,
                                              residual, slope, activation);
  const Tensor in = as_layout(input, channels_last);
  const Tensor taps = grouped_taps(op, weight, input, on_cuda);
  Tensor out = empty_in_layout(sizes, input.scalar_type(), input, channels_last);
  GroupedParams p{};
  p.window = w;
  p.batch = input.size(0);
  p.groups = groups;
  p.inputs = weight.size(1);
  p.outputs = weight.size(0) / groups;
  p.element = element_of(in, op, "input");
  p.channels_last = channels_last;
  p.in = in.data_ptr();
  p.weight = taps.data_ptr();
  p.weight_in = w.taps();
  p.weight_out = p.inputs * p.weight_in;
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
  return as_layout(out, keep_last);
}

template <typename Run>
Tensor grouped_grad_input_host(const Tensor& grad, const Tensor& weight, int64_t input_h,
                               int64_t input_w, IntList stride, IntList padding, IntList dilation,
                               int64_t groups, bool on_cuda, const Run& run) {
  constexpr const char* op = "_grouped_conv2d_grad_input";
  check_map(op, "grad", grad);
  check_grouped_weight(op, weight, grad, groups, true);
  ConvWindow w = make_conv_window(op, weight.size(2), weight.size(3), stride, padding, dilation);
  set_plane(op, w, input_h, input_w);
  check_sizes(op, "grad", grad, {grad.size(0), grad.size(1), w.out_h, w.out_w});
  const bool keep_last = is_channels_last(grad), channels_last = on_cuda && keep_last;
  const Tensor in = as_layout(grad, channels_last);
  const Tensor taps = grouped_taps(op, weight, grad, on_cuda);
  Tensor out = empty_in_layout({grad.size(0), groups * weight.size(1), input_h, input_w},
                               grad.scalar_type(), grad, channels_last);
  GroupedParams p{};
  p.window = transposed(w);
  p.batch = grad.size(0);
  p.groups = groups;
  p.inputs = weight.size(0) / groups;
  p.outputs = weight.size(1);
  p.element = element_of(in, op, "grad");
  p.channels_last = channels_last;
  p.flip = true;
  p.in = in.data_ptr();
  p.weight = taps.data_ptr();
  p.weight_out = w.taps();
  p.weight_in = p.outputs * p.weight_out;
  p.activation = Activation::kNone;
  p.out = out.data_ptr();
  if (p.batch > 0) {
    run(p);
  }
  return as_layout(out, keep_last);
}

template <typename Run>
Tensor grouped_grad_weight_host(const Tensor& grad, const Tensor& input, int64_t kernel_h,
                                int64_t kernel_w, IntList stride, IntList padding,
                                IntList dilation, int64_t groups, bool on_cuda, const Run& run) {
  constexpr const char* op = "_grouped_conv2d_grad_weight";
  check_map(op, "input", input);
  check_map(op, "grad", grad);
  check_same(op, "grad", grad, input);
  SEGKERN_CHECK(groups >= 1 && input.size(1) % groups == 0 && grad.size(1) % groups == 0, op,
                ": groups must divide the channels of input and grad, got ", groups);
  GroupedWeightGradParams p{};
  p.batch = input.size(0);
  p.groups = groups;
  p.inputs = input.size(1) / groups;
  p.outputs = grad.size(1) / groups;
  p.window = make_conv_window(op, kernel_h, kernel_w, stride, padding, dilation);
  set_plane(op, p.window, input.size(2), input.size(3));
  check_sizes(op, "grad", grad, {p.batch, grad.size(1), p.window.out_h, p.window.out_w});
  p.element = element_of(input, op, "input");
  p.channels_last = on_cuda && is_channels_last(input);
  const Tensor g = as_layout(grad, p.channels_last), in = as_layout(input, p.channels_last);
  Tensor sums = torch::stable::new_zeros(input, {grad.size(1), p.inputs, kernel_h, kernel_w},
                                         accumulator_of(input));
  p.grad = g.data_ptr();
  p.in = in.data_ptr();
  p.weight_grad = sums.data_ptr();
  if (p.batch > 0) {
    run(p);
  }
  return torch::stable::to(sums, input.scalar_type());
}

}  // namespace segkern
