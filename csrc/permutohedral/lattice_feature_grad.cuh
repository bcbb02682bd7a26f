// The gradient of a filter to the features its lattice was built from. Barycentric weights are
// linear in the features within a simplex, so it needs only the blurred sums of both sides at a
// point's own corners. `launch` as in lattice_build_launch.cuh.
#pragma once

#include "lattice_filter.cuh"
#include "simplex.cuh"

namespace segkern {
namespace {

// A thread owns a corner: the products of its point's rows with the other side's blurred rows of
// its vertex, summed over channels and over items that share the lattice, in order. Reads four
// rows: bound by the latency of the second-level cache.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_corner_dots_kernel(const __grid_constant__ FeatureGradParams p, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const LatticeArrays& l = p.grads.lattice;
  const int64_t stride = p.grads.stride;
  const Split<int64_t> row(thread, l.dims + 1);
  const Split<int64_t> at(row.outer, l.points);
  const int64_t vertex = l.vertex[thread];
  const int64_t last = l.items == 1 ? p.grads.batch : at.outer + 1;
  double total = p.more ? p.dots[thread] : 0.0;
  for (int64_t item = l.items == 1 ? 0 : at.outer; item < last; ++item) {
    const int64_t point = (item * l.points + at.inner) * stride;
    const int64_t sum = (item * l.bound + vertex) * stride;
    for (int64_t channel = 0; channel < stride; channel += 4) {
      const Vec4 a = load_vec<float, 4>(p.grads.values + point + channel);
      const Vec4 b = load_vec<float, 4>(p.values.values + point + channel);
      const Vec4 of_a = load_vec<float, 4>(p.grads.sums + sum + channel);
      const Vec4 of_b = load_vec<float, 4>(p.values.sums + sum + channel);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        total += static_cast<double>(a.lane[i]) * of_b.lane[i] +
                 static_cast<double>(b.lane[i]) * of_a.lane[i];
      }
    }
  }
  p.dots[thread] = total;
}

// A thread owns a point: its simplex anew, and from its corners' dots the d gradients. Bound by its
// arithmetic in double precision.
template <int kDims>
__global__ void __launch_bounds__(kBlockThreads)
    lattice_feature_grad_kernel(const __grid_constant__ FeatureGradParams p, int64_t threads) {
  constexpr int kCorners = kDims + 1;
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const LatticeArrays& l = p.grads.lattice;
  const Split<int64_t> at(thread, l.points);
  const float* from = p.features + at.outer * p.item_stride + at.inner * p.point_stride;
  // Where the lattice was built from features that do not fit, the dots are NaN.
  const float weight = l.weight[thread * kCorners];
  const bool valid = weight == weight;
  const Simplex<kDims> simplex(p.scales, [&](int j) {
    return valid ? static_cast<double>(from[j * p.dim_stride]) : 0.0;
  });
  const double* dots = p.dots + thread * kCorners;
  const double gain = static_cast<double>(l.alpha()) / kCorners;
  double sum = 0;
#pragma unroll
  for (int j = 0; j < kCorners; ++j) {
    const int place = simplex.place[j];
    const double share = gain * (dots[place] - dots[place == kDims ? 0 : place + 1]);
    if (j > 0) {
      p.out[thread * kDims + j - 1] =
          static_cast<float>(p.scales[j - 1] * (sum - j * share));
    }
    sum += share;
  }
}

}  // namespace

// After both sides' filters: adds their channels' share to the dots.
template <typename Launch>
void lattice_corner_dots(const FeatureGradParams& p, const Launch& launch) {
  const int64_t corners = p.grads.lattice.items * p.grads.lattice.item_corners();
  launch(lattice_corner_dots_kernel, corners, p, corners);
}

// After all channels.
template <typename Launch>
void lattice_feature_grad(const FeatureGradParams& p, const Launch& launch) {
  const int64_t points = p.grads.lattice.items * p.grads.lattice.points;
  by_dims(p.grads.lattice.dims, [&](auto dims) {
    launch(lattice_feature_grad_kernel<decltype(dims)::value>, points, p, points);
  });
}

}  // namespace segkern
