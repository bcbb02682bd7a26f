// Memory layout of (N, C, H, W) and (C, H, W) tensors, from strides (the stable ABI has no query
// for channels-last), and allocation in a given layout.
#pragma once

#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

namespace segkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether the strides grow in the order C, W, H, N: torch's rule for the memory format to keep
// (suggest_memory_format), which also decides for sizes of one, where both formats describe the
// same memory. The elements need not be dense.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.stride(1) == 0) {
    return false;
  }
  int64_t least = 0;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least || (d == 0 && least == t.stride(1))) {
      return false;
    }
    least = t.stride(d) * (t.size(d) > 1 ? t.size(d) : 1);
  }
  return true;
}

// The tensor with dense elements in the layout asked for; copies only where it has to.
inline Tensor as_layout(const Tensor& t, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::contiguous(
      t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty_in_layout(const std::vector<int64_t>& sizes, ScalarType dtype,
                              const Tensor& like, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      sizes, dtype, std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace segkern
