// The arguments of block_min_pool, mixture_mean_field and their backwards, checked; common to both
// devices.
#pragma once

#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/layout.h"
#include "block_min.h"

namespace segkern {

// Dense tensors, the results, and the params over all of them.
struct BlockMinCall {
  Tensor wide_in, unary, result, grad, indices;  // inputs; undefined where not used
  Tensor out, wide_out;
  BlockMinParams params;
};

inline BlockMinParams block_min_params(const char* op, const char* name, const Tensor& narrow,
                                       int64_t labels, int64_t block) {
  SEGKERN_CHECK(block >= 1 && block <= kMaxBlock, op, ": ", name, " must be from 1 to ", kMaxBlock,
                ", got ", block);
  BlockMinParams p{};
  p.items = narrow.size(0);
  p.labels = labels;
  p.block = block;
  p.area = narrow.size(2) * narrow.size(3);
  p.channels_last = is_channels_last(narrow);
  return p;
}

inline std::vector<int64_t> with_channels(const Tensor& like, int64_t channels) {
  return {like.size(0), channels, like.size(2), like.size(3)};
}

inline void check_planes(const char* op, const char* name, const Tensor& tensor) {
  SEGKERN_CHECK(tensor.dim() == 4, op, ": ", name, " must be (N, C, H, W), got ",
                shape_string(sizes_of(tensor)));
}

inline void check_alike(const char* op, const char* name, const Tensor& tensor,
                        const Tensor& like, ScalarType dtype) {
  SEGKERN_CHECK(sizes_of(tensor) == sizes_of(like) && tensor.scalar_type() == dtype &&
                    tensor.device() == like.device(),
                op, ": ", name, " must be ", torch::headeronly::toString(dtype), " ",
                shape_string(sizes_of(like)), ", got ",
                torch::headeronly::toString(tensor.scalar_type()), " ",
                shape_string(sizes_of(tensor)));
}

inline BlockMinCall prepare_block_min(const Tensor& input, int64_t block) {
  constexpr const char* op = "block_min_pool";
  check_planes(op, "input", input);
  BlockMinCall call{};
  BlockMinParams& p = call.params;
  p = block_min_params(op, "block_size", input, 0, block);
  SEGKERN_CHECK(input.size(1) % block == 0, op, ": input must have a multiple of block_size = ",
                block, " channels, got ", shape_string(sizes_of(input)));
  p.labels = input.size(1) / block;
  p.element = element_of(input, op, "input");
  call.wide_in = as_layout(input, p.channels_last);
  const auto sizes = with_channels(input, p.labels);
  call.out = empty_in_layout(sizes, input.scalar_type(), input, p.channels_last);
  call.indices = empty_in_layout(sizes, ScalarType::Byte, input, p.channels_last);
  p.wide_in = call.wide_in.data_ptr();
  p.out = call.out.data_ptr();
  p.codes = static_cast<uint8_t*>(call.indices.data_ptr());
  return call;
}

inline BlockMinCall prepare_block_min_backward(const Tensor& grad, const Tensor& indices,
                                               int64_t block) {
  constexpr const char* op = "_block_min_pool_backward";
  check_planes(op, "grad", grad);
  check_alike(op, "indices", indices, grad, ScalarType::Byte);
  BlockMinCall call{};
  BlockMinParams& p = call.params;
  p = block_min_params(op, "block_size", grad, grad.size(1), block);
  p.element = element_of(grad, op, "grad");
  call.grad = as_layout(grad, p.channels_last);
  call.indices = as_layout(indices, p.channels_last);
  call.wide_out = empty_in_layout(with_channels(grad, p.labels * block), grad.scalar_type(), grad,
                                  p.channels_last);
  p.grad = call.grad.data_ptr();
  p.codes = static_cast<uint8_t*>(call.indices.data_ptr());
  p.wide_out = call.wide_out.data_ptr();
  return call;
}

inline BlockMinCall prepare_mean_field_pass(const Tensor& unary, const Tensor& penalty, bool log) {
  constexpr const char* op = "mixture_mean_field";
  check_planes(op, "log_unary", unary);
  check_planes(op, "penalty", penalty);
  const int64_t labels = unary.size(1);
  const int64_t block = labels > 0 ? penalty.size(1) / labels : 1;
  const bool fits = labels > 0 && block >= 1 && penalty.size(1) == labels * block &&
                    penalty.size(0) == unary.size(0) && penalty.size(2) == unary.size(2) &&
                    penalty.size(3) == unary.size(3);
  SEGKERN_CHECK(fits && penalty.scalar_type() == unary.scalar_type() &&
                    penalty.device() == unary.device(),
                op, ": penalty must be (N, L * K, H, W) of the dtype and device of log_unary "
                "(N, L, H, W), got ", shape_string(sizes_of(penalty)), " for ",
                shape_string(sizes_of(unary)));
  BlockMinCall call{};
  BlockMinParams& p = call.params;
  p = block_min_params(op, "K", unary, labels, block);
  p.element = element_of(unary, op, "log_unary");
  p.log = log;
  call.unary = as_layout(unary, p.channels_last);
  call.wide_in = as_layout(penalty, p.channels_last);
  call.out = empty_in_layout(sizes_of(unary), unary.scalar_type(), unary, p.channels_last);
  call.indices = empty_in_layout(sizes_of(unary), ScalarType::Byte, unary, p.channels_last);
  p.unary = call.unary.data_ptr();
  p.wide_in = call.wide_in.data_ptr();
  p.out = call.out.data_ptr();
  p.codes = static_cast<uint8_t*>(call.indices.data_ptr());
  return call;
}

inline BlockMinCall prepare_mean_field_pass_backward(const Tensor& grad, const Tensor& output,
                                                     const Tensor& indices, int64_t mixtures,
                                                     bool log) {
  constexpr const char* op = "_mixture_mean_field_backward";
  check_planes(op, "output", output);
  check_alike(op, "grad", grad, output, output.scalar_type());
  check_alike(op, "indices", indices, output, ScalarType::Byte);
  BlockMinCall call{};
  BlockMinParams& p = call.params;
  p = block_min_params(op, "mixtures", output, output.size(1), mixtures);
  p.element = element_of(output, op, "output");
  p.log = log;
  call.grad = as_layout(grad, p.channels_last);
  call.result = as_layout(output, p.channels_last);
  call.indices = as_layout(indices, p.channels_last);
  call.out = empty_in_layout(sizes_of(output), output.scalar_type(), output, p.channels_last);
  call.wide_out = empty_in_layout(with_channels(output, p.labels * mixtures),
                                  output.scalar_type(), output, p.channels_last);
  p.grad = call.grad.data_ptr();
  p.result = call.result.data_ptr();
  p.codes = static_cast<uint8_t*>(call.indices.data_ptr());
  p.out = call.out.data_ptr();
  p.wide_out = call.wide_out.data_ptr();
  return call;
}

inline bool has_work(const BlockMinParams& p) { return p.pixels() * p.labels > 0; }

}  // namespace segkern
