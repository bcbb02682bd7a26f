#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "pieces.h"
#include "pyramid_pool.h"
#include "pyramid_pool_args.h"

namespace segkern {
namespace {

Tensor pieces_workspace(const PyramidParams& p, const Tensor& like) {
  const int64_t pieces = Segments(p, p.height).count * Segments(p, p.width).count;
  const bool wide = p.element == Element::kFloat64;
  return empty_in_layout({p.planes(), pieces}, wide ? ScalarType::Double : ScalarType::Float, like,
                         false);
}

Tensor pyramid_pool_cuda(const Tensor& input, IntList bins) {
  const OnDeviceOf device(input);
  PyramidCall call = prepare_pyramid_pool(input, bins);
  if (call.has_work()) {
    const Tensor sums = pieces_workspace(call.params, input);
    launch_pyramid_pool_fwd(call.params, sums.data_ptr(), device.stream());
  }
  return call.to;
}

Tensor pyramid_pool_backward_cuda(const Tensor& grad, IntList bins, int64_t input_h,
                                  int64_t input_w) {
  const OnDeviceOf device(grad);
  PyramidCall call = prepare_pyramid_pool_backward(grad, bins, input_h, input_w);
  if (call.has_work()) {
    const Tensor sums = pieces_workspace(call.params, grad);
    launch_pyramid_pool_bwd(call.params, sums.data_ptr(), device.stream());
  }
  return call.to;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("pyramid_pool", TORCH_BOX(&pyramid_pool_cuda));
  m.impl("_pyramid_pool_backward", TORCH_BOX(&pyramid_pool_backward_cuda));
}

}  // namespace segkern
