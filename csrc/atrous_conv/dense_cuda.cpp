#include "dense.h"

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "conv_args.h"

namespace segkern {
namespace {

// `tf32`: whether the kernel takes float32 too.
Element check_features(const char* op, const char* name, const Tensor& t, bool tf32) {
  check_map(op, name, t);
  const Element element = element_of(t, op, name);
  SEGKERN_CHECK(element == Element::kFloat16 || element == Element::kBFloat16 ||
                    (tf32 && element == Element::kFloat32),
                op, ": ", name, " must be float16",
                tf32 ? ", bfloat16 or float32" : " or bfloat16");
  SEGKERN_CHECK(t.size(1) % dense_vector(element) == 0, op, ": ", name,
                " must have a multiple of ", dense_vector(element), " channels, got ", t.size(1));
  return element;
}

ConvWindow dense_window(const char* op, int64_t kernel_h, int64_t kernel_w, const IntList& stride,
                        const IntList& padding, const IntList& dilation, int64_t in_h,
                        int64_t in_w) {
  ConvWindow w = make_conv_window(op, kernel_h, kernel_w, stride, padding, dilation);
  SEGKERN_CHECK(kernel_h <= kMaxDenseTaps && kernel_w <= kMaxDenseTaps &&
                    w.taps() <= kMaxDenseTaps,
                op, ": weight must have at most ", kMaxDenseTaps, " taps, got ", kernel_h, "x",
                kernel_w);
  set_plane(op, w, in_h, in_w);
  return w;
}

using Launch = void (*)(const DenseParams&, cudaStream_t);

void check_launch(const char* op, Launch launch, const ConvWindow& w) {
  SEGKERN_CHECK(launch == launch_dense_conv || (w.stride_h == 1 && w.stride_w == 1), op,
                ": stride must be 1, got (", w.stride_h, ", ", w.stride_w, ")");
}

template <Launch launch>
Tensor dense_conv2d_cuda(const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                         const std::optional<Tensor>& residual, const std::optional<Tensor>& slope,
                         IntList stride, IntList padding, IntList dilation, int64_t activation) {
  constexpr const char* op = launch == launch_dense_conv ? "dense_conv2d" : "wgmma_conv2d";
  const OnDeviceOf device(input);
  DenseParams p{};
  p.element = check_features(op, "input", input, launch == launch_dense_conv);
  p.batch = input.size(0);
  p.in_channels = input.size(1);
  check_same(op, "weight", weight, input);
  SEGKERN_CHECK(weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == p.in_channels, op,
                ": weight must be (C_out, ", p.in_channels, ", kh, kw), got ",
                shape_string(sizes_of(weight)));
  p.out_channels = weight.size(0);
  p.window = dense_window(op, weight.size(2), weight.size(3), stride, padding, dilation,
                          input.size(2), input.size(3));
  check_launch(op, launch, p.window);
  const std::vector<int64_t> sizes = {p.batch, p.out_channels, p.window.out_h, p.window.out_w};
  EpilogueArgs epilogue =
      epilogue_args(op, input, sizes, true, scale, shift, residual, slope, activation);
  if (epilogue.residual.has_value()) {
    epilogue.residual = as_vectors(*epilogue.residual);
  }
  const Tensor in = as_vectors(input), taps = as_vectors(weight);
  Tensor out = empty_in_layout(sizes, input.scalar_type(), input, true);
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
    launch(p, device.stream());
  }
  return out;
}

// Of stride 1: the same convolution over the gradient, with the taps in reverse and the weight's
// channels exchanged.
template <Launch launch>
Tensor dense_grad_input_cuda(const Tensor& grad, const Tensor& weight, int64_t input_h,
                             int64_t input_w, IntList stride, IntList padding, IntList dilation) {
  constexpr const char* op = launch == launch_dense_conv ? "_dense_conv2d_grad_input"
                                                         : "_wgmma_conv2d_grad_input";
  const OnDeviceOf device(grad);
  DenseParams p{};
  p.element = check_features(op, "grad", grad, launch == launch_dense_conv);
  p.batch = grad.size(0);
  p.in_channels = grad.size(1);
  check_same(op, "weight", weight, grad);
  SEGKERN_CHECK(weight.dim() == 4 && weight.size(0) == p.in_channels && weight.size(1) >= 1, op,
                ": weight must be (", p.in_channels, ", C_in, kh, kw), got ",
                shape_string(sizes_of(weight)));
  p.out_channels = weight.size(1);
  const ConvWindow w = dense_window(op, weight.size(2), weight.size(3), stride, padding, dilation,
                                    input_h, input_w);
  SEGKERN_CHECK(w.stride_h == 1 && w.stride_w == 1, op, ": stride must be 1, got ",
                shape_string(stride));
  check_sizes(op, "grad", grad, {p.batch, p.in_channels, w.out_h, w.out_w});
  p.window = transposed(w);
  p.flip = true;
  const Tensor in = as_vectors(grad), taps = as_vectors(torch::stable::transpose(weight, 0, 1));
  Tensor out = empty_in_layout({p.batch, p.out_channels, input_h, input_w}, grad.scalar_type(),
                               grad, true);
  p.in = in.data_ptr();
  p.weight = taps.data_ptr();
  p.activation = Activation::kNone;
  p.out = out.data_ptr();
  if (p.batch > 0) {
    launch(p, device.stream());
  }
  return out;
}

Tensor dense_grad_weight_cuda(const Tensor& grad, const Tensor& input, int64_t kernel_h,
                              int64_t kernel_w, IntList stride, IntList padding,
                              IntList dilation) {
  constexpr const char* op = "_dense_conv2d_grad_weight";
  const OnDeviceOf device(input);
  DenseWeightGradParams p{};
  p.element = check_features(op, "input", input, true);
  check_features(op, "grad", grad, true);
  check_same(op, "grad", grad, input);
  p.batch = input.size(0);
  p.in_channels = input.size(1);
  p.out_channels = grad.size(1);
  p.window = dense_window(op, kernel_h, kernel_w, stride, padding, dilation, input.size(2),
                          input.size(3));
  check_sizes(op, "grad", grad, {p.batch, p.out_channels, p.window.out_h, p.window.out_w});
  const Tensor g = as_vectors(grad), in = as_vectors(input);
  // (C_out, kh, kw, C_in) in memory.
  Tensor sums = empty_in_layout({p.out_channels, p.in_channels, kernel_h, kernel_w},
                                ScalarType::Float, input, true);
  p.grad = g.data_ptr();
  p.in = in.data_ptr();
  p.weight_grad = static_cast<float*>(sums.data_ptr());
  if (p.batch == 0) {
    torch::stable::zero_(sums);
  } else {
    Tensor partial =
        empty_in_layout({dense_partial_elements(p)}, ScalarType::Float, input, false);
    launch_dense_weight_grad(p, static_cast<float*>(partial.data_ptr()), device.stream());
  }
  return torch::stable::to(sums, input.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("dense_conv2d", TORCH_BOX(&dense_conv2d_cuda<launch_dense_conv>));
  m.impl("_dense_conv2d_grad_input", TORCH_BOX(&dense_grad_input_cuda<launch_dense_conv>));
  m.impl("_dense_conv2d_grad_weight", TORCH_BOX(&dense_grad_weight_cuda));
  m.impl("wgmma_conv2d", TORCH_BOX(&dense_conv2d_cuda<launch_wgmma_conv>));
  m.impl("_wgmma_conv2d_grad_input", TORCH_BOX(&dense_grad_input_cuda<launch_wgmma_conv>));
  m.impl("_wgmma_conv2d_grad_weight", TORCH_BOX(&dense_grad_weight_cuda));
}

}  // namespace segkern
