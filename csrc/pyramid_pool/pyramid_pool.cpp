#include "pyramid_pool.h"

#include <torch/csrc/stable/library.h>

#include "pyramid_pool_args.h"

namespace segkern {
namespace {

Tensor pyramid_pool_cpu(const Tensor& input, IntList bins) {
  PyramidCall call = prepare_pyramid_pool(input, bins);
  if (call.has_work()) {
    pyramid_pool_fwd_cpu(call.params);
  }
  return call.to;
}

Tensor pyramid_pool_backward_cpu(const Tensor& grad, IntList bins, int64_t input_h,
                                 int64_t input_w) {
  PyramidCall call = prepare_pyramid_pool_backward(grad, bins, input_h, input_w);
  if (call.has_work()) {
    pyramid_pool_bwd_cpu(call.params);
  }
  return call.to;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("pyramid_pool", TORCH_BOX(&pyramid_pool_cpu));
  m.impl("_pyramid_pool_backward", TORCH_BOX(&pyramid_pool_backward_cpu));
}

}  // namespace segkern
