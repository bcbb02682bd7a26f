#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/stream.h"
#include "separable_args.h"
#include "separable_cuda.h"

namespace segkern {
namespace {

Tensor separable_gaussian_cuda(const Tensor& values, const Tensor& widths, int64_t derivative) {
  const OnDeviceOf device(values);
  const SeparableCall call = check_separable(values, widths, derivative);
  const auto empty = [&] {
    return empty_in_layout(sizes_of(values), ScalarType::Float, values, false);
  };
  Tensor out = empty();
  if (out.numel() == 0) {
    return out;
  }
  // The passes take turns between two arrays and end in `out`.
  Tensor other = call.axes() > 1 ? empty() : out;
  const Tensor* from = &call.values;
  for (int64_t i = 0; i < call.axes(); ++i) {
    const Tensor& to = (call.axes() - i) % 2 ? out : other;
    launch_separable_gaussian_pass(
        {static_cast<const float*>(from->data_ptr()), static_cast<float*>(to.data_ptr()),
         static_cast<const float*>(call.widths.data_ptr()) + i, out.numel(), call.sizes[i],
         call.step(i), i == derivative},
        device.stream());
    from = &to;
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("separable_gaussian", TORCH_BOX(&separable_gaussian_cuda));
}

}  // namespace segkern
