// convert_pool_indices: the same positions in another index format.
#include <algorithm>
#include <atomic>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "convert_indices.h"

namespace segkern {
namespace {

// One element of the target: the code or plane index of a window, or the codes of a whole word.
// False if an index is not an element of its window.
bool convert_element(const ConvertParams& p, int64_t plane, int64_t oh, int64_t x, int64_t lane) {
  const PoolWindow& w = p.from.window;
  const int64_t stride = p.from.channels_last ? p.from.channels : 1;
  const int64_t row_index = plane * w.out_h + oh;
  const int64_t source = row_index * w.index_row(p.from.format) * stride + lane;
  const int64_t target = (row_index * p.row() + x) * stride + lane;
  uint32_t word = 0;
  for (int64_t i = 0; i < p.per_element(); ++i) {
    const int64_t ow = x * p.per_element() + i;
    if (ow >= w.out_w) {
      break;
    }
    const int64_t index = stored_index(w, p.from.format, p.from.indices, source, stride, ow);
    const int64_t code = window_code(w, p.from.format, oh, ow, index);
    if (code < 0) {
      return false;
    }
    switch (p.to) {
      case IndexFormat::kOffset:
        static_cast<uint8_t*>(p.indices)[target] = static_cast<uint8_t>(code);
        break;
      case IndexFormat::kPacked:
        word |= static_cast<uint32_t>(code) << (w.bits() * i);
        break;
      case IndexFormat::kFlat:
        static_cast<int64_t*>(p.indices)[target] = flat_index(w, oh, ow, code);
        break;
    }
  }
  if (p.to == IndexFormat::kPacked) {
    static_cast<uint32_t*>(p.indices)[target] = word;
  }
  return true;
}

bool convert_indices_cpu(const ConvertParams& p) {
  const PoolWindow& w = p.from.window;
  const int64_t planes = p.from.channels_last ? p.from.batch : p.from.batch * p.from.channels;
  const int64_t lanes = p.from.channels_last ? p.from.channels : 1;
  const int64_t work = std::max<int64_t>(1, w.out_w * lanes);
  std::atomic<bool> ok{true};
  torch::stable::parallel_for(
      0, planes * w.out_h, std::max<int64_t>(1, 16384 / work), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end && ok; ++task) {
          for (int64_t i = 0; i < p.row() * lanes; ++i) {
            if (!convert_element(p, task / w.out_h, task % w.out_h, i / lanes, i % lanes)) {
              ok = false;
              break;
            }
          }
        }
      });
  return ok;
}

Tensor convert_pool_indices_cpu(const Tensor& indices, IntList kernel_size, IntList stride,
                                IntList padding, IntList dilation, int64_t input_h,
                                int64_t input_w, int64_t pooled_h, int64_t pooled_w,
                                int64_t index_format) {
  ConvertCall call = prepare_convert(indices, kernel_size, stride, padding, dilation, input_h,
                                     input_w, pooled_h, pooled_w, index_format);
  if (has_work(call.params.from)) {
    SEGKERN_CHECK(convert_indices_cpu(call.params), "convert_pool_indices: indices must name "
                  "elements of their own windows, got one that does not");
  }
  return call.result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("convert_pool_indices", TORCH_BOX(&convert_pool_indices_cpu));
}

}  // namespace segkern
