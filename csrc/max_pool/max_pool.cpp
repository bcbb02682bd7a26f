#include "max_pool.h"

#include <torch/csrc/stable/library.h>

#include "pool_args.h"

namespace segkern {
namespace {

std::tuple<Tensor, Tensor> max_pool2d_with_indices_cpu(const Tensor& input, IntList kernel_size,
                                                       IntList stride, IntList padding,
                                                       IntList dilation, bool ceil_mode,
                                                       int64_t index_format) {
  PoolForward call = prepare_max_pool(input, kernel_size, stride, padding, dilation, ceil_mode,
                                      index_format);
  if (has_work(call.params)) {
    max_pool_fwd_cpu(call.params);
  }
  return {call.output, call.indices};
}

Tensor max_pool2d_backward_cpu(const Tensor& grad, const Tensor& indices, IntList kernel_size,
                               IntList stride, IntList padding, IntList dilation, int64_t input_h,
                               int64_t input_w) {
  constexpr const char* op = "_max_pool2d_backward";
  const PoolWindow window = make_window(op, kernel_size, stride, padding, dilation);
  PoolCall call =
      prepare_pool_call(op, "grad", grad, "input_h and input_w", indices, window, true, input_h,
                        input_w);
  if (has_work(call.params)) {
    SEGKERN_CHECK(max_pool_bwd_cpu(call.params), op,
                  ": indices must be in range for an input of (", input_h, ", ", input_w,
                  "), got an index outside; were they made by another pooling?");
  }
  return call.result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("max_pool2d_with_indices", TORCH_BOX(&max_pool2d_with_indices_cpu));
  m.impl("_max_pool2d_backward", TORCH_BOX(&max_pool2d_backward_cpu));
}

}  // namespace segkern
