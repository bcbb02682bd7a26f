#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "local_filter.h"
#include "local_filter_args.h"

namespace segkern {
namespace {

void check_window(const char* op, const LocalFilterParams& p) {
  SEGKERN_CHECK(p.kernel_w <= kMaxCudaWindow, op, ": kernel_size on CUDA must be at most ",
                kMaxCudaWindow, " wide, got ", p.kernel_w);
}

Tensor local_quadratic_filter_cuda(const Tensor& input, const Tensor& image, const Tensor& weights,
                                   IntList kernel_size, bool multiply) {
  constexpr const char* op = "local_quadratic_filter";
  const OnDeviceOf device(input);
  LocalFilterCall call = check_local_filter(op, input, image, weights, kernel_size);
  check_window(op, call.params);
  Tensor out = empty_in_layout(sizes_of(input), input.scalar_type(), input, false);
  if (out.numel() > 0) {
    launch_local_filter(forward_params(call, multiply, out), device.stream());
  }
  return out;
}

std::tuple<Tensor, Tensor> local_quadratic_filter_backward_cuda(
    const Tensor& grad, const Tensor& input, const Tensor& image, const Tensor& weights,
    IntList kernel_size, bool multiply) {
  constexpr const char* op = "_local_quadratic_filter_backward";
  const OnDeviceOf device(input);
  LocalFilterCall call = check_local_filter(op, input, image, weights, kernel_size);
  check_window(op, call.params);
  check_filter_grad(op, grad, input);
  const cudaStream_t stream = device.stream();
  Tensor grad_input = empty_in_layout(sizes_of(input), input.scalar_type(), input, false);
  Tensor grad_weights = empty_in_layout({2}, ScalarType::Double, input, false);
  const Tensor dense = as_layout(grad, false);
  LocalFilterParams p = transposed_params(call, dense, nullptr, grad_input);
  const int64_t parts = grad_input.numel() > 0 ? local_filter_parts_cuda(p) : 0;
  Tensor partial = empty_in_layout({parts, 2}, ScalarType::Double, input, false);
  Tensor through =
      empty_in_layout(multiply ? sizes_of(input) : IntList{0}, call.wide, input, false);
  if (parts > 0) {
    if (multiply) {
      launch_local_filter(factor_params(call, dense, through), stream);
      p = transposed_params(call, dense, &through, grad_input);
    }
    p.partial = static_cast<double*>(partial.data_ptr());
    launch_local_filter(p, stream);
  }
  launch_local_filter_sums(static_cast<const double*>(partial.data_ptr()), parts,
                           static_cast<double*>(grad_weights.data_ptr()), stream);
  return {grad_input, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("local_quadratic_filter", TORCH_BOX(&local_quadratic_filter_cuda));
  m.impl("_local_quadratic_filter_backward", TORCH_BOX(&local_quadratic_filter_backward_cuda));
}

}  // namespace segkern
