#include "max_unpool.h"

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "../max_pool/pool_args.h"

namespace segkern {
namespace {

// Workspace of a call: an uninitialised byte tensor, given back to its stream's pool. Winners are
// window numbers in an int.
Tensor make_workspace(const char* op, const PoolParams& params, const Tensor& like) {
  SEGKERN_CHECK(params.window.out_h * params.window.out_w < INT32_MAX, op,
                ": a plane of windows must have fewer than 2^31 elements, got (",
                params.window.out_h, ", ", params.window.out_w, ")");
  return empty_in_layout({max_unpool_workspace(params)}, ScalarType::Byte, like, false);
}

Tensor max_unpool2d_cuda(const Tensor& input, const Tensor& indices, IntList kernel_size,
                         IntList stride, IntList padding, IntList dilation, int64_t output_h,
                         int64_t output_w) {
  constexpr const char* op = "max_unpool2d";
  const OnDeviceOf device(input);
  const PoolWindow window = make_window(op, kernel_size, stride, padding, dilation);
  PoolCall call =
      prepare_pool_call(op, "input", input, "output_size", indices, window, true, output_h,
                        output_w);
  if (has_work(call.params)) {
    const Tensor workspace = make_workspace(op, call.params, input);
    launch_max_unpool_fwd(call.params, const_cast<void*>(workspace.data_ptr()), device.stream());
  }
  return call.result;
}

Tensor max_unpool2d_backward_cuda(const Tensor& grad, const Tensor& indices, IntList kernel_size,
                                  IntList stride, IntList padding, IntList dilation,
                                  int64_t pooled_h, int64_t pooled_w, bool winners_only) {
  constexpr const char* op = "_max_unpool2d_backward";
  const OnDeviceOf device(grad);
  const PoolWindow window = make_window(op, kernel_size, stride, padding, dilation);
  PoolCall call =
      prepare_pool_call(op, "grad", grad, "grad", indices, window, false, pooled_h, pooled_w);
  if (has_work(call.params)) {
    const Tensor workspace = make_workspace(op, call.params, grad);
    launch_max_unpool_bwd(call.params, winners_only, const_cast<void*>(workspace.data_ptr()),
                          device.stream());
  }
  return call.result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("max_unpool2d", TORCH_BOX(&max_unpool2d_cuda));
  m.impl("_max_unpool2d_backward", TORCH_BOX(&max_unpool2d_backward_cuda));
}

}  // namespace segkern
