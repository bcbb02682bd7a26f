#include "dense.h"

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "conv_args.h"

namespace segkern {
namespace {

Tensor dense_conv2d_cuda(const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                         const std::optional<Tensor>& residual, const std::optional<Tensor>& slope,
                         IntList stride, IntList padding, IntList dilation, int64_t activation) {
  constexpr const char* op = "dense_conv2d";
  const OnDeviceOf device(input);
  check_map(op, "input", input);
  const Element element = element_of(input, op, "input");
  SEGKERN_CHECK(element == Element::kFloat16 || element == Element::kBFloat16, op,
                ": input must be float16 or bfloat16");
  check_same(op, "weight", weight, input);
  const int64_t channels = input.size(1);
  SEGKERN_CHECK(channels % kDenseVector == 0, op, ": input must have a multiple of ",
                kDenseVector, " channels, got ", channels);
  SEGKERN_CHECK(weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == channels, op,
                ": weight must be (C_out, ", channels, ", kh, kw), got ",
                shape_string(sizes_of(weight)));
  SEGKERN_CHECK(weight.size(2) * weight.size(3) <= kMaxDenseTaps, op,
                ": weight must have at most ", kMaxDenseTaps, " taps, got ",
                shape_string(sizes_of(weight)));
  ConvWindow w = make_conv_window(op, weight.size(2), weight.size(3), stride, padding, dilation);
  set_plane(op, w, input.size(2), input.size(3));
  const std::vector<int64_t> sizes = {input.size(0), weight.size(0), w.out_h, w.out_w};
  const EpilogueArgs epilogue =
      epilogue_args(op, input, sizes, true, scale, shift, residual, slope, activation);
  const Tensor in = as_layout(input, true);
  const Tensor taps = as_layout(weight, true);
  Tensor out = empty_in_layout(sizes, input.scalar_type(), input, true);
  const auto aligned = [](const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  SEGKERN_CHECK(aligned(in.data_ptr(), 16) && aligned(taps.data_ptr(), 16) &&
                    aligned(data_or_null(epilogue.residual), 4),
                op, ": input, weight and residual must start at multiples of 16 bytes");
  DenseParams p{};
  p.window = w;
  p.batch = input.size(0);
  p.in_channels = channels;
  p.out_channels = weight.size(0);
  p.element = element;
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
    launch_dense_conv(p, device.stream());
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("dense_conv2d", TORCH_BOX(&dense_conv2d_cuda));
}

}  // namespace segkern
