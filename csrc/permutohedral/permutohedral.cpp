#include "permutohedral.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "lattice_args.h"

namespace segkern {
namespace {

using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SixTensors permutohedral_build_cpu(const Tensor& features) {
  constexpr const char* op = "permutohedral_build";
  LatticeTensors lattice = empty_lattice(op, features);
  for (const Tensor& filled : {lattice.vertex, lattice.weight, lattice.slot}) {
    prefer_large_pages(filled.data_ptr(), filled.numel() * 4);
  }
  auto* counts = static_cast<int64_t*>(lattice.count.data_ptr());
  for (int64_t item = 0; item < lattice.batch(); ++item) {
    const PointFeatures points = {
        static_cast<const float*>(features.data_ptr()) + item * features.stride(0),
        features.stride(1), features.stride(2)};
    LatticeView view = lattice.view(item);
    int bits = 0;
    const BuildError error = build_lattice_cpu(points, view, &bits);
    SEGKERN_CHECK(error != BuildError::kNotFinite, op,
                  ": features must be finite, got NaN or infinity");
    SEGKERN_CHECK(error != BuildError::kTooWide, op,
                  ": features must span fewer lattice cells (vertex keys need ", bits,
                  " bits, 127 are there): are the widths too small?");
    counts[item] = view.count;
  }
  return {lattice.vertex,  lattice.weight,     lattice.slot,
          lattice.offsets, lattice.neighbours, lattice.count};
}

constexpr int64_t kChannelsAtOnce = 64;

// Filters up to kChannelsAtOnce channel planes of one item.
void filter_planes(const LatticeView& lattice, const float* in, float* out, int64_t channels,
                   bool reverse) {
  LatticeFilter filter(lattice, channels);
  const LatticeRows& rows = lattice_rows();
  const int64_t points = lattice.points, stride = filter.stride();
  const auto each_block = [&](const auto& body) {
    torch::stable::parallel_for(0, slab_count(points), 1, [&](int64_t first, int64_t last) {
      AlignedFloats block(kPointBlock * stride);
      const int64_t end = slab_begin(points, last);
      for (int64_t i = slab_begin(points, first); i < end; i += kPointBlock) {
        body(i, std::min(kPointBlock, end - i), block.get());
      }
    });
  };
  each_block([&](int64_t i, int64_t n, float* block) {
    rows.pack(in + i, points, channels, 1.0f, 0.0f, block, stride, n);
    filter.splat(i, i + n, nullptr, 1.0f, block);
  });
  filter.blur(reverse);
  each_block([&](int64_t i, int64_t n, float* block) {
    filter.slice(i, i + n, nullptr, block);
    rows.unpack(block, stride, channels, 1.0f, out + i, points, n);
  });
}

// The features matter for the backward only.
Tensor permutohedral_filter_cpu(const Tensor& values, std::optional<Tensor> features,
                                TensorList lattice, bool reverse) {
  constexpr const char* op = "permutohedral_filter";
  SEGKERN_CHECK(values.dim() == 3 && values.scalar_type() == ScalarType::Float, op,
                ": values must be float32 (N, C, P), got ", shape_string(sizes_of(values)));
  const int64_t batch = values.size(0), channels = values.size(1), points = values.size(2);
  const LatticeTensors tensors = lattice_tensors(op, lattice, 0, batch, points);
  const Tensor in = as_layout(values, false);
  Tensor out = empty_in_layout(sizes_of(values), ScalarType::Float, values, false);
  if (points == 0) {
    return out;
  }
  for (int64_t item = 0; item < batch; ++item) {
    const LatticeView view = tensors.cpu_view(tensors.batch() == 1 ? 0 : item);
    for (int64_t c = 0; c < channels; c += kChannelsAtOnce) {
      const int64_t at = (item * channels + c) * points;
      filter_planes(view, static_cast<const float*>(in.data_ptr()) + at,
                    static_cast<float*>(out.data_ptr()) + at,
                    std::min(kChannelsAtOnce, channels - c), reverse);
    }
  }
  return out;
}

Tensor permutohedral_feature_grad_cpu(const Tensor& grad, const Tensor& values,
                                      const Tensor& features, TensorList lattice, bool reverse) {
  constexpr const char* op = "_permutohedral_feature_grad";
  SEGKERN_CHECK(values.dim() == 3 && sizes_of(grad) == sizes_of(values) &&
                    values.scalar_type() == ScalarType::Float &&
                    grad.scalar_type() == ScalarType::Float,
                op, ": grad and values must be float32 (N, C, P), got ",
                shape_string(sizes_of(grad)), " and ", shape_string(sizes_of(values)));
  const int64_t batch = values.size(0), channels = values.size(1), points = values.size(2);
  const LatticeTensors tensors = lattice_tensors(op, lattice, 0, batch, points);
  const int dims = tensors.dims();
  const std::vector<int64_t> wanted = {tensors.batch(), points, dims};
  SEGKERN_CHECK(sizes_of(features) == wanted && features.scalar_type() == ScalarType::Float, op,
                ": features must be float32 ", shape_string(wanted), ", got ",
                shape_string(sizes_of(features)));
  const Tensor a = as_layout(grad, false), b = as_layout(values, false);
  Tensor out = empty_in_layout(wanted, ScalarType::Float, features, false);
  torch::stable::zero_(out);
  for (int64_t item = 0; points > 0 && item < batch; ++item) {
    const int64_t at = tensors.batch() == 1 ? 0 : item;
    const LatticeView view = tensors.cpu_view(at);
    const PointFeatures rows = {
        static_cast<const float*>(features.data_ptr()) + at * features.stride(0),
        features.stride(1), features.stride(2)};
    for (int64_t c = 0; c < channels; c += kChannelsAtOnce) {
      const int64_t plane = (item * channels + c) * points;
      add_feature_grad_cpu(view, rows, static_cast<const float*>(a.data_ptr()) + plane,
                           static_cast<const float*>(b.data_ptr()) + plane,
                           std::min(kChannelsAtOnce, channels - c), reverse,
                           static_cast<float*>(out.data_ptr()) + at * points * dims);
    }
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("permutohedral_build", TORCH_BOX(&permutohedral_build_cpu));
  m.impl("permutohedral_filter", TORCH_BOX(&permutohedral_filter_cpu));
  m.impl("_permutohedral_feature_grad", TORCH_BOX(&permutohedral_feature_grad_cpu));
}

}  // namespace segkern
