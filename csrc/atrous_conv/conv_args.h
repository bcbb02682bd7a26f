// From an operator's arguments to params: what the hosts of every device check in common.
#pragma once

#include <optional>
#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/layout.h"
#include "conv_window.h"

namespace segkern {

using IntList = std::vector<int64_t>;

// Sizes, strides and rates above this could overflow a 64-bit product of two with a count.
constexpr int64_t kMaxLength = int64_t{1} << 31;

inline ScalarType accumulator_of(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline ConvWindow make_conv_window(const char* op, int64_t kernel_h, int64_t kernel_w,
                                   const IntList& stride, const IntList& padding,
                                   const IntList& dilation) {
  const auto two = [&](const IntList& list, const char* name, int64_t least) {
    SEGKERN_CHECK(list.size() == 2 && list[0] >= least && list[1] >= least &&
                      list[0] < kMaxLength && list[1] < kMaxLength,
                  op, ": ", name, " must be two integers from ", least, " to 2**31, got ",
                  shape_string(list));
  };
  two(stride, "stride", 1);
  two(padding, "padding", 0);
  two(dilation, "dilation", 1);
  SEGKERN_CHECK(kernel_h >= 1 && kernel_w >= 1 && kernel_h < kMaxLength && kernel_w < kMaxLength,
                op, ": kernel must be at least 1x1, got ", kernel_h, "x", kernel_w);
  ConvWindow w{};
  w.kernel_h = kernel_h;
  w.kernel_w = kernel_w;
  w.stride_h = stride[0];
  w.stride_w = stride[1];
  w.pad_h = padding[0];
  w.pad_w = padding[1];
  w.dilation_h = dilation[0];
  w.dilation_w = dilation[1];
  w.up_h = w.up_w = 1;
  return w;
}

// Fills the sizes of a window for an input plane and checks that there is an output.
inline void set_plane(const char* op, ConvWindow& w, int64_t in_h, int64_t in_w) {
  SEGKERN_CHECK(in_h >= 1 && in_w >= 1 && in_h < kMaxLength && in_w < kMaxLength, op,
                ": input must have at least one row and column, got ", in_h, "x", in_w);
  const auto length = [](int64_t n, int64_t k, int64_t s, int64_t p, int64_t d) {
    const int64_t span = n + 2 * p - d * (k - 1) - 1;
    return span < 0 ? 0 : span / s + 1;
  };
  w.in_h = in_h;
  w.in_w = in_w;
  w.out_h = length(in_h, w.kernel_h, w.stride_h, w.pad_h, w.dilation_h);
  w.out_w = length(in_w, w.kernel_w, w.stride_w, w.pad_w, w.dilation_w);
  SEGKERN_CHECK(w.out_h >= 1 && w.out_w >= 1, op,
                ": input must be large enough for its kernel, got ", in_h, "x", in_w,
                " with a kernel of ", w.kernel_h, "x", w.kernel_w);
}

// The window of the gradient of the input: the same taps in reverse over the gradient of the
// output, with stride - 1 zeros between its elements.
inline ConvWindow transposed(const ConvWindow& w) {
  ConvWindow t = w;
  t.stride_h = t.stride_w = 1;
  t.up_h = w.stride_h;
  t.up_w = w.stride_w;
  t.pad_h = w.dilation_h * (w.kernel_h - 1) - w.pad_h;
  t.pad_w = w.dilation_w * (w.kernel_w - 1) - w.pad_w;
  t.in_h = w.out_h;
  t.in_w = w.out_w;
  t.out_h = w.in_h;
  t.out_w = w.in_w;
  return t;
}

inline void check_map(const char* op, const char* name, const Tensor& t) {
  SEGKERN_CHECK(t.dim() == 4 && t.size(1) >= 1, op, ": ", name,
                " must be (N, C, H, W) with at least one channel, got ",
                shape_string(sizes_of(t)));
  element_of(t, op, name);
}

inline void check_same(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  SEGKERN_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device(), op, ": ",
                name, " must have the dtype and device of the features");
}

inline void check_sizes(const char* op, const char* name, const Tensor& t,
                        const std::vector<int64_t>& wanted) {
  SEGKERN_CHECK(sizes_of(t) == wanted, op, ": ", name, " must be ", shape_string(wanted),
                ", got ", shape_string(sizes_of(t)));
}

// A per-channel or weight tensor, dense and in the accumulating dtype; on the features' device.
inline Tensor as_accumulator(const char* op, const char* name, const Tensor& t,
                             const Tensor& features) {
  SEGKERN_CHECK(t.device() == features.device(), op, ": ", name,
                " must be on the device of the features");
  element_of(t, op, name);
  return torch::stable::contiguous(torch::stable::to(t, accumulator_of(features)));
}

// The tensors of an epilogue, kept alive for the call.
struct EpilogueArgs {
  std::optional<Tensor> scale, shift, residual, slope;
  Activation activation;
};

inline Activation activation_of(const char* op, int64_t activation) {
  SEGKERN_CHECK(activation >= 0 && activation <= 2, op, ": activation must be 0, 1 or 2, got ",
                activation);
  return static_cast<Activation>(activation);
}

inline std::optional<Tensor> per_channel(const char* op, const char* name,
                                         const std::optional<Tensor>& t, const Tensor& features,
                                         int64_t channels, bool one = false) {
  if (!t.has_value()) {
    return std::nullopt;
  }
  if (!(one && sizes_of(*t) == std::vector<int64_t>{1})) {
    check_sizes(op, name, *t, {channels});
  }
  return as_accumulator(op, name, *t, features);
}

inline EpilogueArgs epilogue_args(const char* op, const Tensor& features,
                                  const std::vector<int64_t>& out_sizes, bool channels_last,
                                  const std::optional<Tensor>& scale,
                                  const std::optional<Tensor>& shift,
                                  const std::optional<Tensor>& residual,
                                  const std::optional<Tensor>& slope, int64_t activation) {
  EpilogueArgs e;
  e.activation = activation_of(op, activation);
  e.scale = per_channel(op, "scale", scale, features, out_sizes[1]);
  e.shift = per_channel(op, "shift", shift, features, out_sizes[1]);
  e.slope = per_channel(op, "slope", slope, features, out_sizes[1], true);
  SEGKERN_CHECK(e.slope.has_value() == (e.activation == Activation::kPrelu), op,
                ": slope must be given for PReLU and only for it");
  if (residual.has_value()) {
    check_same(op, "residual", *residual, features);
    check_sizes(op, "residual", *residual, out_sizes);
    e.residual = as_layout(*residual, channels_last);
  }
  return e;
}

// Dense memory that starts at a multiple of 16 bytes.
inline Tensor as_vectors(const Tensor& t, bool channels_last = true) {
  const Tensor dense = as_layout(t, channels_last);
  const bool aligned = reinterpret_cast<uintptr_t>(dense.data_ptr()) % 16 == 0;
  return aligned ? dense : torch::stable::clone(dense);
}

inline const void* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->data_ptr() : nullptr;
}

}  // namespace segkern
