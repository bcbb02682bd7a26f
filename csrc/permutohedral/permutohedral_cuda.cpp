#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/stream.h"
#include "filter_buffers.h"
#include "permutohedral_cuda.h"

namespace segkern {
namespace {

using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SixTensors permutohedral_build_cuda(const Tensor& features) {
  constexpr const char* op = "permutohedral_build";
  const OnDeviceOf device(features);
  LatticeTensors lattice = empty_lattice(op, features);
  SEGKERN_CHECK(lattice.dims() <= kMaxCudaDims, op, ": features on CUDA must have at most ",
                kMaxCudaDims, " dimensions, got ", lattice.dims());
  LatticeParams p = lattice_params(lattice);
  const int64_t corners = p.items * p.item_corners();
  const auto scratch = [&](int64_t size, ScalarType dtype) {
    return empty_in_layout({size}, dtype, features, false);
  };
  if (corners > 0) {
    SEGKERN_CHECK(corners < INT32_MAX, op, ": features must have fewer than 2^31 corners, got ",
                  corners);
    for (int i = 0; i < p.dims; ++i) {
      p.scales[i] =
          std::sqrt(2.0 / 3.0) * (p.dims + 1) / std::sqrt(static_cast<double>((i + 1) * (i + 2)));
    }
    p.features = static_cast<const float*>(features.data_ptr());
    p.item_stride = features.stride(0);
    p.point_stride = features.stride(1);
    p.dim_stride = features.stride(2);
    const Tensor format = scratch(sizeof(DeviceKeyFormat), ScalarType::Byte);
    const Tensor keys = scratch(corners, ScalarType::Long);
    const Tensor sorted_keys = scratch(corners, ScalarType::Long);
    const Tensor vertex_keys = scratch(p.items * p.bound, ScalarType::Long);
    const Tensor numbers = scratch(corners, ScalarType::Int);
    const Tensor sorted_numbers = scratch(corners, ScalarType::Int);
    const Tensor ranks = scratch(corners, ScalarType::Int);
    const size_t bytes = lattice_scratch_bytes(corners);
    const Tensor work = scratch(static_cast<int64_t>(bytes), ScalarType::Byte);
    p.format = static_cast<DeviceKeyFormat*>(format.data_ptr());
    p.keys = static_cast<uint64_t*>(keys.data_ptr());
    p.vertex_keys = static_cast<uint64_t*>(vertex_keys.data_ptr());
    p.numbers = static_cast<int32_t*>(numbers.data_ptr());
    p.ranks = static_cast<int32_t*>(ranks.data_ptr());
    launch_lattice_build(p, static_cast<uint64_t*>(sorted_keys.data_ptr()),
                         static_cast<int32_t*>(sorted_numbers.data_ptr()), work.data_ptr(), bytes,
                         device.stream());
  } else {
    torch::stable::zero_(lattice.count);
  }
  return {lattice.vertex,  lattice.weight,     lattice.slot,
          lattice.offsets, lattice.neighbours, lattice.count};
}

constexpr int64_t kChannelsAtOnce = 64;

// The features matter for the backward only.
Tensor permutohedral_filter_cuda(const Tensor& values, std::optional<Tensor> features,
                                 TensorList lattice, bool reverse) {
  constexpr const char* op = "permutohedral_filter";
  const OnDeviceOf device(values);
  SEGKERN_CHECK(values.dim() == 3 && values.scalar_type() == ScalarType::Float, op,
                ": values must be float32 (N, C, P), got ", shape_string(sizes_of(values)));
  const int64_t batch = values.size(0), channels = values.size(1), points = values.size(2);
  const LatticeTensors tensors = lattice_tensors(op, lattice, 0, batch, points);
  SEGKERN_CHECK(tensors.vertex.device() == values.device(), op,
                ": lattice must be on the device of values");
  const Tensor in = as_layout(values, false);
  Tensor out = empty_in_layout(sizes_of(values), ScalarType::Float, values, false);
  if (out.numel() == 0) {
    return out;
  }
  // Chunks of channels of one item, so that scratch stays small; all items where they fit one.
  const bool together = channels <= kChannelsAtOnce;
  const int64_t at_once = std::min(channels, kChannelsAtOnce);
  FilterBuffers buffers(tensors, together ? batch : 1, at_once);
  FilterParams& p = buffers.params;
  const LatticeParams all = p.lattice;
  const Tensor rows =
      empty_in_layout({p.batch, points, p.stride}, ScalarType::Float, values, false);
  auto* row = static_cast<float*>(rows.data_ptr());
  p.values = row;
  const auto filter = [&](const float* from, float* to, int64_t count) {
    launch_lattice_pack(from, row, p.batch, count, points, p.stride, device.stream());
    launch_lattice_splat_and_blur(p, reverse, device.stream());
    launch_lattice_slice(p, row, device.stream());
    launch_lattice_unpack(row, to, p.batch, count, points, p.stride, device.stream());
  };
  const auto* from = static_cast<const float*>(in.data_ptr());
  auto* to = static_cast<float*>(out.data_ptr());
  if (together) {
    filter(from, to, channels);
    return out;
  }
  for (int64_t n = 0; n < batch; ++n) {
    const int64_t item = all.items == 1 ? 0 : n;
    p.lattice = all;
    p.lattice.items = 1;
    p.lattice.vertex += item * all.item_corners();
    p.lattice.weight += item * all.item_corners();
    p.lattice.corners += item * all.item_corners();
    p.lattice.offsets += item * (all.bound + 1);
    p.lattice.neighbours += item * (all.dims + 1) * all.bound * 2;
    p.lattice.count += item;
    for (int64_t c = 0; c < channels; c += kChannelsAtOnce) {
      const int64_t at = (n * channels + c) * points;
      filter(from + at, to + at, std::min(kChannelsAtOnce, channels - c));
    }
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("permutohedral_build", TORCH_BOX(&permutohedral_build_cuda));
  m.impl("permutohedral_filter", TORCH_BOX(&permutohedral_filter_cuda));
}

}  // namespace segkern
