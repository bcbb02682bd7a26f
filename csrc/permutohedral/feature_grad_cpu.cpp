// The gradient of the filter to the features. Barycentric weights are linear in the features within
// a simplex, so it needs only the blurred sums of both sides at a point's own corners.
#include <algorithm>
#include <memory>

#include <torch/csrc/stable/ops.h>

#include "permutohedral.h"

namespace segkern {
namespace {

// Splats channel planes and blurs them.
void filter_into(LatticeFilter& filter, const LatticeView& lattice, const float* planes,
                 int64_t channels, bool reverse) {
  const int64_t points = lattice.points;
  torch::stable::parallel_for(0, slab_count(points), 1, [&](int64_t first, int64_t last) {
    AlignedFloats rows(kPointBlock * filter.stride());
    const int64_t end = slab_begin(points, last);
    for (int64_t i = slab_begin(points, first); i < end; i += kPointBlock) {
      const int64_t n = std::min(kPointBlock, end - i);
      lattice_rows().pack(planes + i, points, channels, 1.0f, 0.0f, rows.get(), filter.stride(), n);
      filter.splat(i, i + n, nullptr, 1.0f, rows.get());
    }
  });
  filter.blur(reverse);
}

double dot(const float* a, const float* b, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    total += static_cast<double>(a[i]) * b[i];
  }
  return total;
}

}  // namespace

void add_feature_grad_cpu(const LatticeView& lattice, const PointFeatures& features,
                          const float* a, const float* b, int64_t channels, bool reverse,
                          float* out) {
  const int64_t points = lattice.points;
  const int dims = lattice.dims, corners = dims + 1;
  LatticeFilter of_b(lattice, channels), of_a(lattice, channels);
  filter_into(of_b, lattice, b, channels, reverse);
  filter_into(of_a, lattice, a, channels, !reverse);
  double scales[kMaxLatticeDims];
  embedding_scales(dims, scales);
  const int64_t stride = of_a.stride();
  const double gain = static_cast<double>(lattice.alpha()) / corners;
  const LatticeRows& rows = lattice_rows();
  torch::stable::parallel_for(0, slab_count(points), 1, [&](int64_t first, int64_t last) {
    AlignedFloats a_rows(kPointBlock * stride), b_rows(kPointBlock * stride);
    std::unique_ptr<double[]> block(new double[(dims + corners) * kPointBlock]);
    std::unique_ptr<int32_t[]> whole(new int32_t[2 * corners * kPointBlock]);
    const int32_t* rank = whole.get() + corners * kPointBlock;
    const int64_t end = slab_begin(points, last);
    for (int64_t at = slab_begin(points, first); at < end; at += kPointBlock) {
      const int64_t n = std::min(kPointBlock, end - at);
      rows.pack(a + at, points, channels, 1.0f, 0.0f, a_rows.get(), stride, n);
      rows.pack(b + at, points, channels, 1.0f, 0.0f, b_rows.get(), stride, n);
      load_point_block(features, dims, at, n, block.get());
      rows.embed(block.get(), scales, dims, whole.get(), block.get() + dims * kPointBlock,
                 whole.get() + corners * kPointBlock);
      for (int64_t i = 0; i < n; ++i) {
        const int32_t* vertex = lattice.vertex + (at + i) * corners;
        double corner[kMaxLatticeDims + 1] = {}, g[kMaxLatticeDims + 1] = {};
        for (int k = 0; k < corners; ++k) {
          corner[k] = dot(a_rows.get() + i * stride, of_b.vertex_row(vertex[k]), channels) +
                      dot(b_rows.get() + i * stride, of_a.vertex_row(vertex[k]), channels);
        }
        for (int j = 0; j < corners; ++j) {
          const int from = dims - rank[j * kPointBlock + i];
          g[j] = gain * (corner[from] - corner[(from + 1) % corners]);
        }
        double sum = 0;
        for (int m = 0; m < dims; ++m) {
          sum += g[m];
          out[(at + i) * dims + m] +=
              static_cast<float>(scales[m] * (sum - (m + 1) * g[m + 1]));
        }
      }
    }
  });
}

}  // namespace segkern
