#include <algorithm>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "../common/stream.h"
#include "filter_buffers.h"
#include "permutohedral_cuda.h"

namespace segkern {
namespace {

using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

void set_scales(int dims, double* scales) {
  for (int i = 0; i < dims; ++i) {
    scales[i] = embedding_scale(dims, i);
  }
}

SixTensors permutohedral_build_cuda(const Tensor& features) {
  constexpr const char* op = "permutohedral_build";
  const OnDeviceOf device(features);
  LatticeTensors lattice = empty_lattice(op, features);
  BuildParams p{};
  p.lattice = lattice_arrays(lattice);
  const int64_t corners = p.lattice.items * p.lattice.item_corners();
  if (corners > 0) {
    SEGKERN_CHECK(corners < INT32_MAX, op, ": features must have fewer than 2^31 corners, got ",
                  corners);
    set_scales(p.lattice.dims, p.scales);
    p.features = static_cast<const float*>(features.data_ptr());
    p.item_stride = features.stride(0);
    p.point_stride = features.stride(1);
    p.dim_stride = features.stride(2);
    const auto scratch = [&](int64_t size, ScalarType dtype) {
      return empty_in_layout({size}, dtype, features, false);
    };
    const auto ints = [](const Tensor& t) { return static_cast<int32_t*>(t.data_ptr()); };
    const Tensor format = scratch(sizeof(DeviceKeyFormat), ScalarType::Byte);
    const Tensor keys = scratch(corners * 2, ScalarType::Long);
    const Tensor table = scratch(p.lattice.items * p.capacity(), ScalarType::Int);
    const Tensor cells = scratch(corners, ScalarType::Int);
    const Tensor firsts = scratch(corners, ScalarType::Int);
    const Tensor numbers = scratch(corners, ScalarType::Int);
    const Tensor ranks = scratch(corners, ScalarType::Int);
    const Tensor vertex_firsts = scratch(corners, ScalarType::Int);
    const size_t bytes = lattice_scratch_bytes(corners);
    const Tensor work = scratch(static_cast<int64_t>(bytes), ScalarType::Byte);
    p.format = static_cast<DeviceKeyFormat*>(format.data_ptr());
    p.keys = static_cast<VertexKey*>(keys.data_ptr());
    p.table = ints(table);
    p.cells = p.sorted_firsts = ints(cells);
    p.firsts = ints(firsts);
    p.numbers = ints(numbers);
    p.ranks = ints(ranks);
    p.vertex_firsts = ints(vertex_firsts);
    launch_lattice_build(p, work.data_ptr(), bytes, device.stream());
  } else {
    torch::stable::zero_(lattice.count);
    torch::stable::zero_(lattice.offsets);
  }
  return {lattice.vertex,  lattice.weight,     lattice.slot,
          lattice.offsets, lattice.neighbours, lattice.count};
}

constexpr int64_t kChannelsAtOnce = 64;

// Channel planes in pieces that scratch stays small for: all items together where their channels
// fit one piece, else one item and so many channels at a time.
struct Pieces {
  int64_t batch, channels, points;

  bool together() const { return channels <= kChannelsAtOnce; }
  int64_t items_at_once() const { return together() ? batch : 1; }
  int64_t channels_at_once() const { return std::min(channels, kChannelsAtOnce); }

  // body(first item, offset of the first element, channels)
  template <typename Body>
  void each(const Body& body) const {
    if (together()) {
      return body(int64_t{0}, int64_t{0}, channels);
    }
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t c = 0; c < channels; c += kChannelsAtOnce) {
        body(n, (n * channels + c) * points, std::min(kChannelsAtOnce, channels - c));
      }
    }
  }
};

// One side of a filter: values packed into rows, splatted and blurred, piece after piece.
struct PieceFilter {
  FilterBuffers buffers;
  LatticeArrays lattice;
  Tensor planes, rows;
  Element element;
  bool together;

  PieceFilter(const char* op, const char* name, const LatticeTensors& tensors,
              const Tensor& values, const Pieces& pieces)
      : buffers(tensors, pieces.items_at_once(), pieces.channels_at_once()),
        lattice(buffers.params.lattice),
        planes(as_layout(values, false)),
        rows(empty_in_layout({pieces.items_at_once(), pieces.points, buffers.params.stride},
                             ScalarType::Float, values, false)),
        element(element_of(values, op, name)),
        together(pieces.together()) {
    buffers.params.values = static_cast<const float*>(rows.data_ptr());
  }

  const char* plane(const Tensor& of, int64_t offset) const {
    return static_cast<const char*>(of.data_ptr()) + offset * element_size(element);
  }

  // Returns the filter with the piece's blurred sums.
  FilterParams run(int64_t item, int64_t offset, int64_t channels, bool reverse,
                   cudaStream_t stream) {
    FilterGroup group{};
    group.n_terms = 1;
    FilterParams& p = group.terms[0];
    p = buffers.params;
    if (!together) {
      p.lattice = only_item(lattice, item);
    }
    launch_lattice_pack(plane(planes, offset), element, static_cast<float*>(rows.data_ptr()),
                        p.batch, channels, p.lattice.points, p.stride, p.values_item, 1.0f, 0.0f,
                        stream);
    launch_lattice_splat_and_blur(group, reverse, stream);
    return p;
  }
};

Pieces pieces_of(const char* op, const Tensor& values) {
  SEGKERN_CHECK(values.dim() == 3, op, ": values must be (N, C, P), got ",
                shape_string(sizes_of(values)));
  return {values.size(0), values.size(1), values.size(2)};
}

// The features matter for the backward only.
Tensor permutohedral_filter_cuda(const Tensor& values, std::optional<Tensor> features,
                                 TensorList lattice, bool reverse) {
  constexpr const char* op = "permutohedral_filter";
  const OnDeviceOf device(values);
  const Pieces pieces = pieces_of(op, values);
  const LatticeTensors tensors = lattice_tensors(op, lattice, 0, pieces.batch, pieces.points);
  SEGKERN_CHECK(tensors.vertex.device() == values.device(), op,
                ": lattice must be on the device of values");
  Tensor out = empty_in_layout(sizes_of(values), values.scalar_type(), values, false);
  if (out.numel() == 0) {
    return out;
  }
  PieceFilter filter(op, "values", tensors, values, pieces);
  pieces.each([&](int64_t item, int64_t offset, int64_t channels) {
    const FilterParams p = filter.run(item, offset, channels, reverse, device.stream());
    launch_lattice_slice(p, const_cast<char*>(filter.plane(out, offset)), filter.element, channels,
                         device.stream());
  });
  return out;
}

Tensor permutohedral_feature_grad_cuda(const Tensor& grad, const Tensor& values,
                                       const Tensor& features, TensorList lattice, bool reverse) {
  constexpr const char* op = "_permutohedral_feature_grad";
  const OnDeviceOf device(values);
  const Pieces pieces = pieces_of(op, values);
  SEGKERN_CHECK(sizes_of(grad) == sizes_of(values) && grad.device() == values.device(), op,
                ": grad must be like values ", shape_string(sizes_of(values)), ", got ",
                shape_string(sizes_of(grad)));
  const LatticeTensors tensors = lattice_tensors(op, lattice, 0, pieces.batch, pieces.points);
  const int dims = tensors.dims();
  const std::vector<int64_t> wanted = {tensors.batch(), pieces.points, dims};
  SEGKERN_CHECK(sizes_of(features) == wanted && features.scalar_type() == ScalarType::Float, op,
                ": features must be float32 ", shape_string(wanted), ", got ",
                shape_string(sizes_of(features)));
  SEGKERN_CHECK(tensors.vertex.device() == values.device() &&
                    features.device() == values.device(),
                op, ": features and lattice must be on the device of values");
  Tensor out = empty_in_layout(wanted, ScalarType::Float, features, false);
  if (out.numel() == 0 || values.numel() == 0) {
    torch::stable::zero_(out);
    return out;
  }
  FeatureGradParams p{};
  set_scales(dims, p.scales);
  p.features = static_cast<const float*>(features.data_ptr());
  p.item_stride = features.stride(0);
  p.point_stride = features.stride(1);
  p.dim_stride = features.stride(2);
  p.out = static_cast<float*>(out.data_ptr());
  const Tensor dots = empty_in_layout(sizes_of(tensors.vertex), ScalarType::Double, values, false);
  const LatticeArrays all = lattice_arrays(tensors);
  PieceFilter of_values(op, "values", tensors, values, pieces);
  PieceFilter of_grads(op, "grad", tensors, grad, pieces);
  pieces.each([&](int64_t item, int64_t offset, int64_t channels) {
    p.values = of_values.run(item, offset, channels, reverse, device.stream());
    p.grads = of_grads.run(item, offset, channels, !reverse, device.stream());
    const int64_t lattice_item = all.items == 1 ? 0 : item;
    p.dots = static_cast<double*>(dots.data_ptr()) + lattice_item * all.item_corners();
    p.more = offset > (all.items == 1 ? 0 : item * pieces.channels * pieces.points);
    launch_lattice_corner_dots(p, device.stream());
  });
  p.grads.lattice = all;
  p.dots = static_cast<double*>(dots.data_ptr());
  launch_lattice_feature_grad(p, device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("permutohedral_build", TORCH_BOX(&permutohedral_build_cuda));
  m.impl("permutohedral_filter", TORCH_BOX(&permutohedral_filter_cuda));
  m.impl("_permutohedral_feature_grad", TORCH_BOX(&permutohedral_feature_grad_cuda));
}

}  // namespace segkern
