#include "block_min.h"

#include <tuple>

#include <torch/csrc/stable/library.h>

#include "block_min_args.h"

namespace segkern {
namespace {

std::tuple<Tensor, Tensor> block_min_pool_cpu(const Tensor& input, int64_t block_size) {
  BlockMinCall call = prepare_block_min(input, block_size);
  if (has_work(call.params)) {
    block_min_fwd_cpu(call.params);
  }
  return {call.out, call.indices};
}

Tensor block_min_pool_backward_cpu(const Tensor& grad, const Tensor& indices, int64_t block_size) {
  BlockMinCall call = prepare_block_min_backward(grad, indices, block_size);
  if (has_work(call.params)) {
    block_min_bwd_cpu(call.params);
  }
  return call.wide_out;
}

std::tuple<Tensor, Tensor> mixture_mean_field_cpu(const Tensor& log_unary, const Tensor& penalty,
                                                  bool log) {
  BlockMinCall call = prepare_mean_field_pass(log_unary, penalty, log);
  if (has_work(call.params)) {
    mean_field_pass_fwd_cpu(call.params);
  }
  return {call.out, call.indices};
}

std::tuple<Tensor, Tensor> mixture_mean_field_backward_cpu(
    const Tensor& grad, const Tensor& output, const Tensor& indices, int64_t mixtures, bool log) {
  BlockMinCall call = prepare_mean_field_pass_backward(grad, output, indices, mixtures, log);
  if (has_work(call.params)) {
    mean_field_pass_bwd_cpu(call.params);
  }
  return {call.out, call.wide_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("block_min_pool", TORCH_BOX(&block_min_pool_cpu));
  m.impl("_block_min_pool_backward", TORCH_BOX(&block_min_pool_backward_cpu));
  m.impl("mixture_mean_field", TORCH_BOX(&mixture_mean_field_cpu));
  m.impl("_mixture_mean_field_backward", TORCH_BOX(&mixture_mean_field_backward_cpu));
}

}  // namespace segkern
