#include "grouped.h"

#include <torch/csrc/stable/library.h>

#include "conv_args.h"

namespace segkern {
namespace {

// Channels of a group of the input, and of the output.
struct Groups {
  int64_t inputs, outputs;
};

Groups check_groups(const char* op, const Tensor& weight, int64_t groups, int64_t channels,
                    bool of_output) {
  SEGKERN_CHECK(weight.dim() == 4 && groups >= 1 && weight.size(0) >= 1 && weight.size(1) >= 1 &&
                    weight.size(0) % groups == 0 &&
                    channels == (of_output ? weight.size(0) : weight.size(1) * groups),
                op, ": weight must be (C_out, C_in / groups, kh, kw) for ", channels,
                of_output ? " output" : " input", " channels and groups ", groups, ", got ",
                shape_string(sizes_of(weight)));
  return {weight.size(1), weight.size(0) / groups};
}

Tensor grouped_conv2d_cpu(const Tensor& input, const Tensor& weight,
                          const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                          const std::optional<Tensor>& residual,
                          const std::optional<Tensor>& slope, IntList stride, IntList padding,
                          IntList dilation, int64_t groups, int64_t activation) {
  constexpr const char* op = "grouped_conv2d";
  check_map(op, "input", input);
  check_same(op, "weight", weight, input);
  const Groups channels = check_groups(op, weight, groups, input.size(1), false);
  ConvWindow w = make_conv_window(op, weight.size(2), weight.size(3), stride, padding, dilation);
  set_plane(op, w, input.size(2), input.size(3));
  const std::vector<int64_t> sizes = {input.size(0), weight.size(0), w.out_h, w.out_w};
  const EpilogueArgs epilogue =
      epilogue_args(op, input, sizes, false, scale, shift, residual, slope, activation);
  const Tensor in = as_layout(input, false);
  const Tensor taps = as_accumulator(op, "weight", weight, input);
  Tensor out = empty_in_layout(sizes, input.scalar_type(), input, false);
  GroupedParams p{};
  p.window = w;
  p.batch = input.size(0);
  p.groups = groups;
  p.inputs = channels.inputs;
  p.outputs = channels.outputs;
  p.element = element_of(in, op, "input");
  p.in = in.data_ptr();
  p.weight = taps.data_ptr();
  p.scale = data_or_null(epilogue.scale);
  p.shift = data_or_null(epilogue.shift);
  p.residual = data_or_null(epilogue.residual);
  p.slope = data_or_null(epilogue.slope);
  p.slope_step = epilogue.slope.has_value() && epilogue.slope->size(0) > 1 ? 1 : 0;
  p.activation = epilogue.activation;
  p.out = out.data_ptr();
  if (p.batch > 0) {
    grouped_conv_cpu(p);
  }
  return out;
}

Tensor grouped_grad_input_cpu(const Tensor& grad, const Tensor& weight, int64_t input_h,
                              int64_t input_w, IntList stride, IntList padding, IntList dilation,
                              int64_t groups) {
  constexpr const char* op = "_grouped_conv2d_grad_input";
  check_map(op, "grad", grad);
  check_same(op, "weight", weight, grad);
  const Groups channels = check_groups(op, weight, groups, grad.size(1), true);
  ConvWindow w = make_conv_window(op, weight.size(2), weight.size(3), stride, padding, dilation);
  set_plane(op, w, input_h, input_w);
  check_sizes(op, "grad", grad, {grad.size(0), grad.size(1), w.out_h, w.out_w});
  const Tensor in = as_layout(grad, false);
  const Tensor taps = as_accumulator(op, "weight", weight, grad);
  Tensor out = empty_in_layout({grad.size(0), channels.inputs * groups, input_h, input_w},
                               grad.scalar_type(), grad, false);
  GroupedParams p{};
  p.window = transposed(w);
  p.batch = grad.size(0);
  p.groups = groups;
  p.inputs = channels.outputs;
  p.outputs = channels.inputs;
  p.element = element_of(in, op, "grad");
  p.swapped = true;
  p.in = in.data_ptr();
  p.weight = taps.data_ptr();
  p.activation = Activation::kNone;
  p.out = out.data_ptr();
  if (p.batch > 0) {
    grouped_conv_cpu(p);
  }
  return out;
}

Tensor grouped_grad_weight_cpu(const Tensor& grad, const Tensor& input, int64_t kernel_h,
                               int64_t kernel_w, IntList stride, IntList padding, IntList dilation,
                               int64_t groups) {
  constexpr const char* op = "_grouped_conv2d_grad_weight";
  check_map(op, "input", input);
  check_map(op, "grad", grad);
  check_same(op, "grad", grad, input);
  SEGKERN_CHECK(groups >= 1 && input.size(1) % groups == 0 && grad.size(1) % groups == 0, op,
                ": groups must divide the channels of input and grad, got ", groups);
  ConvWindow w = make_conv_window(op, kernel_h, kernel_w, stride, padding, dilation);
  set_plane(op, w, input.size(2), input.size(3));
  check_sizes(op, "grad", grad, {input.size(0), grad.size(1), w.out_h, w.out_w});
  const Tensor in = as_layout(input, false);
  const Tensor g = as_layout(grad, false);
  Tensor sums = torch::stable::new_zeros(
      input, {grad.size(1), input.size(1) / groups, kernel_h, kernel_w}, accumulator_of(input));
  GroupedWeightGradParams p{};
  p.window = w;
  p.batch = input.size(0);
  p.groups = groups;
  p.inputs = input.size(1) / groups;
  p.outputs = grad.size(1) / groups;
  p.element = element_of(in, op, "input");
  p.grad = g.data_ptr();
  p.in = in.data_ptr();
  p.weight_grad = sums.data_ptr();
  if (p.batch > 0) {
    grouped_weight_grad_cpu(p);
  }
  return torch::stable::to(sums, input.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("grouped_conv2d", TORCH_BOX(&grouped_conv2d_cpu));
  m.impl("_grouped_conv2d_grad_input", TORCH_BOX(&grouped_grad_input_cpu));
  m.impl("_grouped_conv2d_grad_weight", TORCH_BOX(&grouped_grad_weight_cpu));
}

}  // namespace segkern
