#include "max_unpool.h"

#include <torch/csrc/stable/library.h>

#include "../max_pool/pool_args.h"

namespace segkern {
namespace {

Tensor max_unpool2d_cpu(const Tensor& input, const Tensor& indices, IntList kernel_size,
                        IntList stride, IntList padding, IntList dilation, int64_t output_h,
                        int64_t output_w) {
  constexpr const char* op = "max_unpool2d";
  const PoolWindow window = make_window(op, kernel_size, stride, padding, dilation);
  PoolCall call =
      prepare_pool_call(op, "input", input, "output_size", indices, window, true, output_h,
                        output_w);
  if (has_work(call.params)) {
    SEGKERN_CHECK(max_unpool_fwd_cpu(call.params), op,
                  ": indices must be in range for an output of (", output_h, ", ", output_w,
                  "), got an index outside; were they made by another pooling?");
  }
  return call.result;
}

Tensor max_unpool2d_backward_cpu(const Tensor& grad, const Tensor& indices, IntList kernel_size,
                                 IntList stride, IntList padding, IntList dilation,
                                 int64_t pooled_h, int64_t pooled_w, bool winners_only) {
  constexpr const char* op = "_max_unpool2d_backward";
  const PoolWindow window = make_window(op, kernel_size, stride, padding, dilation);
  PoolCall call =
      prepare_pool_call(op, "grad", grad, "grad", indices, window, false, pooled_h, pooled_w);
  if (has_work(call.params)) {
    SEGKERN_CHECK(max_unpool_bwd_cpu(call.params, winners_only), op,
                  ": indices must be in range for a plane of (", call.params.window.in_h, ", ",
                  call.params.window.in_w, "), got an index outside");
  }
  return call.result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("max_unpool2d", TORCH_BOX(&max_unpool2d_cpu));
  m.impl("_max_unpool2d_backward", TORCH_BOX(&max_unpool2d_backward_cpu));
}

}  // namespace segkern
