#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "convert_indices.h"
#include "max_pool.h"
#include "pool_args.h"

namespace segkern {
namespace {

std::tuple<Tensor, Tensor> max_pool2d_with_indices_cuda(const Tensor& input, IntList kernel_size,
                                                        IntList stride, IntList padding,
                                                        IntList dilation, bool ceil_mode,
                                                        int64_t index_format) {
  const OnDeviceOf device(input);
  PoolForward call = prepare_max_pool(input, kernel_size, stride, padding, dilation, ceil_mode,
                                      index_format);
  if (has_work(call.params)) {
    launch_max_pool_fwd(call.params, device.stream());
  }
  return {call.output, call.indices};
}

Tensor max_pool2d_backward_cuda(const Tensor& grad, const Tensor& indices, IntList kernel_size,
                                IntList stride, IntList padding, IntList dilation,
                                int64_t input_h, int64_t input_w) {
  constexpr const char* op = "_max_pool2d_backward";
  const OnDeviceOf device(grad);
  const PoolWindow window = make_window(op, kernel_size, stride, padding, dilation);
  PoolCall call =
      prepare_pool_call(op, "grad", grad, "input_h and input_w", indices, window, true, input_h,
                        input_w);
  if (has_work(call.params)) {
    launch_max_pool_bwd(call.params, device.stream());
  }
  return call.result;
}

Tensor convert_pool_indices_cuda(const Tensor& indices, IntList kernel_size, IntList stride,
                                 IntList padding, IntList dilation, int64_t input_h,
                                 int64_t input_w, int64_t pooled_h, int64_t pooled_w,
                                 int64_t index_format) {
  const OnDeviceOf device(indices);
  ConvertCall call = prepare_convert(indices, kernel_size, stride, padding, dilation, input_h,
                                     input_w, pooled_h, pooled_w, index_format);
  if (has_work(call.params.from)) {
    launch_convert_pool_indices(call.params, device.stream());
  }
  return call.result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("max_pool2d_with_indices", TORCH_BOX(&max_pool2d_with_indices_cuda));
  m.impl("_max_pool2d_backward", TORCH_BOX(&max_pool2d_backward_cuda));
  m.impl("convert_pool_indices", TORCH_BOX(&convert_pool_indices_cuda));
}

}  // namespace segkern
