// The separable convolution from checked arguments to a result, for the hosts of every device:
// `run` is what computes, called with params where there is work. `in_tiles` asks for what the
// kernel for tensor cores takes: channels-last, 16-byte vectors, weights as separable.h says for
// CUDA.
#pragma once

#include "conv_args.h"
#include "separable.h"

namespace segkern {

template <typename Run>
Tensor separable_conv2d_host(
    const Tensor& input, const std::optional<Tensor>& depthwise_weight,
    const std::optional<Tensor>& depthwise_scale, const std::optional<Tensor>& depthwise_shift,
    const std::optional<Tensor>& depthwise_slope, const Tensor& weight,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
    const std::optional<Tensor>& residual, const std::optional<Tensor>& slope, IntList stride,
    IntList padding, IntList dilation, int64_t depthwise_activation, int64_t activation,
    bool in_tiles, const Run& run) {
  constexpr const char* op = "separable_conv2d";
  check_map(op, "input", input);
  const int64_t channels = input.size(1);
  int64_t kernel[2] = {1, 1};
  if (depthwise_weight.has_value()) {
    check_same(op, "depthwise_weight", *depthwise_weight, input);
    SEGKERN_CHECK(depthwise_weight->dim() == 4, op,
                  ": depthwise_weight must be (C, 1, kh, kw), got ",
                  shape_string(sizes_of(*depthwise_weight)));
    kernel[0] = depthwise_weight->size(2);
    kernel[1] = depthwise_weight->size(3);
    check_sizes(op, "depthwise_weight", *depthwise_weight, {channels, 1, kernel[0], kernel[1]});
  }
  ConvWindow w = make_conv_window(op, kernel[0], kernel[1], stride, padding, dilation);
  SEGKERN_CHECK(depthwise_weight.has_value() ||
                    (w.stride_h == 1 && w.stride_w == 1 && w.pad_h == 0 && w.pad_w == 0),
                op, ": stride must be 1 and padding 0 where there is no depthwise_weight");
  set_plane(op, w, input.size(2), input.size(3));
  check_same(op, "weight", weight, input);
  SEGKERN_CHECK(weight.dim() == 4 && weight.size(0) >= 1, op,
                ": weight must be (C_out, C, 1, 1), got ", shape_string(sizes_of(weight)));
  check_sizes(op, "weight", weight, {weight.size(0), channels, 1, 1});

  SEGKERN_CHECK(!in_tiles || depthwise_weight.has_value(), op,
                ": depthwise_weight must be given on CUDA");
  const Element element = element_of(input, op, "input");
  SEGKERN_CHECK(!in_tiles || element != Element::kFloat64, op,
                ": input must be float16, bfloat16 or float32 on CUDA");
  SEGKERN_CHECK(!in_tiles || channels * element_size(element) % 16 == 0, op,
                ": input must have a multiple of ", 16 / element_size(element),
                " channels on CUDA, got ", channels);

  const bool keep_last = is_channels_last(input), channels_last = in_tiles || keep_last;
  const std::vector<int64_t> sizes = {input.size(0), weight.size(0), w.out_h, w.out_w};
  EpilogueArgs last = epilogue_args(op, input, sizes, channels_last, scale, shift, residual,
                                          slope, activation);
  const std::vector<int64_t> hidden = {input.size(0), channels, w.out_h, w.out_w};
  const EpilogueArgs inner = epilogue_args(op, input, hidden, channels_last, depthwise_scale,
                                           depthwise_shift, std::nullopt, depthwise_slope,
                                           depthwise_activation);
  if (in_tiles && last.residual.has_value()) {
    last.residual = as_vectors(*last.residual);
  }
  const Tensor in = in_tiles ? as_vectors(input) : as_layout(input, channels_last);
  Tensor taps = as_accumulator(
      op, "depthwise_weight", depthwise_weight.has_value() ? *depthwise_weight : weight, input);
  if (in_tiles) {
    taps = as_vectors(torch::stable::transpose(taps, 0, 1));
  }
  const Tensor product =
      in_tiles ? as_vectors(weight) : as_accumulator(op, "weight", weight, input);
  Tensor out = empty_in_layout(sizes, input.scalar_type(), input, channels_last);

  const auto step = [](const EpilogueArgs& e) {
    return e.slope.has_value() && e.slope->size(0) > 1 ? 1 : 0;
  };
  SeparableParams p{};
  p.first.window = w;
  p.first.batch = input.size(0);
  p.first.channels = channels;
  p.first.element = element;
  p.first.channels_last = channels_last;
  p.first.in = in.data_ptr();
  p.first.weight = depthwise_weight.has_value() ? taps.data_ptr() : nullptr;
  p.first.scale = data_or_null(inner.scale);
  p.first.shift = data_or_null(inner.shift);
  p.first.slope = data_or_null(inner.slope);
  p.first.slope_step = step(inner);
  p.first.activation = inner.activation;
  p.outputs = weight.size(0);
  p.weight = product.data_ptr();
  p.scale = data_or_null(last.scale);
  p.shift = data_or_null(last.shift);
  p.residual = data_or_null(last.residual);
  p.slope = data_or_null(last.slope);
  p.slope_step = step(last);
  p.activation = last.activation;
  p.out = out.data_ptr();
  if (p.first.batch > 0) {
    run(p);
  }
  return keep_last == channels_last ? out : as_layout(out, keep_last);
}

}  // namespace segkern
