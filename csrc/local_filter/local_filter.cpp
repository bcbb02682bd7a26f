#include "local_filter.h"

#include <tuple>

#include <torch/csrc/stable/library.h>

#include "local_filter_args.h"

namespace segkern {
namespace {

Tensor local_quadratic_filter_cpu(const Tensor& input, const Tensor& image, const Tensor& weights,
                                  IntList kernel_size, bool multiply) {
  LocalFilterCall call =
      check_local_filter("local_quadratic_filter", input, image, weights, kernel_size);
  Tensor out = empty_in_layout(sizes_of(input), input.scalar_type(), input, false);
  if (out.numel() > 0) {
    local_filter_cpu(forward_params(call, multiply, out));
  }
  return out;
}

std::tuple<Tensor, Tensor> local_quadratic_filter_backward_cpu(
    const Tensor& grad, const Tensor& input, const Tensor& image, const Tensor& weights,
    IntList kernel_size, bool multiply) {
  constexpr const char* op = "_local_quadratic_filter_backward";
  LocalFilterCall call = check_local_filter(op, input, image, weights, kernel_size);
  check_filter_grad(op, grad, input);
  Tensor grad_input = empty_in_layout(sizes_of(input), input.scalar_type(), input, false);
  Tensor grad_weights = empty_in_layout({2}, ScalarType::Double, input, false);
  auto* sums = static_cast<double*>(grad_weights.data_ptr());
  sums[0] = sums[1] = 0;
  if (grad_input.numel() == 0) {
    return {grad_input, grad_weights};
  }
  const Tensor dense = as_layout(grad, false);
  Tensor through =
      empty_in_layout(multiply ? sizes_of(input) : IntList{0}, call.wide, input, false);
  if (multiply) {
    local_filter_cpu(factor_params(call, dense, through));
  }
  LocalFilterParams p = transposed_params(call, dense, multiply ? &through : nullptr, grad_input);
  std::vector<double> partial(2 * local_filter_parts_cpu(p));
  p.partial = partial.data();
  local_filter_cpu(p);
  for (size_t i = 0; i < partial.size(); ++i) {
    sums[i % 2] += partial[i];
  }
  return {grad_input, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("local_quadratic_filter", TORCH_BOX(&local_quadratic_filter_cpu));
  m.impl("_local_quadratic_filter_backward", TORCH_BOX(&local_quadratic_filter_backward_cpu));
}

}  // namespace segkern
