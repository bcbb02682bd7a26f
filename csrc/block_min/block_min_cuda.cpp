#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "block_min.h"
#include "block_min_args.h"

namespace segkern {
namespace {

std::tuple<Tensor, Tensor> block_min_pool_cuda(const Tensor& input, int64_t block_size) {
  const OnDeviceOf device(input);
  BlockMinCall call = prepare_block_min(input, block_size);
  if (has_work(call.params)) {
    launch_block_min_fwd(call.params, device.stream());
  }
  return {call.out, call.indices};
}

Tensor block_min_pool_backward_cuda(const Tensor& grad, const Tensor& indices, int64_t block_size) {
  const OnDeviceOf device(grad);
  BlockMinCall call = prepare_block_min_backward(grad, indices, block_size);
  if (has_work(call.params)) {
    launch_block_min_bwd(call.params, device.stream());
  }
  return call.wide_out;
}

std::tuple<Tensor, Tensor> mixture_mean_field_cuda(const Tensor& log_unary, const Tensor& penalty,
                                                  bool log) {
  const OnDeviceOf device(log_unary);
  BlockMinCall call = prepare_mean_field_pass(log_unary, penalty, log);
  if (has_work(call.params)) {
    launch_mean_field_pass_fwd(call.params, device.stream());
  }
  return {call.out, call.indices};
}

std::tuple<Tensor, Tensor> mixture_mean_field_backward_cuda(
    const Tensor& grad, const Tensor& output, const Tensor& indices, int64_t mixtures, bool log) {
  const OnDeviceOf device(grad);
  BlockMinCall call = prepare_mean_field_pass_backward(grad, output, indices, mixtures, log);
  if (has_work(call.params)) {
    launch_mean_field_pass_bwd(call.params, device.stream());
  }
  return {call.out, call.wide_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("block_min_pool", TORCH_BOX(&block_min_pool_cuda));
  m.impl("_block_min_pool_backward", TORCH_BOX(&block_min_pool_backward_cuda));
  m.impl("mixture_mean_field", TORCH_BOX(&mixture_mean_field_cuda));
  m.impl("_mixture_mean_field_backward", TORCH_BOX(&mixture_mean_field_backward_cuda));
}

}  // namespace segkern
