// From an operator's arguments to PoolParams: what the CPU and CUDA hosts of pooling and unpooling
// check in common.
#pragma once

#include <tuple>
#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/layout.h"
#include "window.h"

namespace segkern {

using IntList = std::vector<int64_t>;

inline const char* format_name(IndexFormat format) {
  switch (format) {
    case IndexFormat::kOffset:
      return "offset";
    case IndexFormat::kPacked:
      return "packed";
    default:
      return "flat";
  }
}

inline ScalarType format_dtype(IndexFormat format) {
  switch (format) {
    case IndexFormat::kOffset:
      return ScalarType::Byte;
    case IndexFormat::kPacked:
      return ScalarType::Int;
    default:
      return ScalarType::Long;
  }
}

// The dtype of an index tensor names its format.
inline IndexFormat format_of(const Tensor& indices, const char* op) {
  switch (indices.scalar_type()) {
    case ScalarType::Byte:
      return IndexFormat::kOffset;
    case ScalarType::Int:
      return IndexFormat::kPacked;
    case ScalarType::Long:
      return IndexFormat::kFlat;
    default:
      fail(op, ": indices must be uint8 (offset), int32 (packed) or int64 (flat), got ",
           torch::headeronly::toString(indices.scalar_type()));
  }
}

inline PoolWindow make_window(const char* op, const IntList& kernel, const IntList& stride,
                              const IntList& padding, const IntList& dilation) {
  const auto two = [&](const IntList& list, const char* name, int64_t least) {
    SEGKERN_CHECK(list.size() == 2 && list[0] >= least && list[1] >= least, op, ": ", name,
                  " must be two integers of at least ", least, ", got ", shape_string(list));
  };
  two(kernel, "kernel_size", 1);
  two(stride, "stride", 1);
  two(padding, "padding", 0);
  two(dilation, "dilation", 1);
  PoolWindow w{};
  w.kernel_h = kernel[0];
  w.kernel_w = kernel[1];
  w.stride_h = stride[0];
  w.stride_w = stride[1];
  w.pad_h = padding[0];
  w.pad_w = padding[1];
  w.dilation_h = dilation[0];
  w.dilation_w = dilation[1];
  return w;
}

inline void check_format_fits(const char* op, const PoolWindow& w, IndexFormat format) {
  const int64_t most = format == IndexFormat::kOffset   ? kMaxOffsetTaps
                       : format == IndexFormat::kPacked ? kMaxPackedTaps
                                                        : INT64_MAX;
  SEGKERN_CHECK(w.taps() <= most, op, ": kernel_size must have at most ", most,
                " elements for index_format '", format_name(format), "', got ", w.kernel_h, "x",
                w.kernel_w);
}

inline std::vector<int64_t> with_plane(const Tensor& like, int64_t h, int64_t w) {
  std::vector<int64_t> sizes = sizes_of(like);
  sizes[sizes.size() - 2] = h;
  sizes[sizes.size() - 1] = w;
  return sizes;
}

// Sizes of the tensors beside `features`, a (N, C, H, W) or (C, H, W) tensor of either side.
inline PoolParams make_params(const char* op, const char* name, const PoolWindow& window,
                              const Tensor& features, IndexFormat format, bool channels_last) {
  PoolParams p{};
  p.window = window;
  p.batch = features.dim() == 4 ? features.size(0) : 1;
  p.channels = features.size(features.dim() - 3);
  p.element = element_of(features, op, name);
  p.format = format;
  p.channels_last = channels_last;
  return p;
}

inline void check_features(const char* op, const char* name, const Tensor& t) {
  SEGKERN_CHECK(t.dim() == 3 || t.dim() == 4, op, ": ", name,
                " must be (N, C, H, W) or (C, H, W), got ", shape_string(sizes_of(t)));
  const int64_t d = t.dim();
  SEGKERN_CHECK(t.size(d - 3) > 0 && t.size(d - 2) > 0 && t.size(d - 1) > 0, op, ": ", name,
                " must have at least one channel, row and column, got ",
                shape_string(sizes_of(t)));
}

// Checks indices against the window side of a call, and returns their format.
inline IndexFormat check_indices(const char* op, const Tensor& indices, const Tensor& features,
                                 const PoolWindow& w) {
  const IndexFormat format = format_of(indices, op);
  check_format_fits(op, w, format);
  const std::vector<int64_t> wanted = with_plane(features, w.out_h, w.index_row(format));
  SEGKERN_CHECK(sizes_of(indices) == wanted, op, ": indices (", format_name(format),
                ") must be ", shape_string(wanted), ", got ", shape_string(sizes_of(indices)));
  SEGKERN_CHECK(indices.device() == features.device(), op,
                ": indices must be on the device of the features");
  return format;
}

// Windows along one axis, as torch counts them.
inline int64_t pooled_length(const char* op, int64_t in, int64_t kernel, int64_t stride,
                             int64_t pad, int64_t dilation, bool ceil_mode) {
  SEGKERN_CHECK(2 * pad <= kernel, op, ": padding must be at most half of kernel_size, got ", pad,
                " for ", kernel);
  const int64_t span = in + 2 * pad - dilation * (kernel - 1) - 1;
  if (span < 0 && !(ceil_mode && span + stride > 0)) {
    fail(op, ": input of length ", in, " is too small for kernel_size ", kernel, ", dilation ",
         dilation, ", padding ", pad);
  }
  int64_t out = (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= in + pad) {
    --out;  // the last window would start in the padding behind the input
  }
  SEGKERN_CHECK(out > 0, op, ": output would be empty for an input of length ", in);
  return out;
}

// Whether every window starts before the end of the plane, which the loops rely on.
inline void check_plane(const char* op, const char* name, const PoolWindow& w) {
  SEGKERN_CHECK(w.in_h > 0 && w.in_w > 0 && (w.out_h - 1) * w.stride_h - w.pad_h < w.in_h &&
                    (w.out_w - 1) * w.stride_w - w.pad_w < w.in_w,
                op, ": ", name, " must hold the start of each of the ", w.out_h, "x", w.out_w,
                " windows, got (", w.in_h, ", ", w.in_w, ")");
}

// ---- the four calls, common to both devices: checks, outputs and params ----------------------

struct PoolForward {
  PoolParams params;
  Tensor input, output, indices;
};

inline PoolForward prepare_max_pool(const Tensor& input, const IntList& kernel,
                                    const IntList& stride, const IntList& padding,
                                    const IntList& dilation, bool ceil_mode,
                                    int64_t index_format) {
  constexpr const char* op = "max_pool2d_with_indices";
  check_features(op, "input", input);
  SEGKERN_CHECK(index_format >= 0 && index_format <= 2, op,
                ": index_format must be 0 (offset), 1 (packed) or 2 (flat), got ", index_format);
  const auto format = static_cast<IndexFormat>(index_format);
  PoolWindow w = make_window(op, kernel, stride, padding, dilation);
  check_format_fits(op, w, format);
  w.in_h = input.size(input.dim() - 2);
  w.in_w = input.size(input.dim() - 1);
  w.out_h = pooled_length(op, w.in_h, w.kernel_h, w.stride_h, w.pad_h, w.dilation_h, ceil_mode);
  w.out_w = pooled_length(op, w.in_w, w.kernel_w, w.stride_w, w.pad_w, w.dilation_w, ceil_mode);
  PoolForward call;
  const bool channels_last = is_channels_last(input);
  call.input = as_layout(input, channels_last);
  call.params = make_params(op, "input", w, call.input, format, channels_last);
  call.output = empty_in_layout(with_plane(input, w.out_h, w.out_w), input.scalar_type(), input,
                                channels_last);
  call.indices = empty_in_layout(with_plane(input, w.out_h, w.index_row(format)),
                                 format_dtype(format), input, channels_last);
  call.params.in = const_cast<void*>(call.input.data_ptr());
  call.params.out = const_cast<void*>(call.output.data_ptr());
  call.params.indices = const_cast<void*>(call.indices.data_ptr());
  return call;
}

// Every other call reads features and indices and makes one tensor; `windows_in` says whether the
// features have one element a window (pooling's backward, unpooling) or are planes.
struct PoolCall {
  PoolParams params;
  Tensor features, indices, result;
};

// `plane_name` is the argument that gives the planes' size.
inline PoolCall prepare_pool_call(const char* op, const char* name, const Tensor& features,
                                  const char* plane_name, const Tensor& indices, PoolWindow w,
                                  bool windows_in, int64_t other_h, int64_t other_w) {
  check_features(op, name, features);
  const int64_t h = features.size(features.dim() - 2);
  const int64_t x = features.size(features.dim() - 1);
  w.out_h = windows_in ? h : other_h;
  w.out_w = windows_in ? x : other_w;
  w.in_h = windows_in ? other_h : h;
  w.in_w = windows_in ? other_w : x;
  SEGKERN_CHECK(w.out_h > 0 && w.out_w > 0, op, ": pooled size must be positive, got (", w.out_h,
                ", ", w.out_w, ")");
  check_plane(op, plane_name, w);
  const IndexFormat format = check_indices(op, indices, features, w);
  PoolCall call;
  const bool channels_last = is_channels_last(features);
  call.features = as_layout(features, channels_last);
  call.indices = as_layout(indices, channels_last);
  call.params = make_params(op, name, w, call.features, format, channels_last);
  call.result = empty_in_layout(with_plane(features, other_h, other_w), features.scalar_type(),
                                features, channels_last);
  void* given = const_cast<void*>(call.features.data_ptr());
  void* made = const_cast<void*>(call.result.data_ptr());
  call.params.in = windows_in ? made : given;
  call.params.out = windows_in ? given : made;
  call.params.indices = const_cast<void*>(call.indices.data_ptr());
  return call;
}

inline bool has_work(const PoolParams& p) { return p.batch > 0; }

}  // namespace segkern
