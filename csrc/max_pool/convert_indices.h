// The checks of convert_pool_indices, common to both devices.
#pragma once

#include "pool_args.h"

namespace segkern {

struct ConvertCall {
  ConvertParams params;
  Tensor indices, result;
};

inline ConvertCall prepare_convert(const Tensor& indices, const IntList& kernel_size,
                                   const IntList& stride, const IntList& padding,
                                   const IntList& dilation, int64_t input_h, int64_t input_w,
                                   int64_t pooled_h, int64_t pooled_w, int64_t index_format) {
  constexpr const char* op = "convert_pool_indices";
  PoolWindow w = make_window(op, kernel_size, stride, padding, dilation);
  w.in_h = input_h;
  w.in_w = input_w;
  w.out_h = pooled_h;
  w.out_w = pooled_w;
  check_plane(op, "input_size", w);
  SEGKERN_CHECK(index_format >= 0 && index_format <= 2, op,
                ": index_format must be 0 (offset), 1 (packed) or 2 (flat), got ", index_format);
  const auto to = static_cast<IndexFormat>(index_format);
  check_format_fits(op, w, to);
  check_features(op, "indices", indices);
  const IndexFormat from = check_indices(op, indices, indices, w);
  ConvertCall call;
  const bool channels_last = is_channels_last(indices);
  call.indices = as_layout(indices, channels_last);
  call.result = empty_in_layout(with_plane(indices, pooled_h, w.index_row(to)), format_dtype(to),
                                indices, channels_last);
  call.params.from.window = w;
  call.params.from.batch = indices.dim() == 4 ? indices.size(0) : 1;
  call.params.from.channels = indices.size(indices.dim() - 3);
  call.params.from.format = from;
  call.params.from.channels_last = channels_last;
  call.params.from.indices = const_cast<void*>(call.indices.data_ptr());
  call.params.to = to;
  call.params.indices = const_cast<void*>(call.result.data_ptr());
  return call;
}

}  // namespace segkern
