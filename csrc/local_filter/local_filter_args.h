// The arguments of local_quadratic_filter and its backward, checked; common to both devices.
#pragma once

#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/layout.h"
#include "local_filter.h"

namespace segkern {

using IntList = std::vector<int64_t>;

// Dense tensors and the params over them; values, outer and out are left to the caller.
struct LocalFilterCall {
  Tensor input, image, weights;
  ScalarType wide;
  LocalFilterParams params;
};

inline LocalFilterCall check_local_filter(const char* op, const Tensor& input, const Tensor& image,
                                          const Tensor& weights, const IntList& kernel_size) {
  LocalFilterCall call{};
  LocalFilterParams& p = call.params;
  SEGKERN_CHECK(input.dim() == 4, op, ": input must be (N, L, H, W), got ",
                shape_string(sizes_of(input)));
  p.element = element_of(input, op, "input");
  call.wide = p.element == Element::kFloat64 ? ScalarType::Double : ScalarType::Float;
  const bool fits = image.dim() == 4 && image.size(0) == input.size(0) &&
                    image.size(2) == input.size(2) && image.size(3) == input.size(3) &&
                    image.size(1) >= 1 && image.size(1) <= kMaxColours;
  SEGKERN_CHECK(fits && image.scalar_type() == call.wide && image.device() == input.device(), op,
                ": image must be (", input.size(0), ", 1 to ", kMaxColours, ", ", input.size(2),
                ", ", input.size(3), ") on the device of input, float32, or float64 where input "
                "is, got ", shape_string(sizes_of(image)), " ",
                torch::headeronly::toString(image.scalar_type()));
  SEGKERN_CHECK(weights.scalar_type() == ScalarType::Double && weights.dim() == 1 &&
                    weights.size(0) == 2 && weights.device() == input.device(),
                op, ": weights must be float64 (2,) on the device of input, got ",
                shape_string(sizes_of(weights)));
  SEGKERN_CHECK(kernel_size.size() == 2 && kernel_size[0] >= 1 && kernel_size[1] >= 1 &&
                    kernel_size[0] <= INT32_MAX && kernel_size[1] <= INT32_MAX,
                op, ": kernel_size must be two positive integers, got ",
                shape_string(kernel_size));
  p.planes = input.size(0) * input.size(1);
  p.labels = input.size(1);
  p.height = input.size(2);
  p.width = input.size(3);
  p.colours = image.size(1);
  p.kernel_h = kernel_size[0];
  p.kernel_w = kernel_size[1];
  p.first_y = -(p.kernel_h / 2);
  p.first_x = -(p.kernel_w / 2);
  call.input = as_layout(input, false);
  call.image = as_layout(image, false);
  call.weights = as_layout(weights, false);
  p.image = call.image.data_ptr();
  p.weights = static_cast<const double*>(call.weights.data_ptr());
  return call;
}

inline void check_filter_grad(const char* op, const Tensor& grad, const Tensor& input) {
  SEGKERN_CHECK(grad.scalar_type() == input.scalar_type() && sizes_of(grad) == sizes_of(input) &&
                    grad.device() == input.device(),
                op, ": grad must be like input, ", shape_string(sizes_of(input)), ", got ",
                shape_string(sizes_of(grad)));
}

inline LocalFilterParams forward_params(LocalFilterCall& call, bool multiply, Tensor& out) {
  LocalFilterParams p = call.params;
  p.values = call.input.data_ptr();
  p.outer = multiply ? p.values : nullptr;
  p.out = out.data_ptr();
  return p;
}

// The gradient that reaches an input through the factor q_j alone: grad times the filtered input.
inline LocalFilterParams factor_params(LocalFilterCall& call, const Tensor& grad, Tensor& through) {
  LocalFilterParams p = call.params;
  p.values = call.input.data_ptr();
  p.outer = grad.data_ptr();
  p.out = through.data_ptr();
  p.wide = true;
  return p;
}

// The transposed filter on grad (times the input, if that was a factor), and the weights' sums.
inline LocalFilterParams transposed_params(LocalFilterCall& call, const Tensor& grad,
                                           const Tensor* through, Tensor& grad_input) {
  LocalFilterParams p = mirrored(call.params);
  p.values = grad.data_ptr();
  p.paired = call.input.data_ptr();
  if (through) {
    p.factor = call.input.data_ptr();
    p.added = through->data_ptr();
  }
  p.out = grad_input.data_ptr();
  return p;
}

}  // namespace segkern
